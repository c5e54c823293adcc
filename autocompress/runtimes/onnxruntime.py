"""ONNX files on ONNX Runtime: the export of a student, and a session that runs a file."""

import onnxruntime
from torch import nn

from autocompress import nested
from autocompress.errors import ExportError, InputError
from autocompress.nested import Nested
from autocompress.runtimes.onnx_file import check_alone
from autocompress.runtimes.onnx_graph import to_onnx
from autocompress.runtimes.onnx_pack import pack
from autocompress.runtimes.slot import OUTPUT, Slot, by_slot
from autocompress.target import Device, Target

USAGE = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers={providers})
inputs = {inputs}
outputs = session.run(None, inputs)  # an array for each of session.get_outputs()
"""

# What ONNX calls a type, and numpy.
_TYPES = {
    **{f"tensor({name})": name for name in ("int8", "uint8", "int16", "int32", "int64", "bool", "float16")},
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}
# By name, with settings; those behind the first run what it cannot. TensorRT computes in half precision where that is quicker.
Provider = tuple[str, dict[str, str]]
_CPU: Provider = "CPUExecutionProvider", {}
_CUDA: Provider = "CUDAExecutionProvider", {}
PROVIDERS: dict[Device, list[Provider]] = {
    "cpu": [_CPU],
    "cuda": [_CUDA, _CPU],
    "tensorrt": [("TensorrtExecutionProvider", {"trt_fp16_enable": "True"}), _CUDA, _CPU],
}
_NEEDS: dict[Device, str] = {"cuda": "the CUDA and cuDNN", "tensorrt": "the TensorRT, CUDA and cuDNN"}


def export(student: nn.Module, example: Nested) -> bytes:
    """The content of the .onnx file that does what `student` does. `example` is a batch (n, ...). Raises `ExportError`."""
    content: bytes = pack(to_onnx(student, example)).SerializeToString()
    return content


class OnnxSession:
    """A loaded file: arrays in, arrays out.

    Raises `ExportError` when ONNX Runtime refuses the file, `InputError` when it cannot run files on the target's device here.
    """

    def __init__(self, model: bytes, target: Target) -> None:
        check_alone(model)
        _check_provider(target, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        # Spinning threads keep a core busy while they wait, at the cost of whoever else runs on the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=PROVIDERS[target.device])
        except Exception as error:
            raise ExportError(f"ONNX Runtime refuses the exported file: {str(error).splitlines()[0]}") from error
        _check_provider(target, self._session.get_providers())
        given = self._session.get_inputs()
        self.inputs = tuple(Slot(slot.name, tuple(slot.shape[1:]), _TYPES.get(slot.type, slot.type)) for slot in given)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Nested) -> Nested:
        """The outputs for a batch (n, ...), nested as those of the network; `inputs` by name, or in order."""
        outputs = self._session.run(None, by_slot(inputs, self.inputs))
        return nested.restored(dict(zip(self._outputs, outputs, strict=True)), OUTPUT)


def _check_provider(target: Target, there: list[str]) -> None:
    """ONNX Runtime itself would only warn, and run the file on the CPU."""
    wanted, _ = PROVIDERS[target.device][0]
    if wanted not in there:
        raise InputError(
            f"the target {target.name} needs the {wanted} of ONNX Runtime, here it has {', '.join(there)}; install "
            f"onnxruntime-gpu in its place, with {_NEEDS[target.device]} it was built for, or search for {target.runtime}-cpu"
        )
