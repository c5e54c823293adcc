"""Where a search stands, for other processes: a small file in the run folder that is written while it runs."""

from typing import Literal

from autocompress.noun import Noun
from autocompress.objective import USUAL, Scoring
from autocompress.result import Rung


class Running(Noun):
    """A trial under way since `since`, and its latest rung; `metrics` are what its rungs have said of its file."""

    number: int
    since: float
    refit_of: int | None = None
    rung: Rung | None = None
    metrics: dict[str, float] = {}


class Session(Noun):
    """`session.json` of a run folder: what its latest session is doing. Times are in seconds since the epoch.

    `doing` is what it says of itself, `searching` since when there are trials (None: not yet). `ends` is when the search is
    expected to end, as far as that can be told. Of the budget `trials`, `minutes` and `worker_seconds` are what there is
    (None: no bound), `sampled`, `refits` and `used` how many trials, refits and worker-seconds there were so far. `baseline`
    has the metrics of the uncompressed model, `scoring` what is known of scores. `searched` is how many
    seconds of the budget's minutes are used up, by earlier sessions too. `ended` is why the search has ended; None
    while it goes on, and for ever when its process was killed.
    """

    version: Literal[1] = 1
    began: float
    written: float
    doing: str
    searching: float | None = None
    trials: int | None = None
    minutes: float | None = None
    worker_seconds: float | None = None
    sampled: int = 0
    refits: int = 0
    used: float = 0.0
    ends: float | None = None
    baseline: dict[str, float] = {}
    scoring: Scoring = USUAL
    running: tuple[Running, ...] = ()
    searched: float = 0.0
    ended: str | None = None
