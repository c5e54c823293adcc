"""Is the search worth its compute? Ours against random, uniform, NSGA-II and TPE, cold and warm, and without its parts.

    python benchmarks/search.py run mnist --folder out --seed 0 --worker-seconds 600
    python benchmarks/search.py run resnet20 --folder out --seed 0 --worker-seconds 1500     (needs CIFAR10_DIR)
    python benchmarks/search.py table out benchmarks/search.csv --keep benchmarks/search.csv --picture docs/search.png

`run` lets every searcher spend the same worker-seconds, one trial at a time; sensitivities and costs, measured afresh,
count as ours. All start from the same uncompressed file. What is done already is skipped, so several processes may share
the work, one a seed. `table` reads what is there, in folders of runs and in files of curves that were kept: for each case
the hypervolume that each searcher came to (mean and range over seeds), and the share of the best rival's compute after which
ours had as much.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import click
import pandas as pd
from matplotlib.figure import Figure

from autocompress.baselines import run_baselines
from autocompress.compute import OURS, curves, used_seconds
from autocompress.drivers.local import LocalDriver
from autocompress.errors import InputError
from autocompress.experiment import Experiment
from autocompress.folder import RunFolder
from autocompress.policy import Policy
from autocompress.run import run_search

ROOT = Path(__file__).resolve().parent.parent
CASES = {"mnist": "mnist_vgg", "resnet20": "cifar10_resnet20"}
RIVALS = ("uniform", "random", "nsga2", "tpe", "nsga2-warm", "tpe-warm")
ABLATIONS = ("no prior", "no halving", "no repair", "no refit")
_COLUMNS = ["case", "seed", "searcher", "number", "worker_seconds", "hypervolume"]
# An experiment file of the benchmark: the case's own, with the budget, the seed and what is left out.
_FILE = """\
import sys
sys.path[:0] = [{benchmarks!r}, {experiments!r}]
from search import experiment_of
experiment = experiment_of({case!r}, {seed}, {seconds}, {without!r})
"""


def experiment_of(case: str, seed: int, seconds: float, without: str) -> Experiment:
    """The experiment of a case for so many worker-seconds, without one part of the machinery."""
    from importlib import import_module

    from autocompress.experiment import Budget
    from search_spaces import joint

    experiment: Experiment = import_module(CASES[case]).experiment
    experiment = replace(experiment, seed=seed, budget=Budget(trials=None, worker_seconds=seconds))
    match without:
        case "no prior":
            return replace(experiment, space=joint.make(steps=(150,)), start=())
        case "no halving":
            return replace(experiment, halving=None)
        case "no repair":
            return replace(experiment, space=_unrepaired(experiment.space))
        case "no refit":
            return replace(experiment, refit=None)
    return experiment


def _unrepaired(space: Any) -> Any:
    @wraps(space)
    def plain(*given: Any) -> Policy:
        policy: Policy = space(*given)
        return policy.model_copy(update={"repair": False})

    return plain


@click.group()
def main() -> None:
    """See the head of this file."""


@main.command()
@click.argument("case", type=click.Choice(list(CASES)))
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--seed", type=int, required=True)
@click.option("--worker-seconds", type=float, required=True)
@click.option("--only", multiple=True, help="One of the rivals or ablations; may be repeated. [default: all]")
def run(*, case: str, folder: Path, seed: int, worker_seconds: float, only: tuple[str, ...]) -> None:
    """Run one case with one seed."""
    there = folder / case / f"seed{seed}"
    ours = there / "ours"
    _search(case, seed, worker_seconds, "", ours)
    wanted = [name for name in (*RIVALS, *ABLATIONS) if not only or name in only]
    for name in wanted:
        if name in ABLATIONS:
            _search(case, seed, worker_seconds, name, there / name.replace(" ", "-"), like=ours)
        else:
            print(f"{case} seed {seed}: {name}", flush=True)
            run_baselines(ours, driver=LocalDriver(), rivals=[name], worker_seconds=worker_seconds)


def _search(case: str, seed: int, seconds: float, without: str, folder: Path, *, like: Path | None = None) -> None:
    if (folder / "done").exists():
        return
    print(f"{case} seed {seed}: {without or 'ours'}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if like is not None:
        shutil.copytree(like / "baseline", folder / "baseline")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # sensitivities are measured afresh
        file = folder / "benchmark.py"
        names = {"benchmarks": str(ROOT / "benchmarks"), "experiments": str(ROOT / "experiments")}
        file.write_text(_FILE.format(case=case, seed=seed, seconds=seconds, without=without, **names))
        run_search(file, folder, driver=LocalDriver(), tracking_uri=f"sqlite:///{folder.resolve()}/mlflow.db")
    (folder / "done").write_text(json.dumps({"worker_seconds": used_seconds(RunFolder(folder))}))


@main.command()
@click.argument("sources", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--keep", type=click.Path(path_type=Path), help="A CSV file to write the curves to.")
@click.option("--picture", type=click.Path(path_type=Path), help="Where to draw the curves.")
def table(*, sources: tuple[Path, ...], keep: Path | None, picture: Path | None) -> None:
    """Print what came of it. What is in several sources is taken from the first."""
    found = pd.concat(
        [rows for source in sources for rows in ([pd.read_csv(source)] if source.is_file() else _curves(source))],
        ignore_index=True,
    )[_COLUMNS].drop_duplicates(["case", "seed", "searcher", "number"])
    for case, rows in found.groupby("case"):
        print(f"\n{case}: hypervolume (validation) after the same worker-seconds, {rows.seed.nunique()} seeds")
        print(_summary(rows).to_string(float_format=lambda value: f"{value:.4f}"))
        print(_verdict(rows))
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        found.sort_values(["case", "seed", "searcher", "worker_seconds"], kind="stable").to_csv(
            keep, index=False, float_format="%.5g"
        )
    if picture is not None:
        _draw(found, picture)


def _curves(folder: Path) -> Iterator[pd.DataFrame]:
    for there in sorted(folder.glob("*/seed*")):
        front = there / "ours"
        if not (front / "done").exists():
            continue
        yield curves(RunFolder(front)).assign(case=there.parent.name, seed=there.name)
        for name in ABLATIONS:
            other = there / name.replace(" ", "-")
            if (other / "done").exists():
                rows = curves(RunFolder(other))
                yield rows[rows.searcher == OURS].assign(searcher=name, case=there.parent.name, seed=there.name)


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    last = rows.groupby(["searcher", "seed"]).agg(
        volume=("hypervolume", "last"), seconds=("worker_seconds", "max"), trials=("number", "count")
    )
    table = last.groupby("searcher").agg(
        mean=("volume", "mean"),
        lowest=("volume", "min"),
        highest=("volume", "max"),
        seconds=("seconds", "mean"),
        trials=("trials", "mean"),
    )
    return table.sort_values("mean", ascending=False)


def _verdict(rows: pd.DataFrame) -> str:
    lines = []
    for seed, here in rows.groupby("seed"):
        ours = here[here.searcher == OURS]
        rivals = here[here.searcher.isin(RIVALS)]
        if rivals.empty:
            continue
        finals = rivals.groupby("searcher").hypervolume.last()
        best, volume = str(finals.idxmax()), float(finals.max())
        spent = float(rivals[rivals.searcher == best].worker_seconds.max())
        reached = ours[ours.hypervolume >= volume].worker_seconds.min()
        share = "never" if pd.isna(reached) else f"after {reached / spent:.0%} of its compute"
        lines.append(f"{seed}: best rival {best} {volume:.4f}; ours {ours.hypervolume.iloc[-1]:.4f}, as good {share}")
    return "\n".join(lines)


def _draw(found: pd.DataFrame, picture: Path) -> None:
    cases = [case for case in CASES if (found.case == case).any()]
    figure = Figure(figsize=(6.5 * len(cases), 4.6), dpi=140, layout="constrained")
    for place, case in enumerate(cases):
        axes = figure.add_subplot(1, len(cases), place + 1)
        rows, ends = found[found.case == case], []
        for colour, searcher in enumerate((OURS, *RIVALS)):
            here = rows[rows.searcher == searcher]
            if here.empty:
                continue
            grid, mean = _mean_curve(here)
            ours = searcher == OURS
            seeds = (
                "" if here.seed.nunique() == rows.seed.nunique() else f" ({here.seed.nunique()} of {rows.seed.nunique()} seeds)"
            )
            label = "ours" if ours else f"{searcher}{seeds}"
            axes.plot(grid, mean, label=label, color=f"C{colour}", lw=2.6 if ours else 1.3, zorder=3 if ours else 2)
            ends.append(mean[-1])
        axes.set(title=case, xlabel="worker-seconds", ylabel="hypervolume, mean of seeds")
        axes.grid(color="#e6e9ed")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0.9 * min(ends), max(ends) + 0.1 * min(ends))
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(picture)


def _mean_curve(here: pd.DataFrame) -> tuple[list[float], list[float]]:
    last = here.worker_seconds.max()
    grid = [last * step / 200 for step in range(201)]
    at = [
        [float(rows[rows.worker_seconds <= x].hypervolume.max()) if (rows.worker_seconds <= x).any() else 0.0 for x in grid]
        for _, rows in here.groupby("seed")
    ]
    return grid, [sum(values) / len(values) for values in zip(*at, strict=True)]


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except InputError as error:
        sys.exit(f"error: {error}")
