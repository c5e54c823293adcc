"""What README and the pages of docs/ tell a reader to type: found in their fenced blocks, typed."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text()

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is the content of, if any, and its text."""

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its lines, without comments; one that ends in a backslash goes on in the next."""
        lines = [line.partition("#")[0].strip() for line in self.text.replace("\\\n", " ").splitlines()]
        return [" ".join(line.split()) for line in lines if line]


def blocks(markdown: str) -> list[Block]:
    """All of them, in order."""
    return [Block(*found.groups(default="")) for found in _BLOCK.finditer(markdown)]


def commands(markdown: str) -> list[str]:
    """The lines of all ```bash blocks."""
    return [command for block in blocks(markdown) if block.language == "bash" for command in block.commands]


def run(command: str, folder: Path) -> str:
    """Types a command in `folder`; what it prints. Fails unless it exits with 0."""
    done = subprocess.run(
        [str(BIN / shlex.split(command)[0]), *shlex.split(command)[1:]], cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "core_worker" not in done.stdout + done.stderr  # Ray keeps its thoughts to the log
    return done.stdout


def files_named(markdown: str) -> list[str]:
    """The files of this repository that the text names in backquotes."""
    return re.findall(r"`((?:autocompress|search_spaces|experiments|benchmarks|tests)/[\w./]*)`", markdown)
