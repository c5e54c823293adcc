"""Is an exported winner as quick and as good as what ONNX Runtime's own static quantisation makes of the same network?

    python benchmarks/static.py runs/models/vgg16        (a minute, and as long as the winner was trained further)
    python benchmarks/static.py runs/models/vgg16 --pick 17

The winner of a run, without --pick the model of least latency within a point of accuracy on validation data, beside the same
network in floats: with the channels that are left, and the weights that its student was trained by before they are rounded. A
winner that was trained further from another trial is made from that one's weights, and the float network trained further as
the winner was, in floats. What is in the checkpoint is not trained again. The float network is exported and handed to
`onnxruntime.quantization.quantize_static`: QDQ, a scale for each output channel, signed 8-bit weights, unsigned 8-bit
activations, ranges from the training images that a trial calibrates by. Both files are timed in turn, and judged on test data.
"""

import os
import tempfile
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
from autocompress.result import TrialResult
from autocompress.runtimes import file_name
from autocompress.runtimes.onnx_graph import to_onnx
from autocompress.runtimes.onnxruntime import OnnxSession
from autocompress.runtimes.slot import by_slot
from autocompress.student import ActivationQuantizer, StudentLayer
from autocompress.target import Target
from autocompress.trial import CHECKPOINT, calibration_rows

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
    experiment, baseline = run.experiment(), run.baseline()
    data = load_data(experiment.task)
    ours = run.folder.trial(winner.number) / file_name(baseline.target, TARGET)
    network = float_network(run, winner, experiment, baseline, data)
    calibration, _ = calibration_of(data, winner.seed)
    files = {"ours": ours.read_bytes(), "quantize_static": quantised(network, calibration)}
    latency = measure_latency(files["ours"], files["quantize_static"], TARGET)
    scores = {name: test_score(file, experiment.task, Here(TARGET)) for name, file in files.items()}
    print(f"\n{run.folder.path.name}, trial {winner.number}: {winner.summary}\n")
    for (name, file), ms in zip(files.items(), (latency.latency_ms, latency.baseline_latency_ms), strict=True):
        score = scores[name]
        accuracy = f"{score.accuracy:.2%} ({score.low:.1%} to {score.high:.1%}) on test"
        print(f"  {name:16s} {len(file):>10,} bytes {ms:8.4f} ms   {accuracy}")
    print()
    print_goal("time, ours / quantize_static", latency.ratio, at_most=1.15)
    gained = 100 * (scores["ours"].accuracy - scores["quantize_static"].accuracy)
    print_goal("points of accuracy above quantize_static", gained, at_least=0)


def float_network(run: Run, winner: TrialResult, experiment: Experiment, baseline: Baseline, data: Data) -> nn.Module:
    """The winner's network in floats. Raises `InputError` when the run kept no checkpoint of it."""
    parent = next(
        one for one in run.folder.results() if one.number == (winner.number if winner.refit_of is None else winner.refit_of)
    )
    task, lane = experiment.task, Lane()
    teacher = Teacher(baseline.model(task), baseline.layers.ends[1])
    calibration, targets = calibration_of(data, parent.seed)

    def leave_gradients(model: nn.Module) -> None:
        model.zero_grad()
        task.loss(nested.call(model, calibration), targets).backward()

    student = compress(teacher.model, parent.policy, calibration, leave_gradients, baseline.layers.groups)
    checkpoint = run.folder.trial(parent.number) / CHECKPOINT
    if not checkpoint.is_file():
        raise InputError(f"trial {parent.number} has no checkpoint; only a search with refits keeps them")
    student.load_state_dict({name: torch.tensor(array) for name, array in load_tensors(checkpoint.read_bytes()).items()})
    network = in_fast_layout(in_floats(student), nested.take(calibration, slice(_EXAMPLES)))
    if winner.refit_of is not None:
        for rung in finetune(
            network,
            winner.policy,
            task,
            teacher,
            as_tensors(data["train"]),
            lambda model: evaluate(model, task, data["validation"], lane=lane),
            rungs=experiment.rungs,
            seed=winner.seed,
            lane=lane,
        ):
            print(f"in floats: step {rung.step}, {rung.accuracy:.2%} on validation", flush=True)
    plain: nn.Module = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain


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


def calibration_of(data: Data, seed: int) -> tuple[Nested, Nested]:
    """The training inputs, and their targets, that a trial of that seed calibrates by."""
    inputs, targets = as_tensors(data["train"])
    rows = torch.as_tensor(calibration_rows(nested.count(inputs), seed))
    return nested.take(inputs, rows), nested.take(targets, rows)


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
