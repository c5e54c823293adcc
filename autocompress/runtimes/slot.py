"""What a file takes in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress import nested
from autocompress.nested import Nested

# What a single input and a single output of a file are called; see `nested.named` for several.
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Slot:
    """One input of a file: its name, the shape of one example (without the batch) and its type as numpy calls it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def output_names(outputs: Nested) -> list[str]:
    """What the outputs of a network are called in a file, from which `nested.restored` tells how they are nested.

    A dictionary with `OUTPUT` as its only key is told from a single output by the name ``output.output``.
    """
    alone = isinstance(outputs, Mapping) and outputs.keys() == {OUTPUT}
    return list(nested.named({OUTPUT: outputs} if alone else outputs, OUTPUT))


def by_slot(inputs: Nested, slots: Sequence[Slot]) -> dict[str, Any]:
    """The arrays of a batch by the names that the file has for them: a dictionary's by name, others in order."""
    known = nested.named(inputs, INPUT)
    if not isinstance(inputs, dict):
        known = dict(zip((slot.name for slot in slots), known.values(), strict=True))
    return {slot.name: known[slot.name] for slot in slots}
