"""Searches and runs as objects that show themselves, for notebooks and scripts."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import nn

from autocompress.baseline import load_split
from autocompress.drivers import Driver
from autocompress.errors import InputError, RunFolderError, TrialError
from autocompress.export import choose
from autocompress.export import export as deliver
from autocompress.opened import Options, Run, open_run
from autocompress.policy import Policy
from autocompress.report.data import Report, counts_words, report_of
from autocompress.report.decision import gains_words, score_words
from autocompress.report.picture import Picture, front_figure
from autocompress.result import TrialResult
from autocompress.run import run_search, usual_folder
from autocompress.trackers.mlflow_run import default_uri
from autocompress.trial import student_of
from autocompress.trial_files import CHECKPOINT, read_trial_file

# What a table in a notebook shows of each model; the others are columns of `front` too.
_SHOWN = ("number", "size_ratio", "speedup", "accuracy", "test_accuracy", "policy")


def search(
    file: str | Path,
    folder: str | Path | None = None,
    *,
    space: str | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    limits: Sequence[str] = (),
    targets: Sequence[str] = (),
    driver: Literal["tune", "local"] | Driver = "tune",
    tracking_uri: str | None = None,
    storage: str | None = None,
    study: str | None = None,
    artifacts: str | None = None,
) -> "SearchRun":
    """What `autocompress search FILE` does, with its defaults; returns when the search has ended.

    `folder` is that of the run, by default ``runs/<experiment>-<date>-<time>``. Raises `InputError` for whatever the caller
    can mend.
    """
    file = Path(file)
    where = usual_folder(file) if folder is None else Path(folder)
    run_search(
        file,
        where,
        driver=_driver(driver),
        tracking_uri=tracking_uri or default_uri(Path.cwd()),
        options=Options(space=space, trials=trials, minutes=minutes, seed=seed, limits=tuple(limits), targets=tuple(targets)),
        storage=storage,
        study=study,
        artifacts=artifacts,
    )
    return load_run(where)


def load_run(folder: str | Path) -> "SearchRun":
    """The run in a folder, finished or under way. Raises `RunFolderError` when there is none."""
    return SearchRun(open_run(folder))


class SearchRun:
    """A run: its trials as tables, its front as a picture, its models as modules and files. Always as it is now."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def folder(self) -> Path:
        return self._run.folder.path

    @property
    def trials(self) -> pd.DataFrame:
        """A row for every complete trial, those of the front first; sizes in bytes, times in milliseconds, scores as shares.

        Raises `RunFolderError` when no trial has finished yet.
        """
        return self._report().table

    @property
    def front(self) -> pd.DataFrame:
        """The rows of the front, of the best in the first objective first; `number` is the index."""
        table = self.trials
        return table[table["on_front"]].drop(columns="on_front").set_index("number")

    def plot(self) -> Picture:
        """Size against accuracy, latency as colour. Shown by a notebook as it is."""
        return front_figure(self._report())

    def best(self, pick: str | int = "knee", *, max_drop: float | None = None) -> "Model":
        """A model of the front: `pick` is "knee", "smallest", "fastest", "best", or the number of any complete trial.

        `max_drop` is the accuracy that it may lose; by default one point, or more where none keeps to that. Raises
        `InputError` that says what there is to pick.
        """
        chosen = choose(self._run.front(), self._run.folder.results(), str(pick), max_drop=max_drop)
        return Model(self._run, chosen)

    def _report(self) -> Report:
        run = self._run
        return report_of(run.front(), run.folder.results(), run.baseline().layers, run.title)

    def __repr__(self) -> str:
        return f"<run {self._run.title}: {counts_words(self._run.folder.results())}>"

    def _repr_html_(self) -> str:
        try:
            front, table = self._run.front(), self.front.reset_index()
        except RunFolderError as error:
            return f"<p>{html.escape(str(error))}</p>"
        chosen = front.recommended()
        lines = [f"<b>{html.escape(self._run.title)}</b>: {html.escape(counts_words(self._run.folder.results()))}"]
        if chosen is not None:
            lines.append(html.escape(f"recommended: {Model(self._run, chosen).words}"))
        page = self._run.folder.front_json.with_suffix(".html")
        if page.exists():
            # From here: a notebook server takes what begins with a slash for an address of its own.
            lines.append(f'<a href="{html.escape(os.path.relpath(page))}">{html.escape(page.name)}</a>')
        shown = table[[name for name in _SHOWN if table[name].notna().any()]]
        return f"<p>{'<br>'.join(lines)}</p>{shown.to_html(index=False)}"


class Model:
    """One trial's model."""

    def __init__(self, run: Run, result: TrialResult) -> None:
        self._run, self.result = run, result

    @property
    def number(self) -> int:
        return self.result.number

    @property
    def policy(self) -> Policy:
        return self.result.policy

    @property
    def words(self) -> str:
        """``trial 7: 8.9x smaller, 3.1x faster, -0.4 points; 98.1 ± 0.6% on test; -72% channels, w2-7 a8``."""
        front = self._run.front()
        words = gains_words(self.result, front), score_words(self.result, front), self.result.summary
        return f"trial {self.number}: {'; '.join(words)}"

    def model(self) -> nn.Module:
        """The model as a torch module on the CPU, in eval mode: its channels gone, its weights and activations rounded.

        It computes what the exported file does, but for the rounding of integer kernels. Raises `RunFolderError` when the
        trial's checkpoint is gone or damaged, `UnreachableError` when the storage does not give it.
        """
        checkpoint = read_trial_file(self._run.folder, self.result, CHECKPOINT)
        experiment = self._run.experiment()
        train = load_split(experiment.task, "train")
        baseline, seed = self._run.baseline(), self.result.seed
        try:
            return student_of(self.policy, experiment.task, baseline, train, seed=seed, checkpoint=checkpoint)
        except TrialError as error:
            where = self._run.folder.artifacts.where(self.number, CHECKPOINT)
            raise RunFolderError(f"{where} is damaged: {error}") from error

    def export(self, into: str | Path, *, target: str | None = None) -> Path:
        """What `autocompress export` writes: the file, its policy, its claims, its card. Returns the folder."""
        deliver(self._run, str(self.number), Path(into), max_drop=None, target=target)
        return Path(into)

    def __repr__(self) -> str:
        return f"<{self.words}>"


def _driver(driver: str | Driver) -> Driver:
    if not isinstance(driver, str):
        return driver
    if driver == "local":
        from autocompress.drivers.local import LocalDriver

        return LocalDriver()
    if driver == "tune":
        from autocompress.drivers.tune import TuneDriver

        return TuneDriver()
    raise InputError(f"a driver is 'tune', 'local' or an object, given {driver!r}")
