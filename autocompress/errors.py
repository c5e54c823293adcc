"""Every error autocompress raises on purpose.

AutocompressError
|-- InputError              the user can mend it: one line, exit code 2, no traceback
|   |-- UnknownNameError    a name that matches nothing, with the nearest match
|   |-- PolicyError         a policy the model or the target cannot follow
|   |-- ExperimentError     an experiment file that cannot be used
|   |-- TaskError           a task whose functions break their contract
|   |-- RunFolderError      a run folder that is missing, unwritable or damaged
|   |   `-- StudyDamagedError   a study that cannot be read
|   `-- UnreachableError    a Ray or MLflow address, a database or a storage that does not answer
`-- TrialError              a trial that cannot go on; becomes a FAILED result, never a crash
    |-- StorageError        the storage of a run does not take or give a trial's files: the trial is begun again
    |-- DivergedError       a loss or a score that is not finite
    |-- SurgeryError        pruning would have changed more than the removed channels
    `-- ExportError         the student cannot be exported, or the file does not do what the student does
"""

import difflib
from collections.abc import Iterable


class AutocompressError(Exception):
    """The root of every error raised on purpose. Carries one line of text, so that it survives pickling."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class InputError(AutocompressError):
    """Something the user gave cannot be used."""


class UnknownNameError(InputError):
    """A name that matches nothing."""


class PolicyError(InputError):
    """A policy that the model or the target cannot follow."""


class ExperimentError(InputError):
    """An experiment file that cannot be used."""


class TaskError(InputError):
    """A task whose functions break their contract."""


class RunFolderError(InputError):
    """A run folder that is missing, unwritable or damaged."""


class StudyDamagedError(RunFolderError):
    """A stored study that cannot be read."""


class UnreachableError(InputError):
    """A Ray cluster, an MLflow server, a database or a storage that does not answer."""


class TrialError(AutocompressError):
    """A trial that cannot go on."""


class StorageError(TrialError):
    """The storage of a run does not take or give the files of a trial."""


class DivergedError(TrialError):
    """A loss or a score that is not finite."""


class SurgeryError(TrialError):
    """Channel pruning changed more than the removed channels."""


class ExportError(TrialError):
    """The student cannot be exported, or the exported file does not do what the student does."""


def unknown_name(kind: str, given: str, choices: Iterable[str]) -> UnknownNameError:
    """Says what was given, what would do, and the nearest match.

    Example: ``no layer 'blok3.conv'; did you mean 'block3.conv'? (one of: block1.conv, block2.conv, block3.conv)``
    """
    known = sorted(choices)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return UnknownNameError(f"no {kind} {given!r}{hint} (one of: {listed})")
