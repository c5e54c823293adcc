"""Where the files of a run's trials are: in its folder, or in a storage that all machines of a cluster reach.

To a storage they go straight from the worker that made them.
"""

import errno
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autocompress.credentials import first_line, public_uri
from autocompress.errors import InputError, StorageError, UnreachableError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# Beside the trials' files: by it a machine sees that what it reaches is what the others reach.
_MARK = "autocompress-run"
# Where folders are things of their own; elsewhere they are parts of names.
_HAS_FOLDERS = ("local", "hdfs", "py::fsspec")
_LIKE = "write it like s3://BUCKET/FOLDER, file:///FOLDER or FOLDER"


class Artifacts(Protocol):
    """Gives the files of trials, by the trial's number and the file's name; `shown` is what it is called in messages."""

    @property
    def shown(self) -> str: ...

    def read(self, number: int, name: str) -> bytes:
        """Raises `FileNotFoundError` when it is not there, another `OSError` when it cannot be read."""

    def where(self, number: int, name: str) -> str:
        """What the file is called in messages."""


@dataclass(frozen=True)
class InFolder:
    """In the run folder itself."""

    run: Path

    @property
    def shown(self) -> str:
        return "the run folder"

    def read(self, number: int, name: str) -> bytes:
        return Path(self.where(number, name)).read_bytes()

    def where(self, number: int, name: str) -> str:
        return str(self.run / trial_folder(number) / name)


@dataclass(frozen=True)
class InStorage:
    """In the folder `name` below `url`, which may hold credentials and is never shown as it is.

    `url` is a folder, or what pyarrow or else fsspec knows: ``file://``, ``s3://``, ``gs://``, ``abfs://``, ``hdfs://``, ...
    """

    url: str = field(repr=False)
    name: str

    def __reduce__(self) -> tuple[type["InStorage"], tuple[str, str]]:
        return InStorage, (self.url, self.name)  # the connection stays here

    def claim(self) -> None:
        """Marks the storage as that of this run. Raises `InputError` for what is no storage, `UnreachableError`."""
        _ = self._opened
        try:
            self._write(_MARK, self.name.encode())
            self.check()
        except StorageError as error:
            raise UnreachableError(str(error)) from None

    def check(self) -> None:
        """Raises `StorageError` unless this machine reaches what `claim` has marked."""
        try:
            if self._read(_MARK) == self.name.encode():
                return
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"cannot read {self.shown}: {error.strerror}") from None
        raise StorageError(f"{self.shown} is not what the search writes to: all machines must reach the same storage")

    def keep(self, number: int, files: Mapping[str, bytes]) -> None:
        """Stores the files of a trial, by name, in place of those that were there. Raises `StorageError`."""
        self.check()
        for name, content in files.items():
            self._write(posixpath.join(trial_folder(number), name), content)

    def read(self, number: int, name: str) -> bytes:
        try:
            return self._read(posixpath.join(trial_folder(number), name))
        except FileNotFoundError:
            try:
                self.check()
            except StorageError as error:  # it is not the file that has gone: a folder may have, of another machine
                raise OSError(errno.EREMOTEIO, str(error), self.where(number, name)) from None
            raise

    def where(self, number: int, name: str) -> str:
        return posixpath.join(self.shown, trial_folder(number), name)

    @property
    def shown(self) -> str:
        return posixpath.join(_before_query(public_uri(self.url)), self.name)

    @cached_property
    def _opened(self) -> "tuple[FileSystem, str]":
        system, path = _opened(self.url)
        if not path.strip("/"):  # the name would be that of a bucket, or below the root of all
            raise InputError(f"{public_uri(self.url)} names no bucket or folder for files; {_LIKE}")
        return system, posixpath.join(path, self.name)

    def _write(self, name: str, content: bytes) -> None:
        try:
            system, root = self._opened
            path = posixpath.join(root, name)
            if system.type_name.startswith(_HAS_FOLDERS):
                system.create_dir(posixpath.dirname(path), recursive=True)
            # A storage of objects has the whole object or none; a file grows.
            draft = f"{path}.part" if system.type_name == "local" else path
            with system.open_output_stream(draft) as stream:
                stream.write(content)
            if draft != path:
                system.move(draft, path)
        except Exception as error:  # noqa: BLE001  # each storage has errors of its own
            raise StorageError(f"cannot write to {self.shown}: {first_line(error, self.url)}") from None

    def _read(self, name: str) -> bytes:
        try:
            system, root = self._opened
            with system.open_input_stream(posixpath.join(root, name)) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            where = posixpath.join(self.shown, name)
            raise FileNotFoundError(errno.ENOENT, "no such file", where) from None
        except Exception as error:  # noqa: BLE001  # as above
            where = posixpath.join(self.shown, name)
            raise OSError(errno.EREMOTEIO, first_line(error, self.url), where) from None


def check(artifacts: InStorage) -> None:
    """`InStorage.check`, for another machine to call: this module loads quickly."""
    artifacts.check()


def _opened(url: str) -> "tuple[FileSystem, str]":
    """The storage and the path in it. Raises `InputError`."""
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    shown = public_uri(url)
    try:
        return FileSystem.from_uri(url)  # type: ignore[no-any-return]
    except OSError as error:
        raise UnreachableError(f"cannot reach {shown}: {first_line(error, url)}") from None
    except Exception as error:  # noqa: BLE001  # another library may know it
        if "Unrecognized filesystem type" not in str(error):
            raise InputError(f"{shown} is no storage for files: {first_line(error, url)}; {_LIKE}") from None
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
        return PyFileSystem(FSSpecHandler(system)), path
    except Exception as error:  # noqa: BLE001  # as above
        raise InputError(f"{shown} is no storage for files: {first_line(error, url)}; {_LIKE}") from None


def absolute(url: str) -> str:
    """The same storage for a process that runs in another folder. Raises `InputError` for an empty URL."""
    if not url.strip():
        raise InputError(f"{url!r} is no storage for files; {_LIKE}")
    return url if "://" in url else str(Path(url).resolve())


def trial_folder(number: int) -> str:
    """Where the files of a trial are, below the run folder or its part of the storage."""
    return f"trials/{number:04d}"


def _before_query(uri: str) -> str:
    return uri.partition("?")[0] if "://" in uri else uri
