"""The files that a trial leaves: their SHA-256 stands in its result, and is checked when they are read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from autocompress.errors import RunFolderError
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


def artifact_file(folder: RunFolder, result: TrialResult, name: str) -> Path:
    """Where a file of a complete trial is. Raises `RunFolderError` when the record does not say."""
    if result.model is None:
        raise RunFolderError(f"{folder.path} is damaged: the record names no file of trial {result.number}")
    return (folder.path / result.model).with_name(name)


def read_artifact(folder: RunFolder, result: TrialResult, name: str) -> bytes:
    """A file of a complete trial. Raises `RunFolderError` when it is gone, or is not as it was written."""
    file = artifact_file(folder, result, name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RunFolderError(f"cannot read a file of trial {result.number}: {file} ({error.strerror})") from error
    if not as_written(content, result.sha256.get(name)):
        raise RunFolderError(
            f"the file of trial {result.number} is damaged: {file} has {len(content):,} bytes that are not those written; "
            "put it back, or choose another trial"
        )
    return content
