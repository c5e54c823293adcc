"""One layer alone: what a runtime is asked to execute, and to store, when it is measured by itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from numpy.typing import NDArray

from autocompress.layer import Kind
from autocompress.tables import Form

# Float weights; integer codes that become floats when the file is loaded, the same with scales for groups of inputs, of
# which there is one; integer codes in an integer kernel, whose inputs are integers or floats rounded by their range.
Manner = Literal["float", "codes", "groups", "integer", "dynamic"]


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer with so many input and output channels, and what it is applied to.

    `size` is the height and width of a convolution's input, and the number of vectors that a linear layer is given for each
    example; `padding` is (top, left, bottom, right); `batch` examples are executed at once.
    """

    kind: Kind
    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    batch: int = 1

    @property
    def is_blockwise(self) -> bool:
        """True where it has as many inputs as outputs, in groups: whole groups are cut."""
        return self.groups > 1 and self.inputs == self.outputs

    @property
    def is_of_matrices(self) -> bool:
        """True for a linear layer that is given several vectors for each example."""
        return self.kind == "linear" and self.size[0] > 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As torch stores it: (outputs, inputs of each group, ...)."""
        return (self.outputs, self.inputs // self.groups, *(self.kernel if self.kind == "conv2d" else ()))

    def at(self, inputs: int, outputs: int) -> "LayerShape":
        """The layer with other channels; `inputs` and `outputs` count the second and first dimension of its weight."""
        groups = self.groups * outputs // self.outputs if self.is_blockwise else self.groups
        return replace(self, inputs=inputs * groups, outputs=outputs, groups=groups)


@dataclass(frozen=True)
class SingleLayer:
    """What a runtime tells about single layers.

    `file(shape, manner)` is the content of a file with that layer alone, its weights made up, and a batch of inputs to
    run it on. `forms(weights)` are the ways to store a tensor like this one, of float weights or of int8 codes; the
    smallest counts.
    """

    file: Callable[[LayerShape, Manner], tuple[bytes, NDArray[Any]]]
    forms: Callable[[NDArray[Any]], tuple[Form, ...]]
