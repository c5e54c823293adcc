"""The record of a run: one line of JSON a finished trial, safe on disk before the search goes on."""

import os
from typing import TYPE_CHECKING, BinaryIO

from autocompress.errors import RunFolderError
from autocompress.folder import RunFolder
from autocompress.result import Rung, TrialResult

if TYPE_CHECKING:
    from autocompress.search import Asked


class JsonlRecord:
    """A listener that appends every finished trial to `trials.jsonl`.

    What it has written is the truth about a run: the study, the front and MLflow can all be made again from it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.record

    def started(self, asked: "Asked") -> None:
        """Nothing is recorded: a trial that does not finish leaves no trace."""

    def rung(self, number: int, rung: Rung) -> None:
        """Nothing is recorded: the result brings its rungs along."""

    def finished(self, result: TrialResult) -> None:
        """Returns when the line is on disk. Raises `RunFolderError` when it cannot be written."""
        try:
            # "a" would write at the end whatever is there; a torn line has to go first.
            with self._path.open("r+b" if self._path.exists() else "x+b") as file:
                file.seek(_end_of_whole_lines(file))
                file.truncate()
                file.write(result.to_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"cannot write to {self._path}: {error.strerror}; mend that, then `autocompress resume {self._path.parent}`"
            ) from error


def _end_of_whole_lines(file: BinaryIO) -> int:
    """The position after the last newline: what follows was cut short by a crash."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
