"""Modules that lie beside an experiment file: each experiment gets its own, as they are now.

Python keeps a module under its name for as long as a process lives: a notebook would not see that `space.py` has changed, and
the next experiment would be given the `space` of the one before.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType

# Folders that stand in `sys.path` for an experiment's sake, the latest first.
_folders: list[str] = []
# Names that an experiment was the first to import.
_brought: set[str] = set()


def prefer(folder: Path) -> None:
    """From here on imports find what lies in `folder` before what lies beside earlier experiments, and find it anew.

    What is installed comes before both: an experiment cannot hide it.
    """
    for name in [name for name, module in sys.modules.items() if _outdated(name.partition(".")[0], module, folder)]:
        del sys.modules[name]
    invalidate_caches()
    where = str(folder)
    if where in sys.path and where not in _folders:  # by whoever started this process
        return
    _folders[:] = [where, *(other for other in _folders if other != where)]
    sys.path[:] = [entry for entry in sys.path if entry not in _folders] + _folders


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """As `prefer`, for a file in `folder` that is run within the context."""
    prefer(folder)
    before = set(sys.modules)
    try:
        yield
    finally:
        _brought.update(set(sys.modules) - before)


def is_preferred(entry: str) -> bool:
    """True for an entry of `sys.path` that is there for an experiment's sake."""
    return entry in _folders


def _outdated(top: str, module: ModuleType | None, folder: Path) -> bool:
    """True for what lies in `folder`, and for what lies beside another experiment and has a name that `folder` has too."""
    outer = sys.modules.get(top)
    home = None if outer is None else _home(top, outer)
    if home is None or not (home == str(folder) or home in _folders):
        return False
    if getattr(getattr(module, "__spec__", None), "_initializing", False):
        return False
    # A package that others have imported may be installed by a link to where it lies.
    if hasattr(outer, "__path__") and top not in _brought:
        return False
    return home == str(folder) or (folder / f"{top}.py").is_file() or (folder / top).is_dir()


def _home(top: str, module: ModuleType) -> str | None:
    """The folder from which a module of this name was imported; None for what has none, such as ``__main__``."""
    given = getattr(module, "__file__", None)
    if given is None:  # a package without `__init__.py`, or what is built in
        given = next(iter(getattr(module, "__path__", ())), None)
    if not isinstance(given, str):
        return None
    where = Path(given)
    where = where.parent if where.name == "__init__.py" else where
    return str(where.parent) if where.stem == top else None
