"""The documentation site: it builds without a warning, and what its pages say to type is typed here, with small budgets.

All pages share one finished search of the toy (`toy_run`). README's own commands are typed by test_readme.py.
"""

import ast
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import autocompress
from autocompress.errors import InputError, unknown_name
from autocompress.folder import RunFolder
from autocompress.layer import Layer, Layers
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import _RUNTIMES
from autocompress.target import MENUS
from autocompress.verify import read_claims
from tests.documented import BIN, README, ROOT, blocks, commands, files_named, run
from tests.servers import free_port, kill
from tests.toy import call, copy_run, write_experiment

DOCS = ROOT / "docs"
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
PAGES = [page for entry in CONFIG["nav"] for page in entry.values()]
# Its figures come from elsewhere: each command on it takes minutes to hours, and is tested as a file of benchmarks/.
TYPED = [page for page in PAGES if page not in ("benchmarks.md", "api.md")]

_RAY = "needs other machines; tests/drivers/test_cluster_by_hand.py has several local nodes, and types it"
_AWS = "needs a cloud account; tests/test_cluster_yaml.py checks the file"
# Not typed: how such a command begins, and why.
EXEMPT = {
    "pip install": "needs a package index",
    "make demo": "is README's, and takes minutes; tests/test_readme.py looks at what it runs",
    "autocompress search mine/experiment.py --run runs/": "needs a database server; tests/test_shared.py starts one",
    "mlflow server": "serves until it is stopped; tests/trackers/test_mlflow_postgres.py starts one",
    "docker ": "needs docker; tests/test_clusters.py reads the file",
    "kubectl ": "needs Kubernetes; tests/test_clusters.py checks the manifests",
    "sbatch ": "needs SLURM; tests/test_clusters.py parses the script",
    "export RAY_AUTH_MODE": _RAY,
    "autocompress ui": "serves until it is stopped; tests/trackers/test_promote.py starts it",
    "ray start": _RAY,
    "ray stop": "would end the Ray of the tests beside it",
    "autocompress search mine/experiment.py --address": _RAY,
    "ray get-auth-token": _AWS,
    "ray up": _AWS,
    "ray exec": _AWS,
    "ray attach": _AWS,
    "ray rsync-down": _AWS,
    "ray down": _AWS,
    "RAY_AUTH_MODE=token ray job submit": _AWS,
}
# What searches and measures is README's to type when README has the same line: each would take seconds once more.
_README_TYPES = {
    command for command in commands(README) if re.match(r"autocompress (init|check|search|sense|profile|baseline) ", command)
}
# The demo, which README types as `make demo` and tests/test_readme.py with two trials.
_README_TYPES |= {"autocompress search experiments/mnist_vgg.py"}


@pytest.fixture(scope="module")
def workshop(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it: an experiment in mine/, its run in runs/mine, a model of it in shipped/."""
    folder = tmp_path_factory.mktemp("workshop")
    write_experiment(folder / "mine", name="experiment.py")
    for name in ("mine", "other"):
        copy_run(toy_run, folder / "runs" / name)
    shutil.move(folder / "runs/mlflow.db", folder / "mlflow.db")
    for note in folder.glob("runs/*/*.json"):
        note.write_text(note.read_text().replace(f"{folder}/runs/mlflow.db", f"{folder}/mlflow.db"))
    for page in TYPED:
        for block in blocks((DOCS / page).read_text()):
            if block.title:
                (folder / block.title).write_text(block.text)
    assert call("export", toy_run, "-o", folder / "shipped") == 0
    return folder


@pytest.fixture
def at_work(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workshop as the current folder; modules and runtimes that pages bring are gone afterwards."""
    monkeypatch.chdir(workshop)
    monkeypatch.syspath_prepend(str(workshop))
    modules, runtimes, menus = set(sys.modules), dict(_RUNTIMES), dict(MENUS)
    yield workshop
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == workshop:
            del sys.modules[name]
    for registry, before in ((_RUNTIMES, runtimes), (MENUS, menus)):
        for name in set(registry) - set(before):
            del registry[name]


@pytest.mark.parametrize("page", TYPED)
def test_what_a_page_says_to_type_works(page: str, at_work: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks((DOCS / page).read_text()):
        if block.language == "bash":
            for command in block.commands:
                type_in(command, at_work)
        elif block.language == "python" and not block.title:
            exec(compile(block.text.replace('"RUN"', '"runs/mine"'), f"{page}: {block.text.splitlines()[0]}", "exec"), names)


def test_the_python_of_readme_works(at_work: Path) -> None:
    experiment, notebook = (block.text for block in blocks(README) if block.language == "python")
    names: dict[str, object] = {}
    exec(experiment, names)
    assert isinstance(names["experiment"], autocompress.Experiment)
    search = 'search("mine/experiment.py", minutes=20)'
    assert search in notebook
    exec(notebook.replace(search, 'load_run("runs/mine")').replace("max_drop=0.01", "max_drop=1.0"), names)
    assert (at_work / "shipped" / "model.onnx").is_file()


def type_in(command: str, folder: Path) -> None:
    if begins := next((begins for begins in EXEMPT if command.startswith(begins)), None):
        assert EXEMPT[begins]
        if command.startswith("autocompress "):
            assert call(*shlex.split(command)[1:], "--help") == 0, f"{command}: not its options"
        return
    if command in _README_TYPES:
        return
    program, *arguments = shlex.split(command.replace("RUN", "runs/mine"))
    match program:
        case "autocompress":
            assert call(*shortened(arguments, folder)) == 0, command
        case "python":
            runpy.run_path(arguments[0], run_name="__main__")
        case "pytest":
            run(f"{command} -p no:cacheprovider -q", folder)
        case "uvicorn":
            with serving(command, folder) as port:
                assert asked(folder, port).keys() == {"classes"}
        case _:
            raise AssertionError(f"{command}: nobody knows how to type that here; see EXEMPT")


def shortened(arguments: list[str], folder: Path) -> list[str]:
    """The same, on one worker, for a trial or one more than there are."""
    if arguments[0] not in ("search", "resume"):
        return arguments
    trials = len(RunFolder(folder / "runs/mine").results()) + 1 if arguments[0] == "resume" else 1
    place = arguments.index("--trials") + 1
    short = [*arguments[:place], str(trials), *arguments[place + 1 :], "--driver", "local", "--quiet"]
    return [*short, "--run", f"runs/{time.monotonic_ns()}"] if arguments[0] == "search" else short


@contextmanager
def serving(command: str, folder: Path) -> Iterator[int]:
    """The server of the page on a free port, ready to answer."""
    port = free_port()
    line = [str(BIN / "uvicorn"), *shlex.split(command.replace("8000", str(port)))[1:]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    log = folder / "uvicorn.log"
    with log.open("wb") as output:
        server = subprocess.Popen(line, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while "Uvicorn running" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"the server does not come up: {log.read_text()}"
            time.sleep(0.1)
        yield port
    finally:
        kill(server)


def asked(folder: Path, port: int) -> dict[str, list[int]]:
    """What the page's ask.py prints; what the server does not understand is refused with the reason."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec((folder / "ask.py").read_text().replace("8000", str(port)), {})
    answer: dict[str, list[int]] = ast.literal_eval(printed.getvalue())
    assert len(answer["classes"]) == 2
    for wrong in ([[0.0, 1.0]], [[1.0], [1.0, 2.0]], [["a"]]):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/classify", json.dumps({"examples": wrong}).encode(), {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 422
    return answer


def test_no_block_is_left_out() -> None:
    typed = [command for page in TYPED for command in commands((DOCS / page).read_text())]
    for page in TYPED:
        for block in blocks((DOCS / page).read_text()):
            assert block.language in ("bash", "python", "cpp"), f"{page}: a block of {block.language} is not typed by any test"
            stem = block.title.partition(".")[0]
            if block.language == "python" and block.title != "ask.py":  # which is run beside the server
                assert not stem or any(stem in command for command in typed), f"{page}: nothing runs {block.title}"
    for begins in EXEMPT:
        assert any(command.startswith(begins) for command in typed), f"no page has {begins!r}: it needs no exemption"


def test_the_cpp_snippet_compiles_where_the_headers_are(tmp_path: Path) -> None:
    header = (
        subprocess.run(
            ["g++", "-E", "-x", "c++", "-"],
            input="#include <onnxruntime_cxx_api.h>\n",
            text=True,
            capture_output=True,
            check=False,
        )
        if shutil.which("g++")
        else None
    )
    if header is None or header.returncode:
        pytest.skip("there is no C++ compiler, or it has no headers of ONNX Runtime")
    (snippet,) = (block for block in blocks((DOCS / "deploy.md").read_text()) if block.language == "cpp")
    (tmp_path / "classify.cpp").write_text(snippet.text)
    subprocess.run(["g++", "-std=c++17", "-fsyntax-only", "classify.cpp"], cwd=tmp_path, check=True)


def messages() -> list[str]:
    """Every text in the code, what is filled in as …."""
    found: list[str] = []
    for file in (ROOT / "autocompress").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(_part, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [" ".join(message.split()) for message in found]


def _part(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    return "'…'" if isinstance(part, ast.FormattedValue) and part.conversion == ord("r") else "…"


def raised(tmp_path: Path) -> Iterator[str]:
    """Errors whose words are put together from more than one place."""
    yield str(unknown_name("layer", "blok", ["block"]))
    layers = Layers(layers=(Layer(name="head", kind="linear", weight_shape=(4, 8), params=32, macs=32),), groups=())
    for fails in (
        lambda: Policy(layers={"head": LayerPolicy(weight_bits=5)}).check(
            layers, MENUS["torch"].model_copy(update={"weight_bits": (8,)})
        ),
        lambda: read_claims(tmp_path),
    ):
        with pytest.raises(InputError) as error:
            fails()
        yield str(error.value)


def test_every_error_that_is_explained_is_one_that_the_code_has(tmp_path: Path) -> None:
    told = re.findall(r"^### ``(.*?) ?``$", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(told) > 30
    known = [*messages(), *raised(tmp_path)]
    for error in told:
        pattern = re.compile(".*".join(re.escape(part) for part in error.split("…")))
        assert any(map(pattern.fullmatch, known)), f"no such error: {error}"


def test_every_public_name_is_in_the_reference() -> None:
    named = re.findall(r"^::: autocompress\.(\w+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    assert set(autocompress.__all__) <= set(named)


def test_files_that_pages_name_are_there() -> None:
    for page in PAGES:
        for name in files_named((DOCS / page).read_text()):
            assert (ROOT / name).exists(), f"{page}: {name}"


class Fetched(HTMLParser):
    """What a page has a browser fetch by itself: links that a reader may follow are none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src" or (name == "href" and tag == "link"):
                self.addresses.append(value or "")


def test_the_site_builds_without_warnings_and_asks_for_nothing_outside_of_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not re.search("warning|error", done.stdout + done.stderr, re.IGNORECASE), done.stderr
    for page in PAGES:
        fetched = Fetched()
        fetched.feed((tmp_path / page).with_suffix(".html").read_text())
        assert len(fetched.addresses) > 3
        assert not [address for address in fetched.addresses if re.match(r"(\w+:)?//", address)]


def test_the_notebook_runs_and_keeps_the_outputs_of_a_real_run(
    toy_run: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = json.loads((DOCS / "notebook.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(cell["outputs"] for cell in cells)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "the front is drawn"
    shutil.copyfile(tracking_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        code = "".join(cell["source"])
        if "search(" in code:
            assert "trials=16" in code
            code = code.replace("trials=16", 'trials=1, driver="local"')
        exec(compile(code.replace("max_drop=0.05", "max_drop=1.0"), "notebook.ipynb", "exec"), names)
    assert (tmp_path / "digits-smallest" / "model.onnx").is_file()


def test_make_docs_builds_the_site() -> None:
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1] == "NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict"


def test_pictures_are_small() -> None:
    for picture in DOCS.glob("*.png"):
        assert picture.stat().st_size < 300_000, picture
