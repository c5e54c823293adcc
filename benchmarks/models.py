"""How small and fast do other networks get? Searches of transformers, MobileNetV2 and VGG16 for two runtimes at once.

    CIFAR10_DIR=data python benchmarks/models.py --folder runs/models         (about an hour and a half on one core)
    python benchmarks/models.py vit text --folder runs/models                 (ten minutes)
    python benchmarks/models.py mine.py --folder runs/models --worker-seconds 600

Each case is a search of an experiment for ONNX Runtime and OpenVINO on one thread of a CPU, one trial at a time in this
process, for so many worker-seconds; training the uncompressed network comes on top, and is done once. Everything is kept in
`--folder`: called again, a search that was cut short goes on, and what is done is not done again.

In the table each runtime has its own pick of the front: the model of least latency there among those that lose at most one
point of accuracy on *validation* data. Its bytes and its time are those of the exported file beside the uncompressed one's, its
accuracy, and that of the uncompressed file, those on *test* data, which nobody has looked at before.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import torch
from cases import EXPERIMENTS
from printing import print_goal, print_machine
from rich.console import Console

from autocompress.drivers.local import LocalDriver
from autocompress.errors import InputError
from autocompress.export import export
from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.opened import Options, open_run
from autocompress.progress import open_view
from autocompress.result import TrialResult
from autocompress.run import resume, run_search
from autocompress.target import Target
from autocompress.trackers.mlflow_run import default_uri
from autocompress.verify import CLAIMS, Claims, read_claims

TARGETS = ("onnxruntime-cpu", "openvino-cpu")
TARGET = Target.parse(*TARGETS)
# The case's own experiment, but for the budget and the training of the uncompressed network.
_FILE = """\
from dataclasses import replace

from autocompress.experiment import Budget, load_experiment

experiment = replace(load_experiment({file!r}), budget=Budget(trials=None, worker_seconds={seconds}))
"""
_EPOCHS = "experiment.task.epochs = {epochs}\n"
_HEADINGS = (
    *("model", "runtime", "trial", "bytes", "times smaller", "ms", "times faster"),
    *("uncompressed (test)", "accuracy (test)", "points lost", "policy"),
)


@dataclass(frozen=True)
class Goal:
    """One file so many times smaller and faster than the float file, on the first target, that loses at most a point."""

    times_smaller: float
    times_faster: float


@dataclass(frozen=True)
class Case:
    """An experiment file, and how many worker-seconds its search may take."""

    file: Path
    seconds: float = 240
    goal: Goal | None = None


CASES = {
    "vit": Case(EXPERIMENTS / "mnist_vit.py"),
    "text": Case(EXPERIMENTS / "docs_text.py"),
    "vgg16": Case(EXPERIMENTS / "cifar10_vgg16.py", seconds=800, goal=Goal(times_smaller=30, times_faster=6)),
    "mobilenetv2": Case(EXPERIMENTS / "cifar10_mobilenetv2.py", seconds=800),
}


@click.command()
@click.argument("names", nargs=-1, metavar="[vit|text|vgg16|mobilenetv2|FILE.py]...")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Where everything is kept.")
@click.option("--worker-seconds", type=float, help="For each search. [default: 240, on CIFAR-10 800]")
@click.option("--epochs", type=int, help="Of training the uncompressed networks, for tasks that have an `epochs`.")
def main(*, names: tuple[str, ...], folder: Path, worker_seconds: float | None, epochs: int | None) -> None:
    """Search in some or all cases, and print what came of it."""
    cases = {Path(name).stem: _case(name) for name in names or CASES}
    torch.set_num_threads(1)
    print_machine()
    for name, case in list(cases.items()):
        print(f"\n{name}", flush=True)
        try:
            search(case, folder / name, worker_seconds or case.seconds, epochs)
        except InputError as error:
            print(f"skipped: {error}")
            del cases[name]
    print(f"\n{_line(_HEADINGS)}\n{_line(['---'] * len(_HEADINGS))}")
    for name in cases:
        for row in rows(name, folder / name):
            print(_line(row), flush=True)
    for name, case in cases.items():
        if case.goal is not None:
            print_goals(name, case.goal, open_run(folder / name).front())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _case(name: str) -> Case:
    if name in CASES:
        return CASES[name]
    if not Path(name).is_file():
        raise click.UsageError(f"no case and no file {name!r}; the cases are {', '.join(CASES)}")
    return Case(Path(name).resolve())


def search(case: Case, folder: Path, seconds: float, epochs: int | None) -> None:
    """Searches in `folder`, or goes on there; a search whose budget is used up is opened and closed. Raises `InputError`."""
    file = folder.parent / f"{folder.name}.py"
    folder.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_FILE.format(file=str(case.file), seconds=seconds) + (_EPOCHS.format(epochs=epochs) if epochs else ""))
    with open_view(Console(highlight=False, width=120), quiet=False) as view:
        if RunFolder(folder).run_json.exists():
            resume(folder, driver=LocalDriver(), view=view)
        else:
            uri, options = default_uri(folder.parent), Options(targets=TARGETS)
            run_search(file, folder, driver=LocalDriver(), tracking_uri=uri, options=options, view=view)


def rows(name: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """A row of the table for each target."""
    front = open_run(folder).front()
    for place in TARGET.each:
        chosen = one_point_pick(front, TARGET.metric("latency_ms", place))
        if chosen is None:
            yield name, place.runtime, "none within one point on validation", *[""] * (len(_HEADINGS) - 3)
            continue
        claims = delivered(folder, chosen, place)
        score, whole = claims.accuracy, claims.baseline_accuracy
        assert whole is not None
        yield (
            *(name, place.runtime, str(chosen.number)),
            *(f"{claims.size_bytes:,}", f"{claims.baseline_size_bytes / claims.size_bytes:.1f}"),
            *(f"{claims.latency_ms:.4f}", f"{1 / claims.latency_ratio:.2f}"),
            *(f"{whole.accuracy:.2%}", f"{score.accuracy:.2%} ({score.low:.1%} to {score.high:.1%})"),
            *(f"{100 * (whole.accuracy - score.accuracy):.2f}", chosen.summary),
        )


def one_point_pick(front: ParetoFront, metric: str = "latency_ms") -> TrialResult | None:
    """The member with the least of `metric` among those at most a point below the uncompressed model on validation data."""
    return min(_within_a_point(front), key=lambda member: member.metrics[metric], default=None)


def delivered(folder: Path, chosen: TrialResult, place: Target) -> Claims:
    """What is claimed of that trial's file for `place`, exported into the run `folder`, and measured on test data, once."""
    into = folder / "picks" / f"{chosen.number:04d}-{place.name.replace(':', '-')}"
    if not (into / CLAIMS).exists():
        export(open_run(folder), str(chosen.number), into, max_drop=None, target=place.name)
    return read_claims(into)


def print_goals(name: str, goal: Goal, front: ParetoFront) -> None:
    """Of the models within a point on validation data, the one that comes nearest to being as small and as fast."""

    def reached(member: TrialResult) -> float:
        smaller, faster = _times(member, front)
        return min(smaller / goal.times_smaller, faster / goal.times_faster)

    member = max(_within_a_point(front), key=reached, default=None)
    if member is None or front.baseline_test is None:
        print(f"\n{name}: goals MISSED, no model within one point on validation data")
        return
    smaller, faster = _times(member, front)
    lost = 100 * (front.baseline_test.accuracy - front.test[member.number].accuracy)
    print(f"\n{name}, trial {member.number}: {member.summary}")
    print_goal("times smaller than the float file", smaller, at_least=goal.times_smaller)
    print_goal(f"times faster on {TARGET.runtime}", faster, at_least=goal.times_faster)
    print_goal("points lost on test data", lost, at_most=1)


def _within_a_point(front: ParetoFront) -> list[TrialResult]:
    return [member for member in front.members if front.drop(member) <= 0.01 + 1e-9]


def _times(member: TrialResult, front: ParetoFront) -> tuple[float, float]:
    return front.baseline["size_bytes"] / member.metrics["size_bytes"], 1 / member.metrics["latency_ratio"]


if __name__ == "__main__":
    main()
