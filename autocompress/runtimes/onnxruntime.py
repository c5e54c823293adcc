"""ONNX files on ONNX Runtime: the export of a student, and a session that runs a file."""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.runtimes.onnx_graph import to_onnx
from autocompress.runtimes.onnx_pack import pack
from autocompress.target import Target

_PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


def export(student: nn.Module, example: Tensor) -> bytes:
    """The content of the .onnx file that does what `student` does. `example` is a batch (n, ...). Raises `ExportError`."""
    content: bytes = pack(to_onnx(student, example)).SerializeToString()
    return content


class OnnxSession:
    """A loaded file: arrays in, arrays out. Raises `ExportError` when ONNX Runtime refuses the file.

    `example_shape` is the shape of one input, without the batch.
    """

    def __init__(self, model: bytes, target: Target) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        # Spinning threads keep a core busy while they wait, at the cost of whoever else runs on the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=_PROVIDERS[target.device])
        except Exception as error:
            raise ExportError(f"ONNX Runtime refuses the exported file: {str(error).splitlines()[0]}") from error
        given = self._session.get_inputs()[0]
        self._input = given.name
        self.example_shape = tuple(given.shape[1:])

    def __call__(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The outputs for a batch (n, ...)."""
        outputs: Sequence[NDArray[np.float32]] = self._session.run(None, {self._input: inputs})
        return outputs[0]
