"""Runtimes that a test brings are gone when it is over."""

from collections.abc import Iterator

import pytest

from autocompress import runtimes
from autocompress.target import MENUS


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for known in (runtimes._RUNTIMES, MENUS):
        known.pop("board", None)
