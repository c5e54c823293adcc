"""The command line. Thin: every command calls one function, which is imported only when the command runs."""

import _thread
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from autocompress import __version__
from autocompress.cli import compare, front, mlflow, models, preparations, searches, status
from autocompress.cli.shared import NothingHoldsError, State
from autocompress.credentials import cleaned
from autocompress.errors import AutocompressError, InputError

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and ends the process.

    0 done, 1 failed or a claim that does not hold, 2 bad input, 130 interrupted by Ctrl-C, 143 told to end by SIGTERM.
    """
    state = State()
    code = 0
    try:
        with _insisting_on_ctrl_c(), _leaving_on_sigterm():
            code = cli.main(arguments, prog_name="autocompress", standalone_mode=False, obj=state) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.exceptions.Abort:
        code = _complain("interrupted", state, _INTERRUPTED)
    except click.ClickException as error:
        code = _complain(error.format_message().replace("\n", " "), state, 2)
    except InputError as error:
        code = _complain(str(error), state, 2)
    except NothingHoldsError:
        code = 1
    except AutocompressError as error:
        code = _complain(str(error), state, 1)
    except Exception as error:  # noqa: BLE001  # the last line of defence: one line instead of a traceback
        log = f"; the log is {state.log}" if state.log and state.log.exists() else ""
        hint = "" if state.debug else "; `autocompress --debug ...` shows the traceback"
        code = _complain(f"{type(error).__name__}: {' '.join(str(error).split())}{log}{hint}", state, 1)
    sys.exit(code)


@contextmanager
def _insisting_on_ctrl_c() -> Iterator[None]:
    """Presses Ctrl-C again where it was lost.

    Python drops a `KeyboardInterrupt` that falls into a callback of the garbage collector; torch has many of those.
    """
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # A little later: here it would be lost once more.
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """On SIGTERM everything is left in order: processes that were started end, and so do temporary folders."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _complain(text: str, state: State, code: int) -> int:
    if state.debug and sys.exc_info()[0] is not None:
        click.echo(cleaned(traceback.format_exc(), *state.secrets), err=True, nl=False)
    text = cleaned(text, *state.secrets)
    click.echo(f"error: {' '.join(text.split())}" if code != _INTERRUPTED else text, err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="autocompress")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def cli(state: State, *, debug: bool) -> None:
    """Finds the best ways to prune, quantise and distil a trained PyTorch model.

    Start with `autocompress init my_folder`, then `autocompress search my_folder/experiment.py`.
    """
    state.debug = debug


for command in (
    *(preparations.init, preparations.check, preparations.sense, preparations.profile),
    *(searches.search, searches.resume, searches.baseline),
    *(status.status, front.front, compare.compare, models.export, models.verify),
    *(mlflow.ui, mlflow.promote, mlflow.sync),
):
    cli.add_command(command)
