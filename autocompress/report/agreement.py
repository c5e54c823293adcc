"""What the members of the front agree on, layer by layer: "all 19 keep features.0 in 7 bits"."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from autocompress.front import ParetoFront
from autocompress.layer import Group, Layers
from autocompress.policy import LayerPolicy, Policy

# What fewer of the members share is no agreement.
_MOST = 0.8
_FEWEST_MEMBERS = 2
# Shares of channels by which "at least" is told, the strongest that holds.
_CUTS = (0.75, 0.5, 0.25)
# Longer lists of names are counted.
_NAMED = 4

_Value = TypeVar("_Value")


# Layer -> what each member does with it; None where it is left out.
Settings = dict[str, list[LayerPolicy | None]]


@dataclass(frozen=True)
class Span:
    """What the members do with one layer, in words; ``-`` for what cannot be done to it."""

    layer: str
    channels: str
    bits: str
    zeros: str


@dataclass(frozen=True)
class Agreement:
    """`sentences` that hold for all or nearly all of the `members`, and what they do with each layer (`spans`)."""

    members: int
    sentences: tuple[str, ...]
    spans: tuple[Span, ...]


def agreement_of(front: ParetoFront, layers: Layers) -> Agreement | None:
    """None for fewer than two members: one has nobody to agree with."""
    policies = [member.policy for member in front.members]
    if len(policies) < _FEWEST_MEMBERS:
        return None
    gone = [policy.left_out(layers.groups) for policy in policies]
    settings: Settings = {
        layer.name: [
            None if layer.name in left else _setting(policy, layer.name) for policy, left in zip(policies, gone, strict=True)
        ]
        for layer in layers
    }
    sentences = [
        *_on_branches(policies, layers),
        *_on_bits(settings),
        *_on_activations(settings),
        *_on_channels(policies, layers),
        *_on_zeros(policies),
    ]
    return Agreement(len(policies), tuple(sentences), tuple(_spans(policies, layers, settings)))


def _on_branches(policies: Sequence[Policy], layers: Layers) -> Iterable[str]:
    def done(group: Group) -> str | None:
        return _shared([policy.channel_sparsity.get(group.name) == 1 for policy in policies], bool)

    yield from _gathered([(group.name, done(group)) for group in layers.groups if group.branch], "{who} leave out {names}")


def _on_bits(settings: Settings) -> Iterable[str]:
    by_bits: dict[str, list[tuple[str, str | None]]] = {}
    for name, given in settings.items():
        bits = Counter(setting.weight_bits for setting in given if setting is not None).most_common(1)
        for most, count in bits:
            words = "floats" if most is None else f"{most} bits"
            by_bits.setdefault(words, []).append((name, _who(count, len(given))))
    for words, found in by_bits.items():
        yield from _gathered(found, "{who} keep {names} in " + words)


def _on_activations(settings: Settings) -> Iterable[str]:
    def those(holds: Callable[[LayerPolicy], bool]) -> list[tuple[str, str | None]]:
        return [(name, _shared(given, lambda one: one is not None and holds(one))) for name, given in settings.items()]

    integer = those(lambda setting: setting.activation_bits is not None)
    if integer and len({who for _, who in integer}) == 1 and integer[0][1]:
        yield f"{integer[0][1]} compute every layer in 8-bit integers."
        return
    yield from _gathered(integer, "{who} compute {names} in 8-bit integers")
    yield from _gathered(those(lambda setting: setting.activation_bits is None), "{who} compute {names} in floats")


def _on_channels(policies: Sequence[Policy], layers: Layers) -> Iterable[str]:
    cuts = [policy.cuts(layers.groups) for policy in policies]
    # A branch that is left out has a sentence of its own.
    shares = {
        group.name: [cut.get(group.name, 0.0) for cut in cuts]
        for group in layers.groups
        if not any(cut.get(group.name) == 1 for cut in cuts)
    }
    kept = [(name, _shared(cut, lambda share: share == 0)) for name, cut in shares.items()]
    yield from _gathered(kept, "{who} keep every channel of {names}")
    for least in _CUTS:
        removed = {name: _shared(given, lambda share: share >= least) for name, given in shares.items()}  # noqa: B023  # called here
        yield from _gathered(removed.items(), f"{{who}} remove at least {least:.0%} of the channels of {{names}}")
        shares = {name: given for name, given in shares.items() if removed[name] is None}


def _on_zeros(policies: Sequence[Policy]) -> Iterable[str]:
    none = [not any(setting.weight_sparsity for setting in policy.layers.values()) for policy in policies]
    if all(none):
        yield f"All {len(policies)} leave single weights as they are: none is set to zero."


def _shared(values: Sequence[_Value], holds: Callable[[_Value], bool]) -> str | None:
    return _who(sum(holds(value) for value in values), len(values))


def _who(count: int, members: int) -> str | None:
    """``All 19`` or ``17 of 19``; None for too few."""
    if count == members:
        return f"All {members}" if members > 2 else "Both"
    return f"{count} of {members}" if count >= _MOST * members else None


def _gathered(found: Iterable[tuple[str, str | None]], sentence: str) -> Iterable[str]:
    """One sentence for all names of which as many say the same."""
    by_who: dict[str, list[str]] = {}
    for name, who in found:
        if who is not None:
            by_who.setdefault(who, []).append(name)
    for who, names in by_who.items():
        yield sentence.format(who=who, names=_listed(names)) + "."


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} other layers"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _spans(policies: Sequence[Policy], layers: Layers, found: Settings) -> Iterable[Span]:
    groups = {name: group for group in layers.groups for name in group.writers}
    for layer in layers:
        settings = [setting for setting in found[layer.name] if setting is not None]
        group = groups.get(layer.name)
        shares = [policy.channel_sparsity.get(group.name, 0.0) for policy in policies] if group else []
        yield Span(
            layer=layer.name,
            channels=_channels(group, shares) if group else "-",
            bits=_bits(settings) if settings else "left out",
            zeros=_range([round(100 * setting.weight_sparsity) for setting in settings], "%") if settings else "-",
        )


def _channels(group: Group, shares: Sequence[float]) -> str:
    return f"{_range([round(group.channels * (1 - share)) for share in shares])} of {group.channels}"


def _bits(settings: Sequence[LayerPolicy]) -> str:
    given = [setting.weight_bits for setting in settings]
    widths = [bits for bits in given if bits is not None]
    words = _range(widths) if widths else ""
    if len(widths) == len(given):
        most, count = Counter(widths).most_common(1)[0]
        return f"{words}, mostly {most}" if len(given) / 2 < count < len(given) else words
    floats = f"float in {len(given) - len(widths)} of {len(given)}"
    return f"{words}, {floats}" if words else "float"


def _range(values: Sequence[int], unit: str = "") -> str:
    low, high = min(values), max(values)
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _setting(policy: Policy, name: str) -> LayerPolicy:
    return policy.layers.get(name, LayerPolicy())
