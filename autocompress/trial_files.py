"""The files that a trial leaves: their SHA-256 stands in its result, and is checked when they are read."""

import hashlib
from collections.abc import Mapping

from autocompress.artifacts import Artifacts
from autocompress.errors import RunFolderError, StorageError, TrialError, UnreachableError
from autocompress.folder import RunFolder
from autocompress.result import TrialResult

# The file of a trial with its student's weights: a refit goes on from there.
CHECKPOINT = "student.safetensors"


def sha256_of(content: bytes | str) -> str:
    """In hexadecimal; text as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sums_of(contents: Mapping[str, bytes | str]) -> dict[str, str]:
    """The SHA-256 of each, by name."""
    return {name: sha256_of(content) for name, content in contents.items()}


def as_written(content: bytes, sha256: str | None) -> bool:
    """Whether that is its SHA-256. Of records that are older than the sums (None) nobody knows better."""
    return sha256 is None or sha256_of(content) == sha256


def read_trial_file(folder: RunFolder, result: TrialResult, name: str) -> bytes:
    """A file of a complete trial, from wherever the run keeps them.

    Raises `RunFolderError` when it is gone, or is not as it was written, `UnreachableError` when a storage does not give it.
    """
    if result.model is None:
        raise RunFolderError(f"{folder.path} is damaged: the record names no file of trial {result.number}")
    where = folder.artifacts.where(result.number, name)
    try:
        content = folder.artifacts.read(result.number, name)
    except OSError as error:
        problem = f"cannot read a file of trial {result.number}: {where} ({error.strerror})"
        raise (UnreachableError if folder.storage else RunFolderError)(problem) from error
    if not as_written(content, result.sha256.get(name)):
        raise RunFolderError(
            f"the file of trial {result.number} is damaged: {where} has {len(content):,} bytes that are not those written; "
            "put it back, or choose another trial"
        )
    return content


def checkpoint_of(artifacts: Artifacts, number: int, sha256: str | None) -> bytes:
    """The checkpoint of trial `number`.

    Raises `TrialError` when there is none, or another than was written, `StorageError` when it cannot be read.
    """
    try:
        content = artifacts.read(number, CHECKPOINT)
    except FileNotFoundError:
        return checked_checkpoint(None, number, sha256, gone_from=artifacts.shown)
    except OSError as error:
        raise StorageError(f"cannot read {artifacts.where(number, CHECKPOINT)}: {error.strerror}") from None
    return checked_checkpoint(content, number, sha256)


def checked_checkpoint(content: bytes | None, number: int, sha256: str | None, *, gone_from: str = "the run folder") -> bytes:
    """What was found as the checkpoint of trial `number`. Raises `TrialError` for nothing, and for another than was written."""
    if content is None:
        raise TrialError(f"the checkpoint of trial {number} is gone from {gone_from}; it cannot be trained further")
    if not as_written(content, sha256):
        raise TrialError(
            f"the checkpoint of trial {number} is damaged: its {len(content):,} bytes are not those written; "
            "it cannot be trained further"
        )
    return content
