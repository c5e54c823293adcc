"""What the commands share: where they print, what they end with, and how an argument becomes an object."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import Progress

from autocompress.errors import InputError, unknown_name

if TYPE_CHECKING:
    from autocompress.drivers import Driver
    from autocompress.sensitivity import Heard

F = TypeVar("F", bound=Callable[..., Any])

_DRIVERS = ("tune", "local")
# Tables that go to a pipe or a file are not squeezed into 80 columns.
_PIPE_WIDTH = 200


@dataclass
class State:
    """What the commands share: whether to show tracebacks, where the log of the run is, and what no error may show."""

    debug: bool = False
    log: Path | None = None
    secrets: tuple[str, ...] = ()


class NothingHoldsError(Exception):
    """A command ran to its end and its answer is no: exit code 1, nothing more to say."""


def json_option(what: str) -> Callable[[F], F]:
    """The option ``--json``, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=f"{what} Nothing else goes to standard output.")


def print_json(document: Any) -> None:
    """One line of JSON on standard output, at once."""
    click.echo(json.dumps(document))
    sys.stdout.flush()


def new_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def print_line(console: Console, text: str) -> None:
    # A line is a line: neither wrapped, so that a command can be copied, nor read as markup.
    console.print(text, markup=False, soft_wrap=True)


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


@contextmanager
def counting(console: Console, what: str) -> "Iterator[Heard]":
    """Shows how many of how many are done, on a terminal, until all are."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def write(file: Path, text: str) -> None:
    from autocompress.folder import write_whole

    try:
        write_whole(file, text)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error


def driver_named(name: str, address: str | None, concurrency: int | None) -> "Driver":
    if name not in _DRIVERS:
        raise unknown_name("driver", name, _DRIVERS)
    if name == "local":
        if address is not None or concurrency not in (None, 1):
            raise InputError("the local driver runs one trial at a time on this machine; use --driver tune")
        from autocompress.drivers.local import LocalDriver

        return LocalDriver()
    from autocompress.drivers.tune import TuneDriver

    return TuneDriver(address=address, concurrency=concurrency)
