"""Is an exported winner as quick and as good as what ONNX Runtime's own static quantisation makes of the same network?

    python benchmarks/static.py runs/models/vgg16        (a minute, and as long as the winner was trained further)
    python benchmarks/static.py runs/models/vgg16 --pick 17

The winner of a run, without --pick the model of least latency within a point of accuracy on validation data, beside the same
network in floats: with the channels that are left, and the weights that its student was trained by before they are rounded. A
winner that was trained further from another trial is made from that one's weights, and the float network trained further as
the winner was, in floats. What is in the checkpoint is not trained again. The float network is exported and handed to
`onnxruntime.quantization.quantize_static`: QDQ, a scale for each output channel, signed 8-bit weights, unsigned 8-bit
activations, ranges from the training images that a trial calibrates by. The same network once more with 8 bits throughout, or
as many as the target has beside 8-bit activations, compressed and trained further by us: the tool's bits with our means. Files
are timed in turn, and judged on test data.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import torch
from models import one_point_pick
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from printing import print_goal, print_machine
from safetensors.numpy import load as load_tensors
from torch import nn

from autocompress import nested
from autocompress.baseline import Baseline, Data, as_tensors, load_data
from autocompress.compress import compress
from autocompress.distill import Teacher
from autocompress.errors import InputError
from autocompress.experiment import Experiment
from autocompress.export import choose
from autocompress.fast import in_fast_layout
from autocompress.finetune import evaluate, finetune
from autocompress.lane import Lane
from autocompress.measure import Here, measure_latency, test_score
from autocompress.nested import Nested
from autocompress.opened import Run, open_run
from autocompress.policy import Policy
from autocompress.result import TrialResult
from autocompress.runtimes import file_name, runtime_of
from autocompress.runtimes.onnx_graph import to_onnx
from autocompress.runtimes.onnxruntime import OnnxSession
from autocompress.runtimes.slot import by_slot
from autocompress.space import integer_bits
from autocompress.space import quantised as quantised_layer
from autocompress.student import ActivationQuantizer, StudentLayer, kind_of
from autocompress.target import Target
from autocompress.task import Task
from autocompress.trial import calibration_rows
from autocompress.trial_files import CHECKPOINT, read_trial_file

TARGET = Target()
_EXAMPLES, _BATCH = 8, 64


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--pick", help="knee, smallest, fastest, best, or the number of a trial, instead.")
def main(*, folder: Path, pick: str | None) -> None:
    """Compare the winner of RUN, which was searched with ONNX Runtime as a target and refits, with the tool's file."""
    torch.set_num_threads(1)
    print_machine()
    run = open_run(folder)
    try:
        compare(
            run, one_point_pick(run.front()) if pick is None else choose(run.front(), run.folder.results(), pick, max_drop=1)
        )
    except InputError as error:
        raise click.ClickException(str(error)) from error


def compare(run: Run, winner: TrialResult | None) -> None:
    """Prints bytes, time and accuracy of both files. Raises `InputError` when there is no winner or no checkpoint."""
    if winner is None:
        raise InputError("no model is within a point of the uncompressed one on validation data; name one by --pick")
    work = _work(run, winner)
    network = work.float_network()
    alike = work.trained(work.with_its_bits(network), "with its bits")
    network = work.trained(network, "in floats")
    files = {
        "ours": read_trial_file(run.folder, winner, file_name(work.baseline.target, TARGET)),
        "its bits, by us": runtime_of(TARGET).export(alike, nested.take(work.calibration(winner)[0], slice(_EXAMPLES))),
        "quantize_static": quantised(network, work.calibration(winner)[0]),
    }
    tools = files["quantize_static"]
    latencies = {name: measure_latency(file, tools, TARGET) for name, file in files.items() if file is not tools}
    scores = {name: test_score(file, work.task, Here(TARGET)) for name, file in files.items()}
    print(f"\n{run.folder.path.name}, trial {winner.number}: {winner.summary}\n")
    for name, file in files.items():
        score, its = scores[name], latencies.get(name)
        ms = latencies["ours"].baseline_latency_ms if its is None else its.latency_ms
        accuracy = f"{score.accuracy:.2%} ({score.low:.1%} to {score.high:.1%}) on test"
        print(f"  {name:16s} {len(file):>10,} bytes {ms:8.4f} ms   {accuracy}")
    print()
    for name, latency in latencies.items():
        print_goal(f"time, {name} / quantize_static", latency.ratio, at_most=1.15)
        gained = 100 * (scores[name].accuracy - scores["quantize_static"].accuracy)
        print_goal(f"points of accuracy above quantize_static, {name}", gained, at_least=0)


@dataclass(frozen=True, eq=False)
class _Work:
    """A winner, the trial that it was trained further from (itself if it was not), and what they were made from."""

    run: Run
    winner: TrialResult
    parent: TrialResult
    experiment: Experiment
    baseline: Baseline
    data: Data
    teacher: Teacher

    @property
    def task(self) -> Task:
        return self.experiment.task

    def calibration(self, trial: TrialResult) -> tuple[Nested, Nested]:
        """The training inputs, and their targets, that the trial was calibrated by."""
        inputs, targets = as_tensors(self.data["train"])
        rows = torch.as_tensor(calibration_rows(nested.count(inputs), trial.seed))
        return nested.take(inputs, rows), nested.take(targets, rows)

    def float_network(self) -> nn.Module:
        """The parent's network in floats. Raises `InputError` when the run kept no checkpoint of it."""
        calibration, targets = self.calibration(self.parent)

        def leave_gradients(model: nn.Module) -> None:
            model.zero_grad()
            self.task.loss(nested.call(model, calibration), targets).backward()

        student = compress(self.teacher.model, self.parent.policy, calibration, leave_gradients, self.baseline.layers.groups)
        checkpoint = self.run.folder.trial(self.parent.number) / CHECKPOINT
        if not checkpoint.is_file():
            raise InputError(f"trial {self.parent.number} has no checkpoint in {self.run.folder.path}")
        weights = load_tensors(read_trial_file(self.run.folder, self.parent, CHECKPOINT))
        student.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        return in_floats(student)

    def with_its_bits(self, network: nn.Module) -> nn.Module:
        """A student of `network` with 8 bits throughout, or as many as the target has beside 8-bit activations."""
        menu = TARGET.menu
        left = {name for name, module in network.named_modules() if kind_of(module) is not None}
        how = quantised_layer(max(integer_bits(menu)), menu)
        policy = Policy(layers={layer.name: how for layer in self.baseline.layers if layer.name in left})
        return compress(network, policy, self.calibration(self.winner)[0])

    def trained(self, network: nn.Module, how: str) -> nn.Module:
        """`network`, trained in place as the winner was if it was trained further."""
        if self.winner.refit_of is None:
            return network
        lane, inputs = Lane(), self.calibration(self.winner)[0]
        network = in_fast_layout(network, nested.take(inputs, slice(_EXAMPLES)))
        for rung in finetune(
            network,
            self.winner.policy,
            self.task,
            self.teacher,
            as_tensors(self.data["train"]),
            lambda model: evaluate(model, self.task, self.data["validation"], lane=lane),
            rungs=self.experiment.rungs,
            seed=self.winner.seed,
            lane=lane,
        ):
            print(f"{how}: step {rung.step}, {rung.accuracy:.2%} on validation", flush=True)
        plain: nn.Module = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return plain


def _work(run: Run, winner: TrialResult) -> _Work:
    experiment, baseline = run.experiment(), run.baseline()
    number = winner.number if winner.refit_of is None else winner.refit_of
    return _Work(
        run=run,
        winner=winner,
        parent=next(one for one in run.folder.results() if one.number == number),
        experiment=experiment,
        baseline=baseline,
        data=load_data(experiment.task),
        teacher=Teacher(baseline.model(experiment.task), baseline.layers.ends[1]),
    )


def in_floats(student: nn.Module) -> nn.Module:
    """`student` with the weights that training has changed instead of rounded ones, and no activation rounded."""
    for name, module in list(student.named_modules()):
        if isinstance(module, StudentLayer):
            if module.mask is not None:
                module.layer.weight.data *= module.mask
            student.set_submodule(name, module.layer)
        elif isinstance(module, ActivationQuantizer):
            student.set_submodule(name, nn.Identity())
    return student


def quantised(network: nn.Module, calibration: Nested) -> bytes:
    """The file that ONNX Runtime's tool makes of the exported float `network`."""
    exported = to_onnx(network, nested.take(calibration, slice(_EXAMPLES))).SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        given, prepared, made = (Path(folder) / f"{name}.onnx" for name in ("float", "prepared", "quantised"))
        given.write_bytes(exported)
        quant_pre_process(given, prepared)
        quantize_static(
            prepared,
            made,
            _Batches(exported, nested.each(lambda part: part.numpy(), calibration)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
        return made.read_bytes()


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Batches of inputs (n, ...) by the names that the file `model` has for them."""

    def __init__(self, model: bytes, inputs: Nested) -> None:
        slots = OnnxSession(model, TARGET).inputs
        self._left = iter([by_slot(batch, slots) for batch in nested.split(inputs, _BATCH)])

    def get_next(self) -> dict[str, Nested] | None:
        return next(self._left, None)


if __name__ == "__main__":
    main()
