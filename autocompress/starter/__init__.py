"""The files that `autocompress init` writes: an experiment and a search space that run as they are."""

from importlib.resources import files
from pathlib import Path

from autocompress.errors import InputError

FILES = ("experiment.py", "space.py")


def write_starter(folder: Path) -> list[Path]:
    """Writes the files into `folder` and returns their paths. Raises `InputError` rather than write over one."""
    for name in FILES:
        if (folder / name).exists():
            raise InputError(f"{folder / name} exists; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            text = files("autocompress.starter").joinpath(f"{name}.tmpl").read_text(encoding="utf-8")
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    return [folder / name for name in FILES]
