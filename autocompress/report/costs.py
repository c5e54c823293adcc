"""A cost table for the terminal."""

from rich.table import Table
from rich.text import Text

from autocompress.policy import LayerPolicy
from autocompress.tables import CostError, CostTable, LayerCosts


def costs_table(costs: CostTable) -> Table:
    """The time and the bytes of each layer at full and at half width."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    table.add_column("layer\n")
    table.add_column("channels\nin, out", justify="right")
    forms = {words: how for words, how in _forms(costs).items() if all(_knows(layer, how) for layer in costs.layers)}
    # They are the same at all numbers of bits.
    timed = [words for words in forms if words != "4 bits"]
    for words in timed:
        table.add_column(f"{words}\nms", justify="right")
    for words in forms:
        table.add_column(f"{words}\nbytes", justify="right")
    for layer in costs.layers:
        for inputs, outputs in dict.fromkeys(((layer.inputs[-1], layer.outputs[-1]), _half(layer))):
            times = [f"{costs.slope * layer.ms(inputs, outputs, forms[words]):.4f}" for words in timed]
            sizes = [f"{layer.bytes(inputs, outputs, how):,.0f}" for how in forms.values()]
            name = layer.name if inputs == layer.inputs[-1] and outputs == layer.outputs[-1] else ""
            table.add_row(Text(name), f"{inputs}, {outputs}", *times, *sizes)
    return table


def _forms(costs: CostTable) -> dict[str, LayerPolicy]:
    widest = costs.target.menu.integer_weight_bits
    integer = {f"{bits} bits": LayerPolicy(weight_bits=bits, activation_bits=8) for bits in (widest, 4)}
    return {"float": LayerPolicy()} | integer


def costs_lines(costs: CostTable) -> list[str]:
    """What the rest takes, how far off predictions are, and where all that was measured."""
    machine, target = costs.environment, costs.target
    return [
        f"the rest of the network takes {costs.intercept_ms:.4f} ms and {costs.rest_bytes:,.0f} bytes",
        f"error of predicted sizes {_words(costs.size_error)}",
        f"error of predicted times {_words(costs.latency_error)}",
        f"measured in {costs.seconds:.0f} s on {machine.cpu}, {machine.cores} cores, {target.runtime} "
        f"{machine.versions.get(target.runtime, '')} on {target.device}, batch {target.batch_size}, {target.threads} thread(s)",
    ]


def _knows(layer: LayerCosts, how: LayerPolicy) -> bool:
    return any(storage.bits == how.weight_bits for storage in layer.storage)


def _half(layer: LayerCosts) -> tuple[int, int]:
    """Half the channels of whatever can be cut."""
    inputs, outputs = (counts[-1] // 2 if len(counts) > 1 else counts[-1] for counts in (layer.inputs, layer.outputs))
    return inputs, outputs


def _words(error: CostError) -> str:
    return (
        f"{error.mean:.1%} on average, {error.largest:.1%} at most, rank correlation {error.rank_correlation:.3f}, "
        f"on {error.policies} policies, each predicted from the others"
    )
