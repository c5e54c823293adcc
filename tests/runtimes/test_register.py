"""A runtime of one's own, brought by an experiment file."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from autocompress.baseline import Baseline, Data
from autocompress.errors import InputError, UnknownNameError
from autocompress.experiment import load_experiment
from autocompress.lane import Lane
from autocompress.nested import Nested
from autocompress.policy import LayerPolicy, Policy
from autocompress.profile.whole import measured
from autocompress.runtimes import Runtime, register, runtime_of
from autocompress.runtimes.onnxruntime import OnnxSession, export
from autocompress.student import StudentLayer
from autocompress.target import MENUS, Target
from autocompress.testing import ToyTask
from tests.toy import SPACE

FILE = f"""\
from autocompress import Experiment, Finetune, LayerPolicy, Policy, Target
from autocompress.runtimes import Runtime, register
from autocompress.runtimes.onnxruntime import OnnxSession, export
from autocompress.target import Menu
from autocompress.testing import ToyTask

menu = Menu(weight_bits=(8, None), activation_bits=(None,), weight_sparsity=False, channel_multiple=4)
register("board", Runtime(export=export, load=OnnxSession), menu)

{SPACE}

experiment = Experiment(task=ToyTask(), space=space, target=Target(runtime="board"))
"""


def test_an_experiment_brings_it(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no runtime 'board'"):
        runtime_of(Target(runtime="board"))
    (tmp_path / "board.py").write_text(FILE)
    for _ in range(2):  # a process may load a file again
        target = load_experiment(tmp_path / "board.py").target
        assert target.menu.weight_bits == (8, None)
        assert runtime_of(target).load is OnnxSession


def test_built_in_runtimes_stay_what_they_are() -> None:
    with pytest.raises(InputError, match="the runtime 'torch' is built in"):
        register("torch", Runtime(export=export, load=OnnxSession), MENUS["onnxruntime"])


def test_a_policy_that_it_stumbles_over_is_not_measured(toy_task: ToyTask, toy_baseline: Baseline, toy_data: Data) -> None:
    def particular(student: nn.Module, example: Nested) -> bytes:
        if any(isinstance(layer, StudentLayer) and layer.bits == 3 for layer in student.modules()):
            raise RuntimeError("three is too odd")
        return export(student, example)

    register("board", Runtime(export=particular, load=OnnxSession), MENUS["onnxruntime"])
    baseline = replace(toy_baseline, target=Target(runtime="board"), files={"board": toy_baseline.file})
    policies = [Policy(layers={"head": LayerPolicy(weight_bits=bits)}) for bits in (3, 4)]
    points = measured(policies, toy_task, baseline, toy_data, Lane())
    assert [point.policy for point in points] == [Policy(), policies[1]]
