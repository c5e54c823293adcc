"""Where the compressed model will run, and what pays there."""

from typing import Literal

from pydantic import Field

from autocompress.errors import unknown_name
from autocompress.noun import Noun

ActivationRange = Literal["static", "dynamic"]


class Menu(Noun):
    """What a runtime can make use of. `None` stands for float.

    `channel_multiple`: channel counts that are multiples of it use the runtime's kernels well; between them a pruned
    channel saves bytes and no time. `weight_sparsity`: zeros are stored in fewer bytes than other values.
    `integer_weight_bits`: wider weights are stored in so many bits beside 8-bit activations. `integer_kinds`: the kinds of
    layers that 8-bit activations make quicker. `group_sizes`: weights of linear layers with float activations may have a
    scale for every so many inputs. `activation_ranges`: when the range of 8-bit activations is known.
    """

    weight_bits: tuple[int | None, ...]
    activation_bits: tuple[int | None, ...]
    weight_sparsity: bool
    channel_multiple: int = Field(ge=1)
    integer_weight_bits: int = Field(default=8, ge=2, le=8)
    integer_kinds: tuple[str, ...] = ("conv1d", "conv2d", "linear")
    group_sizes: tuple[int, ...] = ()
    activation_ranges: tuple[ActivationRange, ...] = ("static",)


# Measured on x86 CPUs: below 8 bits a weight saves bytes and no time, an activation neither. Without VNNI instructions
# the integer kernels add two products in 16 bits: 255 * 127 twice does not fit, and the file computes something else
# than on other CPUs; 255 * 63 twice does.
_GROUP_SIZES = (32, 64, 128)
_ONNX = Menu(
    weight_bits=(2, 3, 4, 5, 6, 7, 8, None),
    activation_bits=(8, None),
    weight_sparsity=True,
    channel_multiple=8,
    integer_weight_bits=7,
    group_sizes=_GROUP_SIZES,
    activation_ranges=("static", "dynamic"),
)
# Torch computes in floats; files of few bits and many zeros are deflated to fewer bytes.
_TORCH = Menu(
    weight_bits=(2, 3, 4, 5, 6, 7, 8, None),
    activation_bits=(None,),
    weight_sparsity=True,
    channel_multiple=8,
    integer_kinds=(),
    group_sizes=_GROUP_SIZES,
)
# OpenVINO takes longer with dynamic ranges than with floats.
_OPENVINO = _ONNX.model_copy(update={"activation_ranges": ("static",)})
MENUS: dict[str, Menu] = {"onnxruntime": _ONNX, "openvino": _OPENVINO, "torch": _TORCH, "torch-compiled": _TORCH}


class Target(Noun):
    """One runtime on one device: the place where size, latency and accuracy are measured.

    `batch_size` examples are timed at once, on `threads` threads.
    """

    runtime: str = "onnxruntime"
    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)

    @property
    def menu(self) -> Menu:
        """Raises `UnknownNameError` for a runtime nobody has written."""
        try:
            return MENUS[self.runtime]
        except KeyError:
            raise unknown_name("runtime", self.runtime, MENUS) from None
