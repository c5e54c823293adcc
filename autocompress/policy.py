"""What is done to a network: how many channels go, in how many bits the rest is stored, and how it is fine-tuned.

A policy is data. It is sampled by a search space, checked against the network and the target, stored as JSON with
every trial, and carried out by `autocompress.compress`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from autocompress.errors import PolicyError
from autocompress.layer import Group, Kind, Layer, Layers
from autocompress.noun import Noun
from autocompress.target import ActivationRange, Menu

Importance = Literal["l1", "l2", "bn_scale", "taylor"]


class LayerPolicy(Noun):
    """How one layer is stored and executed.

    `weight_bits` None keeps float weights; `activation_bits` 8 quantises what goes in and comes out, None keeps float;
    `weight_sparsity` is the share of the weights (those of smallest magnitude) that become zero, 0 <= share < 1.
    Quantised weights have a scale for each output or, of a linear layer with float activations, for every `group_size`
    inputs of each output. The range of 8-bit inputs is known beforehand ("static") or, of a linear layer, that of each batch
    at run time ("dynamic"): then its outputs are floats.
    """

    weight_bits: int | None = Field(default=None, ge=2, le=8)
    activation_bits: Literal[8] | None = None
    weight_sparsity: float = Field(default=0.0, ge=0.0, lt=1.0)
    group_size: int | None = Field(default=None, ge=2)
    activation_range: ActivationRange = "static"

    @model_validator(mode="after")
    def _activations_need_weights(self) -> Self:
        if self.activation_bits is not None and self.weight_bits is None:
            raise ValueError("activation_bits needs weight_bits: no runtime has a kernel for integer inputs and float weights")
        if self.activation_range == "dynamic" and self.activation_bits is None:
            raise ValueError("activation_range 'dynamic' needs activation_bits: float activations have no range")
        return self


class Finetune(Noun):
    """Fine-tuning of the compressed model with AdamW and a one-cycle learning rate that peaks at `learning_rate`."""

    steps: int = Field(default=200, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    batch_size: int = Field(default=64, ge=1)


class Distill(Noun):
    """Distillation from the uncompressed model.

    The loss is ``(1 - share - hint_share) * task + share * logits + hint_share * features``: `share` weighs the
    divergence of the logits softened by `temperature` (Hinton et al., 2015), `hint_share` how differently alike the
    examples of a batch look in the features before the last layer (similarity-preserving: Tung and Mori, 2019).
    """

    temperature: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    share: float = Field(default=0.7, ge=0, le=1)
    hint_share: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        if self.share + self.hint_share > 1:
            raise ValueError(f"share + hint_share must be at most 1, given {self.share} + {self.hint_share}")
        return self


class Policy(Noun):
    """One way to compress a network. What is not named stays as it is: the empty policy changes nothing.

    `channel_sparsity` maps a channel group to the share of its channels that is removed, least important first by
    `importance`: 0 <= share < 1, or 1 where the group has a `branch`, which is then left out. `layers` maps a layer to what
    becomes of its weights and activations. With `repair` the weights that are left are refitted to a few calibration inputs
    before fine-tuning (`autocompress.compress.repair`).
    """

    version: Literal[1] = 1
    channel_sparsity: dict[str, float] = {}
    importance: Importance = "l1"
    layers: dict[str, LayerPolicy] = {}
    repair: bool = True
    finetune: Finetune = Finetune()
    distill: Distill | None = None

    @model_validator(mode="after")
    def _shares_are_shares(self) -> Self:
        for group, share in self.channel_sparsity.items():
            if not 0 <= share <= 1:
                raise ValueError(f"channel_sparsity of {group!r} must be in [0, 1], given {share}")
        return self

    def check(self, layers: Layers, menu: Menu) -> None:
        """Raises `UnknownNameError` for a layer or group the network has not, `PolicyError` for what is off the menu."""
        for name, share in self.channel_sparsity.items():
            group = layers.group(name)
            if share == 1 and not group.branch:
                raise PolicyError(
                    f"channel_sparsity of {name!r} must be less than 1, given {share}: the network needs some of its channels"
                )
        for name, layer in self.layers.items():
            kind = layers.layer(name).kind
            _on_menu(name, "weight_bits", layer.weight_bits, menu.weight_bits)
            _on_menu(name, "activation_bits", layer.activation_bits, menu.activation_bits)
            if layer.weight_sparsity and not menu.weight_sparsity:
                raise PolicyError(
                    f"layer {name!r}: weight_sparsity {layer.weight_sparsity} saves nothing on this target; use 0"
                )
            if layer.group_size is not None:
                _check_groups(name, kind, layer, menu)
            if layer.activation_range not in menu.activation_ranges:
                listed = ", ".join(menu.activation_ranges)
                raise PolicyError(
                    f"layer {name!r}: activation_range {layer.activation_range!r} is not on the target's menu ({listed})"
                )
            if layer.activation_range == "dynamic" and kind != "linear":
                raise PolicyError(
                    f"layer {name!r}: activation_range 'dynamic' is for linear layers, and this is a {kind}; use 'static'"
                )

    def canonical(self, layers: Layers, menu: Menu) -> "Policy":
        """The one policy that stands for all that amount to the same compressed model.

        Channel shares are rounded to the channel counts that will really be kept, weights beside integer activations to the
        bits that the target can multiply, activations of layers without an integer kernel stay float, groups that are no
        smaller than all inputs that are left are no groups, entries that change nothing are dropped, and settings that cannot
        matter (fine-tuning rates when there are no steps, a teacher whose shares of the loss are 0) go back to their defaults.
        Of a branch that is left out nothing is said but that.
        """
        gone = self.left_out(layers.groups)
        shares = {
            name: 1 - kept / group.channels
            for name, share in self.cuts(layers.groups).items()
            if (kept := kept_channels((group := layers.group(name)).channels, share, group.multiple(menu.channel_multiple)))
            < group.channels
        }
        widths = self.widths(layers, menu) if any(layer.group_size for layer in self.layers.values()) else {}
        changed = {
            name: stored
            for name, layer in sorted(self.layers.items())
            if name not in gone and (stored := _stored(layer, layers.layer(name), menu, widths)) != LayerPolicy()
        }
        trains = self.finetune.steps > 0
        return Policy(
            channel_sparsity=dict(sorted(shares.items())),
            importance=self.importance if any(share < 1 for share in shares.values()) else "l1",
            layers=changed,
            repair=self.repair or not (shares or changed),
            finetune=self.finetune if trains else Finetune(steps=0),
            distill=_that_counts(self.distill) if trains else None,
        )

    def widths(self, layers: Layers, menu: Menu) -> dict[str, tuple[int, int]]:
        """The input and output channels that are kept of every layer that is not left out, as its weight counts them."""
        kept = self._kept(layers, menu)
        found: dict[str, tuple[int, int]] = {}
        gone = self.left_out(layers.groups)
        for layer in (layer for layer in layers if layer.name not in gone):
            outputs, inputs = layer.channels
            for group in layers.groups:
                if layer.name in group.writers:
                    outputs = kept[group.name]
                inputs -= group.readers.get(layer.name, 0) * (group.channels - kept[group.name])
            found[layer.name] = inputs, outputs
        return found

    def extra_bytes(self, layers: Layers, menu: Menu) -> int:
        """The bytes of the numbers that go with the channels of groups, and are of no layer: `Group.extra_params`."""
        kept = self._kept(layers, menu)
        return sum(group.extra_bytes(kept[group.name]) for group in layers.groups)

    def _kept(self, layers: Layers, menu: Menu) -> dict[str, int]:
        """The channels that are kept of each group."""
        return {
            group.name: kept_channels(
                group.channels, self.channel_sparsity.get(group.name, 0.0), group.multiple(menu.channel_multiple)
            )
            for group in layers.groups
        }

    def left_out(self, groups: Iterable[Group]) -> frozenset[str]:
        """The layers of all branches that are left out."""
        return frozenset(name for group in groups if self.channel_sparsity.get(group.name) == 1 for name in group.branch)

    def cuts(self, groups: Iterable[Group]) -> dict[str, float]:
        """`channel_sparsity` without the groups that are all within a branch that is left out."""
        groups = tuple(groups)
        gone = self.left_out(groups)
        within = {group.name for group in groups if gone.issuperset(group.writers)}
        return {name: share for name, share in self.channel_sparsity.items() if share == 1 or name not in within}

    def key(self) -> str:
        """Sixteen hex digits that equal policies, and only those, share."""
        data = json.loads(self.to_json(), parse_float=lambda text: float(text) + 0.0)  # -0.0 equals 0.0
        text = json.dumps(data, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self, layers: Layers) -> str:
        """The policy in a few words, e.g. ``-52% channels, w4-8 g64 a8, 30% zeros, 300 steps, KD T=4``."""
        words = [_channels_in_words(self, layers), _branches_in_words(self)]
        words += [_bits_in_words(self, layers), _zeros_in_words(self, layers)]
        words.append(f"{self.finetune.steps} steps" if self.finetune.steps else "no fine-tuning")
        if self.distill is not None:
            words.append(f"KD T={self.distill.temperature:.3g}")
        return ", ".join(word for word in words if word)


def kept_channels(channels: int, share: float, multiple: int) -> int:
    """How many of `channels` stay when `share` of them is to be removed.

    A multiple of `multiple` (of its half, quarter, ... in groups too narrow to choose among two), or all of them;
    none only for a share of 1.
    """
    if share == 1:
        return 0
    while multiple > 1 and channels < 2 * multiple:
        multiple //= 2
    wanted = channels * (1 - share)
    lower = max(multiple, int(wanted // multiple) * multiple)
    upper = min(channels, lower + multiple)
    return lower if wanted - lower < upper - wanted else upper


def _stored(policy: LayerPolicy, layer: Layer, menu: Menu, widths: Mapping[str, tuple[int, int]]) -> LayerPolicy:
    # What a batch brings at run time need not be known for each call of a layer, nor the forward function be traced.
    integer = layer.integer or policy.activation_range == "dynamic"
    if policy.activation_bits is not None and not (integer and layer.kind in menu.integer_kinds):
        policy = policy.model_copy(update={"activation_bits": None, "activation_range": "static"})
    if policy.group_size is not None:
        whole = policy.weight_bits is None or policy.activation_bits is not None or policy.group_size >= widths[layer.name][0]
        policy = policy.model_copy(update={"group_size": None}) if whole else policy
    if policy.activation_bits is None or policy.weight_bits is None or policy.weight_bits <= menu.integer_weight_bits:
        return policy
    return policy.model_copy(update={"weight_bits": menu.integer_weight_bits})


def _that_counts(distill: Distill | None) -> Distill | None:
    if distill is None or distill.share > 0:
        return distill
    return Distill(share=0.0, hint_share=distill.hint_share) if distill.hint_share > 0 else None


def _on_menu(layer: str, what: str, given: int | None, menu: Iterable[int | None]) -> None:
    choices = tuple(menu)
    if given not in choices:
        listed = ", ".join("float" if choice is None else str(choice) for choice in choices)
        raise PolicyError(f"layer {layer!r}: {what} {given} is not on the target's menu ({listed})")


def _check_groups(name: str, kind: Kind, policy: LayerPolicy, menu: Menu) -> None:
    given = f"layer {name!r}: group_size {policy.group_size}"
    if kind != "linear":
        raise PolicyError(f"{given} is for linear layers, and this is a {kind}; leave it out")
    if policy.group_size not in menu.group_sizes:
        listed = ", ".join(str(size) for size in menu.group_sizes) or "there are none"
        raise PolicyError(f"{given} is not on the target's menu ({listed})")
    if policy.activation_bits is not None:
        raise PolicyError(
            f"{given} needs float activations: an integer kernel knows one scale an output; leave one of both out"
        )


def _channels_in_words(policy: Policy, layers: Layers) -> str:
    total = sum(group.channels for group in layers.groups)
    removed = sum(layers.group(name).channels * share for name, share in policy.channel_sparsity.items())
    return f"-{removed / total:.0%} channels" if removed else ""


def _branches_in_words(policy: Policy) -> str:
    count = sum(share == 1 for share in policy.channel_sparsity.values())
    return f"{count} branch{'es' * (count > 1)} left out" if count else ""


def _bits_in_words(policy: Policy, layers: Layers) -> str:
    gone = policy.left_out(layers.groups)
    settings = [policy.layers.get(layer.name, LayerPolicy()) for layer in layers if layer.name not in gone]
    weights = sorted({setting.weight_bits for setting in settings if setting.weight_bits})
    if not weights:
        return "float"
    span = _span("w", weights)
    if groups := sorted({setting.group_size for setting in settings if setting.group_size}):
        span += f" {_span('g', groups)}"
    floats = sum(setting.weight_bits is None for setting in settings)
    return span + _activations_in_words(settings) + (f", {floats} float" if floats else "")


def _activations_in_words(settings: Sequence[LayerPolicy]) -> str:
    ranges = Counter(setting.activation_range for setting in settings if setting.activation_bits)
    if not ranges:
        return ""
    notes = [f"{ranges.total()} of {len(settings)}"] if ranges.total() < len(settings) else []
    notes += [f"{ranges['dynamic']} dynamic"] if len(ranges) > 1 else []
    word = " a8" if ranges["static"] else " a8 dynamic"
    return f"{word} ({', '.join(notes)})" if notes else word


def _span(letter: str, sizes: Sequence[int]) -> str:
    return f"{letter}{sizes[0]}" if len(sizes) == 1 else f"{letter}{sizes[0]}-{sizes[-1]}"


def _zeros_in_words(policy: Policy, layers: Layers) -> str:
    weights = {layer.name: layer.params for layer in layers}
    zeros = sum(weights[name] * setting.weight_sparsity for name, setting in policy.layers.items())
    return f"{zeros / sum(weights.values()):.0%} zeros" if zeros else ""
