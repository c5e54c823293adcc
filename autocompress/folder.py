"""The run folder: where everything a search leaves behind lies, and under which name."""

import fcntl
import os
import tempfile
from pathlib import Path

from autocompress.artifacts import Artifacts, InFolder, InStorage, trial_folder
from autocompress.errors import RunFolderError
from autocompress.result import TrialResult


class RunFolder:
    """Paths and small files of one run.

    run.json                    what was asked for: experiment file, options, versions
    experiment.py               the experiment file as it was at the start
    baseline/                   weights.safetensors, model.onnx, baseline.json: the uncompressed model
    sensitivity.json            how far each option alone moves the outputs
    costs.json                  bytes and time of each layer at each option
    study.log                   the Optuna study (journal file)
    trials.jsonl                one TrialResult a line, in the order they finished: the record
    trials/0007/model.onnx      the exported file of trial 7, and beside it its policy and its checkpoint, unless the run
                                keeps them in a storage: `artifacts` knows
    front.json/.csv/.html/.md/.png  the Pareto front
    importance.json             which knob of the space mattered, for each objective
    baselines/uniform/          what a rival found with the same budget: a folder like this one
    session.json                where the search stands
    mlflow.json                 which MLflow run holds what
    autocompress.log            what Ray, Optuna and we had to say
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.artifacts: Artifacts = InFolder(self.path)

    @property
    def storage(self) -> InStorage | None:
        """Where the files of trials are kept; None when that is this folder."""
        return self.artifacts if isinstance(self.artifacts, InStorage) else None

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.py"

    @property
    def baseline(self) -> Path:
        return self.path / "baseline"

    @property
    def sensitivity(self) -> Path:
        return self.path / "sensitivity.json"

    @property
    def costs(self) -> Path:
        return self.path / "costs.json"

    @property
    def importance(self) -> Path:
        return self.path / "importance.json"

    @property
    def baselines(self) -> Path:
        return self.path / "baselines"

    @property
    def study(self) -> Path:
        return self.path / "study.log"

    @property
    def record(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def front_json(self) -> Path:
        return self.path / "front.json"

    @property
    def mlflow_json(self) -> Path:
        return self.path / "mlflow.json"

    @property
    def session(self) -> Path:
        return self.path / "session.json"

    @property
    def log(self) -> Path:
        return self.path / "autocompress.log"

    def trial(self, number: int) -> Path:
        return self.path / trial_folder(number)

    def create(self) -> None:
        """Makes the folder. Raises `RunFolderError` when it cannot be written or holds another run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise RunFolderError(
                f"cannot write to the run folder {self.path}: {error.strerror}; choose another with --run"
            ) from error
        if self.run_json.exists():
            raise RunFolderError(
                f"{self.path} already holds a run; go on with it by `autocompress resume {self.path}`, or choose another --run"
            )
        self._stays_inside()

    def check(self) -> None:
        """Raises `RunFolderError` unless this is a run folder."""
        if not self.path.is_dir():
            raise RunFolderError(f"no run folder {self.path}; `autocompress search FILE` makes one")
        if not self.run_json.exists():
            raise RunFolderError(f"{self.path} is no run folder: it has no run.json")
        self._stays_inside()

    def _stays_inside(self) -> None:
        """Raises `RunFolderError` when something in it leads out of it: what we read or write there would be elsewhere."""
        for here, folders, files in os.walk(self.path):
            for path in (Path(here, name) for name in (*folders, *files)):
                if path.is_symlink() and not path.resolve().is_relative_to(self.path):
                    raise RunFolderError(f"{path} is a symbolic link that leads out of the run folder; put a copy in its place")

    def is_under_way(self) -> bool:
        """True while a process searches in this folder."""
        if not self.log.exists():
            return False
        with self.log.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def results(self) -> list[TrialResult]:
        """The record, oldest first. A last line cut short by a crash is left out; any other damage raises `RunFolderError`."""
        if not self.record.exists():
            return []
        *whole, _ = self.record.read_bytes().split(b"\n")  # a line counts when its newline was written
        return [self._result(line, number) for number, line in enumerate(whole, 1) if line.strip()]

    def _result(self, line: bytes, number: int) -> TrialResult:
        try:
            return TrialResult.from_json(line, source=f"line {number} of {self.record}")
        except Exception as error:
            raise RunFolderError(f"{self.path} is damaged: {error}; `autocompress resume` goes on without the trial") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a whole file or, if the process dies in the middle, leaves the old one as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        draft = Path(file.name)
        try:
            file.write(content.encode() if isinstance(content, str) else content)
            file.close()
            draft.chmod(0o644)  # a temporary file is its owner's alone
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
