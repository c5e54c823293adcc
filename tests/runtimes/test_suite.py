"""Every runtime keeps the contract that runtimes of others are held to."""

from importlib.util import find_spec
from shutil import which

import pytest

from autocompress.target import Target
from autocompress.testing import RuntimeSuite


class TestOnnxRuntime(RuntimeSuite):
    target = Target(runtime="onnxruntime")


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
class TestOpenVino(RuntimeSuite):
    target = Target(runtime="openvino")


class TestTorch(RuntimeSuite):
    target = Target(runtime="torch")


@pytest.mark.skipif(which("c++") is None, reason="there is no C++ compiler")
class TestTorchCompiled(RuntimeSuite):
    # Files are compiled for batches of three alone: each takes a quarter of a minute.
    target = Target(runtime="torch-compiled", batch_size=3)
