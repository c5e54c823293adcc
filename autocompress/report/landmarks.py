"""What the front is compared with on the plot: the fronts of the rivals, and plain 8-bit quantisation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.compute import INT8, UNCOMPRESSED
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.policy import Policy
from autocompress.report.decision import gains_words
from autocompress.result import Status, TrialResult

PLAIN = "plain 8 bits"
# Beside 8-bit activations weights have 7 bits where 8 would overflow the kernels of some CPUs.
_LEAST_BITS = 7
_MOST_POINTS = 200


@dataclass(frozen=True)
class Landmark:
    """The models of one baseline by its name; no `models` when none was measured."""

    name: str
    models: tuple[TrialResult, ...]


def landmarks(
    rivals: Mapping[str, Sequence[TrialResult]], results: Sequence[TrialResult], front: ParetoFront, layers: Layers
) -> tuple[Landmark, ...]:
    """Plain 8-bit quantisation first, then each of `rivals` (name -> its results) with what it found, limits aside."""
    everyone = [result for trials in (results, *rivals.values()) for result in trials]
    plain = plain_8_bits(rivals.get(INT8, ()), layers, front) or plain_8_bits(everyone, layers, front)
    found = [Landmark(PLAIN, () if plain is None else (plain,))]
    for name, trials in rivals.items():
        if name not in (INT8, UNCOMPRESSED):
            models = ParetoFront.of(trials, front.objectives, (), front.baseline, front.scoring).members
            found.append(Landmark(name, models[:_MOST_POINTS]))
    return tuple(found)


def plain_words(marks: Sequence[Landmark], front: ParetoFront) -> str:
    """What plain 8-bit quantisation comes to, in one sentence; empty when it was not measured."""
    for mark in marks:
        if mark.name == PLAIN and mark.models:
            (model,) = mark.models
            validated = front.model_copy(update={"test": {}, "spread": {}})  # its number is perhaps another trial's of the run
            trained = " and fine-tuned" if model.policy.finetune.steps else ""
            return f"Quantised to 8 bits throughout{trained}, and no more, the model is {gains_words(model, validated)}."
    return ""


def plain_8_bits(results: Sequence[TrialResult], layers: Layers, front: ParetoFront) -> TrialResult | None:
    """Of the complete trials with all layers in 8 bits and nothing pruned, the best of those with most integer layers."""
    plain = [result for result in results if result.status is Status.COMPLETE and _is_plain(result.policy, layers)]
    return max(plain, key=lambda result: (_integer_layers(result.policy), -front.drop(result)), default=None)


def _is_plain(policy: Policy, layers: Layers) -> bool:
    settings = [policy.layers.get(layer.name) for layer in layers]
    return not policy.channel_sparsity and all(
        setting is not None and (setting.weight_bits or 0) >= _LEAST_BITS and not setting.weight_sparsity
        for setting in settings
    )


def _integer_layers(policy: Policy) -> int:
    return sum(setting.activation_bits is not None for setting in policy.layers.values())
