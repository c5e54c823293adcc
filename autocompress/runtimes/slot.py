"""What a file takes in."""

from dataclasses import dataclass

# What a single input and a single output of a file are called; see `nested.named` for several.
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Slot:
    """One input of a file: its name, the shape of one example (without the batch) and its type as numpy calls it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
