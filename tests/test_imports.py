import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "optuna", "mlflow", "onnx", "onnxruntime", "pandas", "matplotlib", "scipy")


@pytest.mark.parametrize(
    "code",
    [
        "import autocompress",
        "import autocompress.cli",
        "from autocompress.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "from autocompress.cli import main\ntry:\n    main(['search', '--help'])\nexcept SystemExit:\n    pass",
        "from autocompress.cli import main\ntry:\n    main(['init', '/proc/nowhere'])\nexcept SystemExit:\n    pass",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    program = f"import sys\n{code}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_search_is_loaded_without_what_few_processes_need() -> None:
    seldom = ("torch._dynamo.symbolic_convert", "torch._inductor", "scipy.stats", "sklearn", "mlflow")
    program = f"import sys, autocompress.run\nprint([name for name in {seldom!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_can_be_imported() -> None:
    program = "import autocompress\nprint([name for name in autocompress.__all__ if getattr(autocompress, name) is None])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "autocompress", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("autocompress")
