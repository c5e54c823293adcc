"""Inputs and outputs of several parts: the functions that take them apart, and a whole search on such a task."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress import nested
from autocompress.drivers.local import LocalDriver
from autocompress.folder import RunFolder
from autocompress.run import run_search
from tests.toy import call, write_experiment

CLASSES = """\
from torch import nn

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.kinds, self.places = nn.Linear(18, 4), nn.Linear(18, 2)

    def forward(self, picture, corner=None, flip=None):
        if flip is not None:
            picture = picture.flip(-1)
        x = torch.relu(self.conv2(torch.relu(self.conv1(picture)))).amax((2, 3))
        x = torch.cat([x, corner], 1)
        return {"places": self.places(x), "logits": self.kinds(x), "nothing": None}


class Detection(ToyTask):
    def model(self):
        torch.manual_seed(0)
        return Detector()

    def data(self, split):
        pictures, labels = super().data(split)
        corner = pictures[:, 0, 0, :2]
        return {"picture": pictures, "corner": corner}, {"kind": labels, "place": corner}

    def train(self, model, inputs, targets):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            self.loss(model(**inputs), targets).backward()
            optimizer.step()

    def loss(self, outputs, targets):
        gap = (outputs["places"] - targets["place"]).square().mean()
        return super().loss(outputs, targets["kind"]) + gap

    def score(self, outputs, targets):
        return super().score(outputs, targets["kind"])

    def interval(self, outputs, targets):
        return super().interval(outputs, targets["kind"])
"""
SPACE = """\
def space(trial, layers, target):
    from autocompress import Distill
    share = trial.suggest_float("share", 0.0, 0.75)
    return Policy(
        channel_sparsity={group.name: share for group in layers.groups},
        layers={layer.name: LayerPolicy(weight_bits=5, activation_bits=8) for layer in layers},
        finetune=Finetune(steps=8),
        distill=Distill(share=0.4, hint_share=0.2),
    )
"""

# Pictures in, pictures out, and an error for a score.
RECONSTRUCTION = """\
from torch import nn
from autocompress import Task

class Reconstruction(Task):
    score_name = "RMSE"
    score_range = (0.0, 100.0)
    lower_is_better = True

    def model(self):
        torch.manual_seed(0)
        down = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        return nn.Sequential(*down, nn.ConvTranspose2d(16, 16, 2, stride=2), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))

    def data(self, split):
        pictures, _ = ToyTask(noise=0.1).data(split)
        return pictures, pictures

    def train(self, model, inputs, targets):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            self.loss(model(inputs), targets).backward()
            optimizer.step()

    def loss(self, outputs, targets):
        return (outputs - targets).square().mean()

    def score(self, outputs, targets):
        return float(np.sqrt(np.square(outputs - targets).mean()))
"""

names = st.from_regex("[a-z]{1,4}", fullmatch=True)
structures = st.recursive(
    st.integers(0, 9),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(tuple) | st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=6,
)


@given(structures)
def test_names_tell_the_structure(structure: Any) -> None:
    made = nested.each(lambda number: np.full((3, 2), number), structure)
    again = nested.restored(nested.named(made, "output"), "output")
    assert nested.each(lambda array: int(array[0, 0]), again) == structure
    assert nested.count(made) == 3
    twice = nested.join([nested.take(made, slice(0, 2)), nested.take(made, slice(2, 3))])
    assert nested.shapes(twice) == nested.shapes(made)


def test_names_of_parts() -> None:
    array = np.zeros((2, 1))
    assert list(nested.named(array, "input")) == ["input"]
    assert list(nested.named((array, array), "input")) == ["input.0", "input.1"]
    assert list(nested.named({"ids": array, "levels": (array, array)}, "input")) == ["ids", "levels.0", "levels.1"]
    assert nested.each(lambda part: part, [array, None]) == (array,)


def test_parts_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"parts of different lengths: \[2, 3\]"):
        nested.count((np.zeros(2), np.zeros(3)))


def test_how_a_model_is_called() -> None:
    class Difference(torch.nn.Module):
        def forward(self, one: Any, other: Any = 1) -> Any:
            return [one - other, None]

    three, two = torch.full((1,), 3.0), torch.full((1,), 2.0)
    for inputs, difference in ((three, 2), ((three, two), 1), ({"other": three, "one": two}, -1)):
        assert nested.call(Difference(), inputs)[0] == difference


def test_a_search_on_several_inputs_and_outputs(tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_experiment(tmp_path, task="Detection()", classes=CLASSES, space=SPACE, trials=2)
    assert call("check", file) == 0
    assert "picture 256x1x8x8 float32" in capsys.readouterr().out
    run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    results = RunFolder(tmp_path / "run").results()
    assert [str(result.status) for result in results] == ["complete", "complete"], [result.error for result in results]
    assert call("export", tmp_path / "run", "--pick", "best", "-o", tmp_path / "out", "--max-drop", "1") == 0
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    assert {slot.name for slot in session.get_inputs()} == {"picture", "corner"}
    assert [output.name for output in session.get_outputs()] == ["places", "logits"]
    code = (tmp_path / "out/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    known: dict[str, Any] = {}
    exec(code.replace('"model.onnx"', repr(str(tmp_path / "out/model.onnx"))), known)
    assert [array.shape for array in known["outputs"]] == [(1, 2), (1, 4)]
    assert call("verify", tmp_path / "out") == 0


def test_a_search_for_a_small_error(tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("RMSE <= baseline + 1",)
    file = write_experiment(
        tmp_path, task="Reconstruction()", classes=RECONSTRUCTION, space=SPACE, trials=2, limits=limits, name="error.py"
    )
    assert call("check", file) == 0
    assert "in blocks of 4" in capsys.readouterr().out
    front = run_search(file, tmp_path / "run", driver=LocalDriver(), tracking_uri=tracking_uri)
    results = RunFolder(tmp_path / "run").results()
    assert [str(result.status) for result in results] == ["complete", "complete"], [result.error for result in results]
    assert all(0 < result.metrics["accuracy"] < 1 for result in results)
    for result in results:
        best = min(result.rungs, key=lambda rung: rung.accuracy)
        assert result.metrics["accuracy"] == pytest.approx(best.accuracy, rel=0.05), "the file is that of the best rung"
    assert front.members
    errors = {member.number: member.metrics["accuracy"] for member in front.members}
    best_of_all = front.pick("best")
    assert best_of_all is not None
    assert best_of_all.number == min(errors, key=lambda number: errors[number])
    said = capsys.readouterr().out
    assert call("front", tmp_path / "run") == 0
    said += capsys.readouterr().out
    assert "RMSE" in said
    assert "accuracy" not in said
    assert "RMSE (validation)" in (tmp_path / "run/front.md").read_text()
    assert "accuracy" not in (tmp_path / "run/front.md").read_text()
    assert call("export", tmp_path / "run", "--pick", "best", "-o", tmp_path / "out", "--max-drop", "1") == 0
    assert "| RMSE, test |" in (tmp_path / "out/README.md").read_text()
    assert call("verify", tmp_path / "out") == 0
    assert "RMSE, 256 test examples" in capsys.readouterr().out
