"""The shelf: a Ray actor on the driver's machine that takes the files of finished trials into the run folder.

By itself in a module that loads quickly, because a process is started for it.
"""

from pathlib import Path

from autocompress.folder import RunFolder, write_whole


class Shelf:
    def __init__(self, run: str) -> None:
        self._run = RunFolder(run)

    def keep(self, number: int, files: dict[str, bytes]) -> None:
        """Writes the files of trial `number`, by name, into its folder."""
        for name, content in files.items():
            write_whole(self._run.trial(number) / Path(name).name, content)
