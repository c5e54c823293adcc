"""The card of an exported model: `README.md` with metadata, as model hubs read it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autocompress.experiment import Experiment
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.objective import SCORE
from autocompress.opened import Run
from autocompress.policy import LayerPolicy
from autocompress.report.data import show, show_spread, show_test
from autocompress.report.fine_print import latency_noise
from autocompress.report.markdown import plain_text
from autocompress.result import TrialResult
from autocompress.runtimes import Runtime, runtime_of
from autocompress.runtimes.onnxruntime import PROVIDERS
from autocompress.runtimes.slot import INPUT, Slot
from autocompress.target import Target
from autocompress.verify import CLAIMS, POLICY, Claims

_SPLITS = "The test split was not used by the search."


def model_card(run: Run, front: ParetoFront, result: TrialResult, claims: Claims, slots: Sequence[Slot]) -> str:
    """Markdown after a head in YAML: from what the model was made, how, what was measured where, how to use and verify it.

    `slots` are the inputs of the file. The licence is left open: it is that of the model that this was made from.
    """
    experiment, runtime = run.experiment(), runtime_of(claims.target)
    layers = run.baseline().layers
    name = f"{run.title}, trial {result.number}"
    head = _metadata(name, run, experiment, result, claims, runtime)
    parts = [
        *_yaml(head),
        f"# {plain_text(name)}",
        "",
        *_summary(run, experiment, claims, front),
        "",
        "## Figures",
        "",
        *_figures(run, front, result, claims),
        "",
        "## What was done",
        "",
        *_policy(result, layers, experiment),
    ]
    if usage := _usage(runtime, claims.target, slots):
        needs = f"It needs {runtime.package} and numpy, nothing else:"
        parts += ["", "## How to use it", "", needs, "", "```python", *usage.rstrip().splitlines(), "```"]
    parts += ["", "## How to verify it", "", *_verification(run, runtime)]
    return "\n".join(parts) + "\n"


def _metadata(
    name: str, run: Run, experiment: Experiment, result: TrialResult, claims: Claims, runtime: Runtime
) -> dict[str, Any]:
    task, data = type(experiment.task).__name__, Path(run.note.experiment).stem
    score = {"type": claims.scoring.name}
    measured = [
        score | {"name": "test", "value": claims.accuracy.accuracy},
        score | {"name": "validation", "value": claims.validation_accuracy},
        {"type": "size", "name": "size of the file, bytes", "value": claims.size_bytes},
        {"type": "latency", "name": f"latency on {claims.target.name}, ms", "value": claims.latency_ms},
    ]
    return {
        "library_name": runtime.package or claims.target.runtime,
        "tags": ["autocompress", *_tags(result), Path(runtime.file).suffix.lstrip(".")],
        "metrics": [score["type"], "size", "latency"],
        "model-index": [
            {
                "name": name,
                "results": [
                    {"task": {"type": task, "name": task}, "dataset": {"type": data, "name": data}, "metrics": measured}
                ],
            }
        ],
    }


def _tags(result: TrialResult) -> list[str]:
    policy = result.policy
    done = {
        "pruned": bool(policy.channel_sparsity) or any(layer.weight_sparsity for layer in policy.layers.values()),
        "quantized": any(layer.weight_bits for layer in policy.layers.values()),
        "distilled": policy.distill is not None,
    }
    return [name for name, is_done in done.items() if is_done]


def _yaml(head: dict[str, Any]) -> Iterator[str]:
    # JSON is YAML: whatever is in a name, it cannot end the head.
    yield "---"
    yield "# license: of the model that this one was made from; fill it in before you publish"
    for key, value in head.items():
        yield f"{key}: {json.dumps(value)}"
    yield "---"
    yield ""


def _summary(run: Run, experiment: Experiment, claims: Claims, front: ParetoFront) -> Iterator[str]:
    smaller, faster = claims.baseline_size_bytes / claims.size_bytes, 1 / claims.latency_ratio
    file = plain_text(Path(run.note.experiment).name)
    yield (
        f"**{smaller:.1f}x smaller and {faster:.2f}x as fast** as the model that it was made from: that of the task "
        f"`{type(experiment.task).__name__}` in {file}, compressed by autocompress {run.note.versions.get('autocompress', '')}."
    )
    if front.limits:
        yield ""
        yield f"It was searched for within these limits: {plain_text(', '.join(limit.text for limit in front.limits))}."


def _figures(run: Run, front: ParetoFront, result: TrialResult, claims: Claims) -> Iterator[str]:
    base, spread, noise = front.baseline, front.spread.get(result.number), latency_noise(run.folder.results())
    before, scoring, name = claims.baseline_accuracy, claims.scoring, plain_text(claims.scoring.name)
    error = f" ± {noise.deviation:.1%}" if noise else ""
    validation = (
        show_spread(spread, scoring) + f" ({spread.seeds} seeds)" if spread else scoring.show(claims.validation_accuracy)
    )
    yield "| | this model | uncompressed |"
    yield "| --- | ---: | ---: |"
    yield f"| file | {claims.size_bytes:,} bytes | {claims.baseline_size_bytes:,} bytes |"
    yield f"| download (zstd) | {claims.download_bytes:,} bytes | |"
    latency, baseline = (show("latency_ms", value, scoring) for value in (claims.latency_ms, claims.baseline_latency_ms))
    yield f"| latency, batch of {claims.target.batch_size} | {latency}{error} | {baseline} |"
    tested = [show_test(score, scoring) if score else "not measured" for score in (claims.accuracy, before)]
    yield f"| {name}, test | {' | '.join(tested)} |"
    yield f"| {name}, validation | {validation} | {scoring.show(base[SCORE])} |"
    yield ""
    yield (
        f"Test: {claims.accuracy.examples:,} examples, 95 % confidence interval {claims.accuracy.low:.4f} to "
        f"{claims.accuracy.high:.4f}. {_SPLITS}"
    )
    repeats = f"; ± is one standard deviation over {noise.repeats} repeats" if noise else "; how noisy it is was not measured"
    yield (
        f"Latency: the file and the uncompressed model's in turn in one process, {claims.target.threads} "
        f"thread{'s' if claims.target.threads > 1 else ''}, the ratio of their least times{repeats}."
    )
    if (machine := claims.environment) is not None:
        versions = ", ".join(f"{name} {number}" for name, number in sorted(machine.versions.items()))
        hardware = f"{machine.cpu}, {machine.cores} cores, {machine.gpu or 'no GPU'}"
        yield f"Measured on {plain_text(hardware)}, Python {machine.python}, {versions}; target {claims.target.name}."


def _policy(result: TrialResult, layers: Layers, experiment: Experiment) -> Iterator[str]:
    policy, menu = result.policy, experiment.target.menu
    before, after = type(policy)().widths(layers, menu), policy.widths(layers, menu)
    yield f"{plain_text(result.summary or policy.describe(layers))}."
    if (steps := policy.finetune.steps) and policy.distill is not None:
        yield f"Trained for {steps} steps with the uncompressed model as teacher, temperature {policy.distill.temperature:g}."
    elif steps:
        yield f"Trained for {steps} steps."
    if result.refit_of is not None:
        yield f"It goes on from trial {result.refit_of} of the same search."
    yield ""
    yield "| layer | kind | channels | weights | activations | zeros |"
    yield "| --- | --- | ---: | --- | --- | ---: |"
    for layer in layers:
        how, (_, whole) = policy.layers.get(layer.name, LayerPolicy()), before[layer.name]
        kept = after.get(layer.name, (0, 0))[1]
        bits = [f"{bits} bits" if bits else "float" for bits in (how.weight_bits, how.activation_bits)]
        zeros = f"{how.weight_sparsity:.0%}" if how.weight_sparsity else ""
        channels = f"{kept} of {whole}" if kept else "left out"
        yield f"| {plain_text(layer.name)} | {layer.kind} | {channels} | {' | '.join(bits)} | {zeros} |"
    yield ""
    yield f"All of it: `{POLICY}`."


def _usage(runtime: Runtime, target: Target, slots: Sequence[Slot]) -> str:
    """Python that runs the file without autocompress; empty where that is not known."""
    if runtime.package is None:
        return ""
    rows = "".join(f"    {slot.name!r}: np.zeros({(1, *slot.shape)}, np.{slot.dtype}),\n" for slot in slots)
    inputs = f"{{  # a batch of your examples\n{rows}}}"
    in_order = all(slot.name.split(".")[0] == INPUT for slot in slots)
    tensors = "torch.tensor(part) for" if in_order else "name: torch.tensor(part) for name,"
    call = f"*({tensors} part in inputs.values())" if in_order else f"**{{{tensors} part in inputs.items()}}"
    providers = [(name, settings) if settings else name for name, settings in PROVIDERS[target.device]]
    parts = {"file": runtime.file, "providers": repr(providers).replace("'", '"'), "inputs": inputs, "call": call}
    usage = runtime.usage
    for name, part in parts.items():
        usage = usage.replace(f"{{{name}}}", part)
    return usage


def _verification(run: Run, runtime: Runtime) -> Iterator[str]:
    yield f"`{CLAIMS}` says what was measured and where, with the SHA-256 of the file."
    if runtime.package is None:
        yield f"Files for {run.experiment().target.name} run with autocompress only: they cannot be measured again without it."
        return
    yield f"Where the run folder `{run.folder.path.name}` and its data are, this measures all of it again, in a process that"
    yield f"has {runtime.package} and numpy only:"
    yield from ("", "```sh", "autocompress verify .", "```")
