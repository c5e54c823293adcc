"""What the user can mend is told in one line that names the cause and the remedy, with exit code 2 and no traceback."""

import json
from pathlib import Path

import pytest

from autocompress.folder import RunFolder
from tests.toy import SPACE, call, copy_run, write_experiment

Capture = pytest.CaptureFixture[str]


def complaint(capsys: Capture, *arguments: str | Path) -> str:
    """The one line that the command complains in."""
    assert call(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def searching(file: Path, tracking_uri: str) -> tuple[str | Path, ...]:
    return "search", file, "--run", file.parent / "run", "--driver", "local", "--tracking-uri", tracking_uri, "--quiet"


@pytest.mark.parametrize(
    ("old", "new", "cause", "remedy"),
    [
        ("layer.name: LayerPolicy", "layer.name + 'x': LayerPolicy", "no layer 'stemx'", "did you mean 'stem'?"),
        ("group.name: share", "'conv': share", "no channel group 'conv'", "did you mean 'conv1'?"),
        ("weight_bits=bits,", "weight_bits=16,", "weight_bits: Input should be less than or equal to 8", "given 16"),
        ("activation_bits=8", "weight_sparsity=1.0", "weight_sparsity: Input should be less than 1", "given 1.0"),
        ("group.name: share", "group.name: 1.0", "channel_sparsity of 'stem' must be less than 1", "given 1.0"),
        ("group.name: share", "group.name: 1.5", "channel_sparsity of 'stem' must be in [0, 1]", "given 1.5"),
        ("    return Policy(", "    return dict(", "the search space made no valid policy", "it returned {"),
        ("layers={layer", "layer={layer", "layer: Extra inputs are not permitted", "search space"),
    ],
)
def test_a_space_that_makes_invalid_policies(
    tmp_path: Path, tracking_uri: str, capsys: Capture, old: str, new: str, cause: str, remedy: str
) -> None:
    assert old in SPACE
    file = write_experiment(tmp_path, space=SPACE.replace(old, new))
    line = complaint(capsys, *searching(file, tracking_uri))
    assert cause in line
    assert remedy in line
    assert not (tmp_path / "run/run.json").exists(), "the folder is free for the corrected experiment"


def test_bits_that_are_not_on_the_menu_of_the_target(tmp_path: Path, capsys: Capture) -> None:
    space = SPACE.replace("    share =", "    target = Target(runtime='onnxruntim')\n    _ = target.menu\n    share =")
    file = write_experiment(tmp_path, space="from autocompress import Target\n\n\n" + space)
    assert "no runtime 'onnxruntim'; did you mean 'onnxruntime'?" in complaint(capsys, "check", file)


@pytest.mark.parametrize("command", ["search", "check"])
@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("experiment = (", "toy.py, line 1: '(' was never closed"),
        ("x = 1", "defines no `experiment`; end it with `experiment = Experiment(task=..., space=...)`"),
        ("experiment = 3", "`experiment` must be an autocompress.Experiment, given int"),
        ("import no_such_package", "toy.py, line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("from autocompress import Budget\nBudget(trials=0)", "a budget needs at least 1 trial, given 0"),
    ],
)
def test_an_experiment_file_that_cannot_be_used(
    tmp_path: Path, tracking_uri: str, capsys: Capture, command: str, content: str, cause: str
) -> None:
    file = tmp_path / "toy.py"
    file.write_text(content)
    arguments = searching(file, tracking_uri) if command == "search" else ("check", file)
    assert cause in complaint(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_an_experiment_file_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    write_experiment(tmp_path, name="mnist.py")
    assert f"did you mean {tmp_path / 'mnist.py'}?" in complaint(capsys, "search", tmp_path / "mnits.py")


TASKS = [
    (
        "def model(self):\n        return torch.nn.Linear(3, 4)",
        "the model does not run on an example of shape (8, 1, 8, 8)",
    ),
    ("def score(self, outputs, targets):\n        return float('nan')", "must give a finite number"),
    ("def score(self, outputs, targets):\n        return 93.5", "gave 93.5, outside the task's score_range (0 to 1)"),
    ("def score(self, outputs, targets):\n        return outputs.acuracy", "score() failed: AttributeError"),
    (
        "def data(self, split):\n        x, y = super().data(split)\n        return x * np.nan, y",
        "data('train') has inputs that are not finite numbers",
    ),
    (
        "def data(self, split):\n        x, y = super().data(split)\n        return x, y[:9]",
        "must give as many inputs as targets, at least 2; given 256 and 9",
    ),
    ("def loss(self, outputs, targets):\n        raise ValueError('no loss')", "failed: ValueError: no loss"),
]


@pytest.mark.parametrize(("method", "cause"), TASKS)
def test_a_task_that_breaks_its_contract(tmp_path: Path, tracking_uri: str, capsys: Capture, method: str, cause: str) -> None:
    file = write_experiment(tmp_path, classes=f"class Wrong(ToyTask):\n    {method}\n", task="Wrong(epochs=1)")
    # "must give" in a search, "must be" in a check: either line says what a score has to be.
    assert cause in complaint(capsys, *searching(file, tracking_uri))
    assert not (tmp_path / "run/run.json").exists()


CHECKED = [
    *[(method, cause.replace("must give a finite", "must be a finite")) for method, cause in TASKS],
    ("def loss(self, outputs, targets):\n        return outputs.sum() * np.nan", "loss() gave nan on 8 training examples"),
    ("def loss(self, outputs, targets):\n        return outputs", "loss() must give a scalar tensor, given (8, 4)"),
    ("def loss(self, outputs, targets):\n        return outputs.sum().detach()", "loss() is cut off from the model"),
    (
        "def data(self, split):\n        x, y = super().data(split)\n        return x + np.random.rand(), y",
        "data('train') gives other data each time it is called; fix its random seed",
    ),
    (
        "def data(self, split):\n        x, y = super().data(split)\n        return (x if split == 'train' else x[..., :4]), y",
        "data('validation') has inputs of shape (1, 8, 4), data('train') of (1, 8, 8)",
    ),
    ("def model(self):\n        return 'a network'", "model() must give a torch.nn.Module, given str"),
]


@pytest.mark.parametrize(("method", "cause"), CHECKED)
def test_check_says_in_one_line_what_is_wrong(tmp_path: Path, capsys: Capture, method: str, cause: str) -> None:
    file = write_experiment(tmp_path, classes=f"class Wrong(ToyTask):\n    {method}\n", task="Wrong(epochs=1)")
    assert cause in complaint(capsys, "check", file)


def test_a_run_folder_that_cannot_be_written(tmp_path: Path, tracking_uri: str, capsys: Capture) -> None:
    (tmp_path / "file").write_text("in the way")
    file = write_experiment(tmp_path)
    options = ("--driver", "local", "--tracking-uri", tracking_uri)
    line = complaint(capsys, "search", file, "--run", tmp_path / "file/run", *options)
    assert f"cannot write to the run folder {tmp_path / 'file/run'}: Not a directory; choose another with --run" in line


def test_a_run_folder_that_holds_a_run(toy_run: Path, tracking_uri: str, capsys: Capture) -> None:
    file = toy_run.parent / "toy.py"
    line = complaint(capsys, "search", file, "--run", toy_run, "--driver", "local", "--tracking-uri", tracking_uri)
    assert f"go on with it by `autocompress resume {toy_run}`" in line


@pytest.mark.parametrize("uri", ["sqlite:////proc/none/mlflow.db", "htp://localhost:5000", "./mlruns"])
def test_a_tracking_uri_that_can_be_no_store(tmp_path: Path, capsys: Capture, uri: str) -> None:
    file = write_experiment(tmp_path)
    line = complaint(capsys, *searching(file, uri))
    assert any(remedy in line for remedy in ("--tracking-uri", "did you mean 'http'", "use sqlite:///"))
    assert not (tmp_path / "run").exists()


def test_an_address_that_cannot_be_reached(tmp_path: Path, tracking_uri: str, capsys: Capture) -> None:
    file = write_experiment(tmp_path)
    options = ("--run", tmp_path / "run", "--tracking-uri", tracking_uri, "--quiet")
    line = complaint(capsys, "search", file, *options, "--address", "127.0.0.1:9")
    assert "no Ray cluster at 127.0.0.1:9" in line
    assert "leave --address out" in line
    assert not (tmp_path / "run").exists(), "found out before the baseline was trained"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--sampler", "tpee"), "no sampler 'tpee'; did you mean 'tpe'?"),
        (("--space", "unifrom"), "no search space 'unifrom'; did you mean 'uniform'?"),
        (("--space", "/nowhere.py"), "no search space file /nowhere.py"),
        (("--driver", "tun"), "no driver 'tun'; did you mean 'tune'?"),
        (("--limit", "accuracy > 0.9"), "cannot read the limit 'accuracy > 0.9'; write it like"),
        (("--limit", "acuracy >= 0.9"), "no metric 'acuracy'; did you mean 'accuracy'?"),
        (("--trials", "0"), "a budget needs at least 1 trial, given 0"),
        (("--minutes", "-1"), "minutes must be above 0, given -1.0"),
        (("--trials", "many"), "'many' is not a valid integer"),
        (("--seed", "-1"), "a seed must be 0 or more, given -1"),
        (("--concurrency", "4"), "the local driver runs one trial at a time"),
        (("--samplr", "tpe"), "No such option"),
    ],
)
def test_options_that_do_not_exist(
    tmp_path: Path, tracking_uri: str, capsys: Capture, options: tuple[str, ...], expected: str
) -> None:
    file = write_experiment(tmp_path)
    assert expected in complaint(capsys, *searching(file, tracking_uri), *options)
    assert not (tmp_path / "run/run.json").exists()


def test_a_command_that_does_not_exist(capsys: Capture) -> None:
    assert "Did you mean 'search'?" in complaint(capsys, "serch")


DAMAGES = [
    ("run.json", "run.json is no valid RunNote", ("resume", "front", "export", "sync")),
    ("trials.jsonl", "line 1 of", ("front", "export", "sync")),
    ("front.json", "front.json is no valid ParetoFront", ("front", "export", "sync")),
    ("baseline/baseline.json", "the baseline in", ("resume", "front", "sync")),
]


@pytest.mark.parametrize(
    ("command", "file", "cause"), [(command, file, cause) for file, cause, commands in DAMAGES for command in commands]
)
def test_a_damaged_run_folder(toy_run: Path, tmp_path: Path, capsys: Capture, command: str, file: str, cause: str) -> None:
    copy_run(toy_run, tmp_path / "run")
    content = (tmp_path / "run" / file).read_text()
    (tmp_path / "run" / file).write_text(f"{{broken\n{content}")
    options = {"export": ("-o", tmp_path / "out"), "resume": ("--driver", "local")}.get(command, ())
    line = complaint(capsys, command, tmp_path / "run", *options)
    assert cause in line
    assert str(tmp_path / "run") in line


def test_a_run_folder_that_is_none(tmp_path: Path, capsys: Capture) -> None:
    assert "no run folder" in complaint(capsys, "front", tmp_path / "nowhere")
    assert "is no run folder: it has no run.json" in complaint(capsys, "front", tmp_path)
    assert "is no exported model: it has no verify.json" in complaint(capsys, "verify", tmp_path)


def test_a_front_that_is_not_there_yet(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    copy_run(toy_run, tmp_path / "run")
    (tmp_path / "run/front.json").unlink()
    assert "has no front yet: no trial has finished" in complaint(capsys, "front", tmp_path / "run")


def test_a_pick_that_does_not_exist(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ("-o", tmp_path / "out")
    assert "no pick 'kne'; did you mean 'knee'?" in complaint(capsys, "export", toy_run, "--pick", "kne", *out)
    numbers = ", ".join(str(result.number) for result in RunFolder(toy_run).results())
    line = complaint(capsys, "export", toy_run, "--pick", "999", *out)
    assert f"no trial 999 in this run; its complete trials are {numbers}" in line
    line = complaint(capsys, "export", toy_run, "--max-drop", "-1", *out)
    assert "no model on the front is within -1 of the uncompressed accuracy" in line
    assert "give --max-drop" in line
    assert not (tmp_path / "out").exists()


def test_an_export_writes_over_nothing(toy_run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    line = complaint(capsys, "export", toy_run, "--max-drop", "1", "-o", tmp_path)
    assert "holds other files; choose a new folder with -o" in line
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_claims_that_are_damaged(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "verify.json").write_text(json.dumps({"version": 1}))
    assert "verify.json is no valid Claims: trial: Field required" in complaint(capsys, "verify", tmp_path)


def test_debug_shows_the_traceback(tmp_path: Path, capsys: Capture) -> None:
    assert call("--debug", "check", tmp_path / "none.py") == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_what_nobody_foresaw_is_one_line_too(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "toy.py"
    file.write_bytes(b"\xff\xfe no text")
    code = call("check", file)
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
