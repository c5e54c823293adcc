"""What README says to type is typed here, in its order, with budgets cut to two trials."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
# What takes long, made short.
CUT = {"search": " --trials 2", "profile": " --policies 4", "baseline": " --rivals random --worker-seconds 5"}


def commands() -> list[str]:
    """The lines of all ```bash blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        [str(BIN / shlex.split(command)[0]), *shlex.split(command)[1:]], cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "core_worker" not in done.stdout + done.stderr  # Ray keeps its thoughts to the log
    return done.stdout


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    assert [command for command in commands() if command.startswith("make ")] == ["make demo", "make test"]
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1] == ".venv/bin/autocompress search experiments/mnist_vgg.py"


@pytest.mark.timeout(900)
def test_every_command_works(tmp_path: Path) -> None:
    typed = [command for command in commands() if command.startswith("autocompress ")]
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
    for name in re.findall(r"`((?:autocompress|search_spaces|experiments)/[\w./]*)`", README):
        assert (ROOT / name).exists(), name
