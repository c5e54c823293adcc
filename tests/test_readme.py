"""What README says to type is typed here, in its order, with budgets cut to two trials."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.documented import README, ROOT, commands, files_named, run

# What takes long, made short.
CUT = {"search": " --trials 2", "profile": " --policies 4", "baseline": " --rivals random --worker-seconds 5"}


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    assert [command for command in commands(README) if command.startswith("make ")] == ["make demo", "make test"]
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1] == ".venv/bin/autocompress search experiments/mnist_vgg.py"


@pytest.mark.timeout(900)
def test_every_command_works(tmp_path: Path) -> None:
    typed = [command for command in commands(README) if command.startswith("autocompress ")]
    assert [shlex.split(command)[1] for command in typed] == [
        *("init", "check", "search", "sense", "profile"),
        *("status", "front", "export", "verify", "baseline"),
    ]
    printed: dict[str, str] = {}
    for command in typed:
        found = sorted((tmp_path / "runs").glob("*"))
        filled = command.replace("RUN", shlex.quote(str(found[0]))) if found else command
        printed[shlex.split(command)[1]] = run(filled + CUT.get(shlex.split(command)[1], ""), tmp_path)
    assert "verified" in printed["verify"]
    assert "random" in printed["baseline"]
    assert {"model.onnx", "policy.json", "verify.json", "README.md"} <= {path.name for path in (tmp_path / "shipped").iterdir()}


@pytest.mark.timeout(400)
def test_the_demo_is_a_real_search(tmp_path: Path) -> None:
    printed = run(f"autocompress search {ROOT / 'experiments' / 'mnist_vgg.py'} --trials 2 --run demo", tmp_path)
    assert "smaller" in printed
    assert "autocompress export demo" in printed
    assert "mlflow ui" in printed


def test_every_command_is_in_the_table() -> None:
    listed = run("autocompress --help", ROOT).partition("Commands:")[2]
    names = re.findall(r"^  (\w+) ", listed, flags=re.MULTILINE)
    assert sorted(names) == sorted(re.findall(r"^\| `autocompress (\w+) ", README, flags=re.MULTILINE))


def test_pictures_and_files_that_readme_names_are_there() -> None:
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).stat().st_size > 5_000
    for page, _, anchor in re.findall(r"\]\((docs/[\w-]+\.\w+)(#([\w-]+))?\)", README):
        text = (ROOT / page).read_bytes().decode(errors="replace")
        headings = [
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall("^#+ (.*)$", text, re.M)
        ]
        assert not anchor or anchor in headings, f"{page} has no {anchor}"
    for name in files_named(README):
        assert (ROOT / name).exists(), name
