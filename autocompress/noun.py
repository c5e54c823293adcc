"""What every noun has in common: frozen, checked on the way in, versioned JSON on the way out."""

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from autocompress.errors import InputError

N = TypeVar("N", bound="Noun")


class Noun(BaseModel):
    """Frozen data. Unknown fields are refused, so that a typing error in a file is never silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with these fields; pydantic would copy cached properties too, which the new fields belie."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(self).model_fields.keys():
            del copy.__dict__[name]
        return copy

    def to_json(self, *, indent: int | None = None) -> str:
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls: type[N], text: str | bytes, *, source: str = "JSON text") -> N:
        """Reads what `to_json` wrote. Raises `InputError` that names `source` and the first thing that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError(f"{source} is no valid {cls.__name__}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first complaint of pydantic in one line: where, what, and what was given."""
    problem: Any = error.errors(include_url=False)[0]
    where = ".".join(_printable(str(part)) for part in problem["loc"]) or "document"
    given = repr(problem.get("input"))
    return f"{where}: {problem['msg']} (given {given[:80]})"


def _printable(name: str) -> str:
    """A name of a file that may be damaged: a line stays a line, and no terminal obeys it."""
    return name if name.isprintable() else repr(name)
