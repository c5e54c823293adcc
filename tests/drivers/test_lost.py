"""How it is noticed that Ray is gone; tests/drivers/test_cluster_by_hand.py kills the head of a real cluster."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autocompress.drivers import lost


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost, "_LOOK_SECONDS", 0.02)


@pytest.fixture
def head() -> Iterator[socket.socket]:
    """Somebody who listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def watching(address: tuple[str, int], patience: float, over: threading.Event, told: list[str]) -> threading.Thread:
    def left(words: str) -> None:
        told.append(words)

    checks = [(lambda: lost._answers(socket.AF_INET, address), "it does not answer", patience)]
    thread = threading.Thread(target=lost._watch, args=(checks, over, "gone: {}".format, left))
    thread.start()
    return thread


def test_who_stops_answering_is_told_once_after_a_while(head: socket.socket) -> None:
    told: list[str] = []
    over = threading.Event()
    thread = watching(head.getsockname(), 0.3, over, told)
    assert not over.wait(0.6), "longer than its patience, but there is an answer"
    assert told == []
    head.close()
    thread.join(60)
    assert told == ["gone: it does not answer"]


def test_who_is_away_for_less_than_that_is_not(head: socket.socket) -> None:
    told: list[str] = []
    over = threading.Event()
    address = head.getsockname()
    head.close()
    thread = watching(address, 3600.0, over, told)
    over.wait(0.2)
    over.set()
    thread.join(60)
    assert (told, thread.is_alive()) == ([], False)


def test_what_answers(head: socket.socket, tmp_path: Path) -> None:
    assert lost._answers(socket.AF_INET, head.getsockname())
    assert not lost._answers(socket.AF_UNIX, str(tmp_path / "raylet"))
    with socket.socket(socket.AF_UNIX) as part:
        part.bind(str(tmp_path / "raylet"))
        assert not lost._answers(socket.AF_UNIX, str(tmp_path / "raylet")), "nobody listens any more"
        part.listen()
        assert lost._answers(socket.AF_UNIX, str(tmp_path / "raylet"))
