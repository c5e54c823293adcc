"""The shelf: a Ray actor on the driver's machine that stands for the run folder.

It takes the files of finished trials, and gives what trials need. By itself in a module that loads quickly, because a
process is started for it.
"""

from pathlib import Path
from typing import Any

from ray import cloudpickle

from autocompress.folder import RunFolder, write_whole


class Shelf:
    """`equipment` is what every trainer starts with, pickled. Only references: this process never opens it.

    Pickled by its driver, which holds what they refer to: of references that an actor was given as they are, and which may be
    gone when it begins again, Ray warns at every start.
    """

    def __init__(self, run: str, equipment: bytes) -> None:
        self._run = RunFolder(run)
        self._equipment = equipment

    def equip(self) -> dict[str, Any]:
        equipment: dict[str, Any] = cloudpickle.loads(self._equipment)
        return equipment

    def keep(self, number: int, files: dict[str, bytes]) -> str | None:
        """Writes the files of trial `number`, by name, into its folder. Says why when they cannot be written."""
        folder = self._run.trial(number)
        try:
            for name, content in files.items():
                write_whole(folder / Path(name).name, content)
        except OSError as error:
            return f"cannot write to {folder}: {error.strerror}; mend that, then `autocompress resume {self._run.path}`"
        return None

    def give(self, number: int, name: str) -> bytes | None:
        """A file of trial `number`; None when it is not there."""
        file = self._run.trial(number) / Path(name).name
        return file.read_bytes() if file.is_file() else None
