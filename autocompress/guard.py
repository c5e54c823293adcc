"""What protects a run folder that a process is at work on: a lock, a log of its own, and a full disk told as what it is."""

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna

from autocompress.credentials import CleanFormatter
from autocompress.errors import RunFolderError
from autocompress.folder import RunFolder

_log = logging.getLogger(__name__)
_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}


@contextmanager
def only_here(folder: RunFolder) -> Iterator[None]:
    """Keeps a second process out of the run folder. Raises `RunFolderError` when there is one already."""
    try:
        # The log is never replaced by another file of the same name, as run.json is: a lock on it lasts.
        file = folder.log.open("a")
    except OSError as error:
        raise RunFolderError(f"cannot write to the run folder {folder.path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"another process is at work on {folder.path}; wait for it, or end it") from error
        yield


@contextmanager
def disk_told(folder: RunFolder) -> Iterator[None]:
    """A disk that takes nothing more is no mistake of ours, and what is on it is whole."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        what = f"{error.filename}" if error.filename else f"a file of the run {folder.path}"
        raise RunFolderError(
            f"cannot write {what}: {error.strerror}; mend that, then `autocompress resume {folder.path}`"
        ) from error


class _LogFile(logging.FileHandler):
    """A log that cannot be written, as on a full disk, is no reason to write a traceback on the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing."""


@contextmanager
def logging_to(file: Path, secrets: tuple[str, ...]) -> Iterator[None]:
    """Whatever a library has to say goes to `file` and not over the progress; `secrets` do not."""
    handler = _LogFile(file)
    handler.setFormatter(CleanFormatter("%(asctime)s %(name)s %(levelname)s %(message)s", secrets))
    root, ours = logging.getLogger(), logging.getLogger("autocompress")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    try:
        yield
    except Exception:
        _log.exception("the run ended by an error")
        raise
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.enable_default_handler()
        logging.captureWarnings(capture=False)
        ours.setLevel(level)
        root.removeHandler(handler)
        handler.close()
