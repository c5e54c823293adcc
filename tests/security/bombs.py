"""Files that run code when they are unpickled; here they make an empty file."""

import io
import pickle
from pathlib import Path

import numpy as np
import torch


class Bomb:
    """Unpickling it makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def pickled(mark: Path) -> bytes:
    return pickle.dumps(Bomb(mark))


def saved_by_torch(mark: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": Bomb(mark)}, file)
    return file.getvalue()


def saved_by_numpy(mark: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=np.array([Bomb(mark)], dtype=object))
    return file.getvalue()


BOMBS = {"pickle": pickled, "torch": saved_by_torch, "numpy": saved_by_numpy}
