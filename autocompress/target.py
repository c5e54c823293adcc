"""Where the compressed model will run, and what pays there."""

import math
import re
from typing import Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from autocompress.errors import InputError, unknown_name
from autocompress.noun import Noun, first_problem

# "tensorrt" is the same GPU as "cuda", by way of TensorRT.
Device = Literal["cpu", "cuda", "tensorrt"]
_SETTING = re.compile(r"^(?:(?P<threads>\d+)threads?|batch(?P<batch_size>\d+))$")

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
# On GPUs ONNX Runtime has no kernels for its 8-bit convolutions, and TensorRT takes none with zero points: as ours have.
_ONNX_GPU = _TORCH
MENUS: dict[str, Menu] = {"onnxruntime": _ONNX, "openvino": _OPENVINO, "torch": _TORCH, "torch-compiled": _TORCH}
# Runtimes of a user's own may know all of them.
_DEVICES: dict[str, tuple[Device, ...]] = {"openvino": ("cpu",), "torch": ("cpu", "cuda"), "torch-compiled": ("cpu", "cuda")}


class Target(Noun):
    """One runtime on one device: the place where size, latency and accuracy are measured.

    `batch_size` examples are timed at once, on `threads` threads. `also` holds further targets: each policy is exported for
    them too, and the time and the bytes there are metrics of their own, such as ``latency_ms/openvino-cpu``.
    """

    runtime: str = "onnxruntime"
    device: Device = "cpu"
    batch_size: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    also: tuple["Target", ...] = ()

    @classmethod
    def parse(cls, *names: str) -> "Target":
        """The target of a name like ``openvino-cpu:2threads:batch16``; of several, the first with the others beside it.

        What is not named is as in `Target()`. Raises `InputError` that shows the form.
        """
        first, *others = (_parsed(name) for name in names)
        try:
            return cls(**first.model_dump(exclude={"also"}), also=tuple(others))
        except ValidationError as error:
            raise InputError(f"cannot search for {' and '.join(names)}: {first_problem(error)}") from error

    @model_validator(mode="after")
    def _are_different(self) -> Self:
        if any(other.also for other in self.also):
            raise ValueError("the targets in `also` cannot have further ones; list them all in one")
        names = [place.name for place in self.each]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the target {twice} is given twice")
        return self

    @property
    def place(self) -> str:
        """The runtime and its device, such as ``onnxruntime-cpu``."""
        return f"{self.runtime}-{self.device}"

    @property
    def name(self) -> str:
        """What `parse` reads: the place, and the settings that are not the usual ones."""
        threads = f":{self.threads}threads" if self.threads > 1 else ""
        return self.place + threads + (f":batch{self.batch_size}" if self.batch_size > 1 else "")

    @property
    def alone(self) -> "Target":
        return self.model_copy(update={"also": ()})

    @property
    def each(self) -> "tuple[Target, ...]":
        """This target by itself, then the further ones."""
        return self.alone, *self.also

    @property
    def names(self) -> str:
        """Of all of them, in words."""
        return " and ".join(place.name for place in self.each)

    @property
    def by_runtime(self) -> "dict[str, Target]":
        """The first target of each runtime: those of one runtime share a file."""
        return {place.runtime: place for place in reversed(self.each)}

    def metric(self, name: str, place: "Target") -> str:
        """What the metric is called at `place`, one of `each`: its own name at the first, elsewhere with that of the place."""
        return name if place == self.alone else f"{name}/{place.name}"

    @property
    def menu(self) -> Menu:
        """What all of them can make use of.

        Raises `UnknownNameError` for a runtime nobody has written, `InputError` for a device it does not know, or when they
        have nothing in common.
        """
        menus = [_menu(place) for place in self.each]
        common = menus[0] if len(menus) == 1 else _common(menus)
        if not (common.weight_bits and common.activation_bits and common.activation_ranges):
            raise InputError(f"no policy suits all of {', '.join(place.name for place in self.each)}: they store no bits alike")
        return common


def _menu(place: Target) -> Menu:
    if place.runtime not in MENUS:
        raise unknown_name("runtime", place.runtime, MENUS)
    known = _DEVICES.get(place.runtime, get_args(Device))
    if place.device not in known:
        listed = " and ".join(f"{place.runtime}-{device}" for device in known)
        raise InputError(f"there is no target {place.place}; of {place.runtime} there is {listed}")
    return _ONNX_GPU if place.runtime == "onnxruntime" and place.device != "cpu" else MENUS[place.runtime]


def _parsed(name: str) -> Target:
    place, *settings = name.split(":")
    runtime, _, device = place.rpartition("-")
    named = bool(runtime) and device in get_args(Device)
    found: dict[str, str | int] = {"runtime": runtime, "device": device} if named else {"runtime": place}
    for setting in settings:
        match = _SETTING.match(setting)
        if match is None or not int(match[match.lastgroup or 0]):
            raise InputError(
                f"cannot read the target {name!r}; write it like 'onnxruntime-cpu' or 'openvino-cpu:2threads:batch16'"
            )
        found[str(match.lastgroup)] = int(match[match.lastgroup or 0])
    target = Target.model_validate(found)
    _ = target.menu
    return target


def _common(menus: list[Menu]) -> Menu:
    """What is on every one of them; channel counts suit the choosiest. What one multiplies in integers, all store for it."""
    first, *others = menus
    return Menu(
        weight_bits=tuple(bits for bits in first.weight_bits if all(bits in menu.weight_bits for menu in others)),
        activation_bits=tuple(bits for bits in first.activation_bits if all(bits in menu.activation_bits for menu in others)),
        weight_sparsity=all(menu.weight_sparsity for menu in menus),
        channel_multiple=math.lcm(*(menu.channel_multiple for menu in menus)),
        integer_weight_bits=min(menu.integer_weight_bits for menu in menus),
        integer_kinds=tuple(kind for kind in first.integer_kinds if all(kind in menu.integer_kinds for menu in others)),
        group_sizes=tuple(size for size in first.group_sizes if all(size in menu.group_sizes for menu in others)),
        activation_ranges=tuple(
            kind for kind in first.activation_ranges if all(kind in menu.activation_ranges for menu in others)
        ),
    )
