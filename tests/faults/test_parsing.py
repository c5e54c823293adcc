"""Whatever stands in a file that is read: it is understood, or refused in one line."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autocompress.baseline import load_baseline
from autocompress.errors import InputError
from autocompress.experiment import Experiment
from autocompress.folder import RunFolder
from autocompress.layer import Layers
from autocompress.opened import open_run, read_front
from autocompress.policy import Policy
from autocompress.profile import load_costs
from autocompress.study import open_journal, open_study
from autocompress.tables import Sensitivity
from autocompress.target import Target
from autocompress.trackers.mlflow_run import MlflowRun
from tests.tables_made import made_costs, made_sensitivity
from tests.toy import copy_run

# Of each file; ``AUTOCOMPRESS_FUZZ=12000`` makes more than 100,000 in all.
EXAMPLES = int(os.environ.get("AUTOCOMPRESS_FUZZ", "60"))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("Infinity"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all that stands in a JSON document."""
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    return [path, *(found for key, part in inner for found in places(part, (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], how: str, value: Any) -> Any:
    """The document with another value at `path`, without it, or with one thing more."""
    if not path:
        return value
    copy = deepcopy(document)
    *outer, last = path
    at = copy
    for key in outer:
        at = at[key]
    if how == "gone":
        del at[last]
    elif how == "more" and isinstance(at, dict):
        at["more"] = value
    else:
        at[last] = value
    return copy


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """What may have become of a JSON file: a part of it is another, gone or torn, or it is no JSON any more."""
    how = draw(st.sampled_from(["other", "gone", "more", "torn", "flipped", "anything"]))
    if how == "torn":
        return content[: draw(st.integers(0, len(content)))]
    if how == "flipped":
        at = draw(st.integers(0, len(content) - 1))
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if how == "anything":
        return draw(st.binary(max_size=40))
    document = json.loads(content)
    return json.dumps(changed(document, draw(st.sampled_from(places(document))), how, draw(JSON))).encode()


@pytest.fixture(scope="module")
def run(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all files that there may be, some of which a test writes over and over."""
    folder = tmp_path_factory.mktemp("parsing") / "run"
    copy_run(toy_run, folder)
    layers, target = load_baseline(folder / "baseline").layers, Target()
    (folder / "sensitivity.json").write_text(made_sensitivity(layers, target.menu).to_json())
    (folder / "costs.json").write_text(made_costs(layers, target).to_json())
    return folder


def _policy(run: Path) -> Policy:
    policy = Policy.from_json((run / "trials/0000/policy.json").read_bytes())
    layers: Layers = load_baseline(run / "baseline").layers
    policy.check(layers, Target().menu)
    return policy


def _costs(run: Path) -> object:
    return load_costs(run / "costs.json", Target(), load_baseline(run / "baseline").layers)


def _study(run: Path) -> object:
    file = run / "study.log"
    study = open_study(open_journal(file), _experiment(run), file)
    return [trial.params for trial in study.get_trials(deepcopy=False)]


@cache
def _experiment(run: Path) -> Experiment:
    return open_run(run).experiment()


READERS: dict[str, Callable[[Path], object]] = {
    "trials/0000/policy.json": _policy,
    "trials.jsonl": lambda run: RunFolder(run).results(),
    "sensitivity.json": lambda run: Sensitivity.from_json((run / "sensitivity.json").read_bytes()),
    "costs.json": _costs,
    "run.json": lambda run: open_run(run).experiment(),
    "baseline/baseline.json": lambda run: load_baseline(run / "baseline"),
    "front.json": lambda run: read_front(RunFolder(run)).recommended(),
    "study.log": _study,
    "mlflow.json": lambda run: MlflowRun.from_json((run / "mlflow.json").read_bytes()),
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_understood_or_refused_in_one_line(run: Path, name: str, data: st.DataObject) -> None:
    whole = (run / name).read_bytes()
    if name.endswith(".json"):
        (run / name).write_bytes(data.draw(damaged(whole)))
    else:  # a line is a document
        lines = whole.splitlines()
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = data.draw(damaged(lines[at]))
        (run / name).write_bytes(b"\n".join(lines) + b"\n")
    try:
        problem = _problem(READERS[name], run)
    finally:
        (run / name).write_bytes(whole)
    assert problem is None or (problem and "\n" not in problem)


def _problem(read: Callable[[Path], object], run: Path) -> str | None:
    try:
        read(run)
    except InputError as error:
        return str(error)
    return None
