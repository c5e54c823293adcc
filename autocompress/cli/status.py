"""The command `status`: where a search stands, from another shell. Loads neither torch nor Ray: it may be called often."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocompress import words
from autocompress.cli.shared import json_option, new_console, print_json, print_line, quoted

if TYPE_CHECKING:
    from autocompress.folder import RunFolder
    from autocompress.session import Running, Session

_RUNNING_SHOWN = 8


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@json_option("One JSON document.")
def status(*, run: Path, as_json: bool) -> None:
    """Show where a search stands, while it runs and after it."""
    from autocompress.folder import RunFolder

    folder = RunFolder(run)
    folder.check()
    standing = standing_of(folder, time.time())
    if as_json:
        print_json(standing)
        return
    console = new_console()
    for line in _lines(standing, quoted(run)):
        print_line(console, line)
    _show_front(console, standing["front"])


def standing_of(folder: "RunFolder", now: float) -> dict[str, Any]:
    """What is on record of a run, and what its latest session says of itself; plain JSON. Raises `RunFolderError`.

    `state` is "preparing", "searching", "finishing" (what was found is being measured and written down), "finished", or
    "interrupted", when the process has gone before it could finish. `rival` is the folder of a rival that is being searched
    with. What is not known is None.
    """
    from autocompress.front import ParetoFront
    from autocompress.result import Status
    from autocompress.session import Session
    from autocompress.summary import counts_of, front_summary

    alive, results = folder.is_under_way(), folder.results()
    session = Session.from_json(folder.session.read_bytes(), source=str(folder.session)) if folder.session.exists() else None
    front = None
    if folder.front_json.exists():
        front = ParetoFront.from_json(folder.front_json.read_bytes(), source=str(folder.front_json))
    failures = [result for result in results if result.status is Status.FAILED]
    last = failures[-1] if failures else None
    return {
        "run": str(folder.path),
        "state": _state(session, alive=alive, found=front is not None),
        "trials": counts_of(results),
        "last_failure": None if last is None else {"number": last.number, "error": last.error},
        **_session(session, now, alive=alive),
        "rival": next((str(rival.path) for rival in _rivals(folder) if rival.is_under_way()), None),
        "front": None if front is None else front_summary(front, results),
    }


def _rivals(folder: "RunFolder") -> "list[RunFolder]":
    return [type(folder)(path) for path in sorted(folder.baselines.iterdir())] if folder.baselines.is_dir() else []


def _state(session: "Session | None", *, alive: bool, found: bool) -> str:
    if alive:
        if session is None or session.searching is None:
            return "preparing"
        return "searching" if session.ended is None else "finishing"
    if session is None:
        return "finished" if found else "interrupted"  # of an earlier version
    return "finished" if session.doing == "finished" else "interrupted"


def _session(session: "Session | None", now: float, *, alive: bool) -> dict[str, Any]:
    if session is None:
        return dict.fromkeys(("doing", "ended", "seconds_used", "seconds_left", "budget", "used", "uncompressed", "score")) | {
            "running": []
        }
    until = now if alive else session.written
    return {
        "doing": session.doing if alive else None,
        "ended": session.ended,
        "seconds_used": until - (session.searching or session.began),
        "seconds_left": max(0.0, session.ends - now) if alive and session.ends is not None else None,
        "budget": {name: getattr(session, name) for name in ("trials", "minutes", "worker_seconds")},
        "used": {"trials": session.sampled, "trained_further": session.refits, "worker_seconds": session.used},
        "uncompressed": session.baseline,
        "score": session.scoring.model_dump(),
        "running": [_running(one, now) for one in session.running] if alive else [],
    }


def _running(one: "Running", now: float) -> dict[str, Any]:
    rung = one.rung
    return {
        "number": one.number,
        "seconds": now - one.since,
        "refit_of": one.refit_of,
        "step": None if rung is None else rung.step,
        "accuracy": None if rung is None else rung.accuracy,
        "metrics": one.metrics,
    }


def _lines(standing: dict[str, Any], run: str) -> Iterator[str]:
    from autocompress.objective import Scoring

    yield _head(standing, run)
    if standing["used"] is not None:
        yield f"{'budget':<14}{_budget(standing)}"
    counts = standing["trials"]
    kinds = ("complete", "stopped", "failed", "trained_further")
    ended = ", ".join(f"{counts[kind]} {kind.replace('_', ' ')}" for kind in kinds)
    yield f"{'trials':<14}{ended}"
    for one in standing["running"][:_RUNNING_SHOWN]:
        score = "" if one["accuracy"] is None else Scoring(**standing["score"]).words(one["accuracy"])
        what = words.under_way(one["refit_of"], one["step"], score, one["metrics"], standing["uncompressed"])
        yield f"{'running':<14}trial {one['number']}: {what} ({one['seconds']:.0f} s)"
    if len(standing["running"]) > _RUNNING_SHOWN:
        yield f"{'':<14}and {len(standing['running']) - _RUNNING_SHOWN} more"
    if (rival := standing["rival"]) is not None:
        yield f"{'rival':<14}is searching: autocompress status {quoted(Path(rival))}"
    if (failure := standing["last_failure"]) is not None:
        yield f"{'last failure':<14}trial {failure['number']}: {failure['error']}"


def _head(standing: dict[str, Any], run: str) -> str:
    state, doing, used, left = (standing[name] for name in ("state", "doing", "seconds_used", "seconds_left"))
    after = "" if used is None else f" after {words.clock(used)}"
    if state == "searching":
        soon = "how long it will take is not known yet" if left is None else f"about {words.clock(left)} left"
        return f"searching for {words.clock(used)}, {soon}"
    if state in ("preparing", "finishing"):
        return f"{state}{f': {doing}' if doing else ''}"
    if state == "finished":
        ended = standing["ended"]
        return f"finished{after}{f': {ended}' if ended else ''}"
    return f"interrupted{after}: nobody is at work on it; `autocompress resume {run}` goes on"


def _budget(standing: dict[str, Any]) -> str:
    budget, used = standing["budget"], standing["used"]
    done = words.done(
        used["trials"], budget["trials"], used["trained_further"], used["worker_seconds"], budget["worker_seconds"]
    )
    minutes = "" if budget["minutes"] is None else f", {standing['seconds_used'] / 60:.1f}/{budget['minutes']:g} minutes"
    return done + minutes


def _show_front(console: Console, front: dict[str, Any] | None) -> None:
    """The picks of the front so far, each model once; the nearest models where none meets the limits."""
    from autocompress.objective import SCORE, Scoring

    if front is None or not (front["front"] or front["nearest"]):
        print_line(console, f"{'front':<14}no trial is complete yet")
        return
    roles: dict[int, list[str]] = {}
    for how, number in ({"recommended": front["recommended"]} | front["picks"]).items():
        roles.setdefault(number, []).append(how)
    shown = [model for model in front["front"] if model["number"] in roles] or front["nearest"]
    print_line(console, f"{'front':<14}{len(front['front'])} models, hypervolume {front['hypervolume']:.3f}")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    scoring = Scoring(**front["score"])
    for heading in ("trial", "", "size", "latency", Text(scoring.name), "policy"):
        table.add_column(heading, justify="left" if heading in ("", "policy") else "right")
    for model in shown:
        smaller, faster = words.ratios(model["metrics"], front["uncompressed"]["metrics"])
        role = ", ".join(roles.get(model["number"], ["nearest to the limits"]))
        score = scoring.words(model["metrics"][SCORE]).removeprefix(f"{scoring.name} ")
        table.add_row(*map(Text, (str(model["number"]), role, smaller, faster, score, model["policy"])))
    console.print(table)
