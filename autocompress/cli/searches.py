"""Commands that search: `search`, `resume`, `baseline`."""

from pathlib import Path

import click
from rich.console import Console

from autocompress.cli.front import show_front
from autocompress.cli.shared import State, driver_named, json_option, new_console, print_json, print_line
from autocompress.credentials import secrets_of


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="The run folder. [default: runs/<experiment>-<date>-<time>]")
@click.option("--space", help="A search space instead of the experiment's: uniform, per_stage, ... or a .py file.")
@click.option("--trials", type=int, help="End after so many trials (with --minutes: whichever comes first).")
@click.option("--minutes", type=float, help="End after so many minutes.")
@click.option("--sampler", help="tpe, nsga2 or random, instead of the experiment's.")
@click.option("--driver", default="tune", show_default=True, help="tune: many trials at once, on Ray. local: one by one.")
@click.option("--address", help="Join the Ray cluster at this address (`auto` on one of its nodes).")
@click.option("--concurrency", type=int, help="At most so many trials at once.")
@click.option("--tracking-uri", help="Where MLflow keeps its runs. [default: sqlite:///<this folder>/mlflow.db]")
@click.option("--storage", help="Keep the study in this database, e.g. postgresql://HOST/NAME, instead of the run folder.")
@click.option("--study", help="Its name there; the search joins one that exists. [default: the run folder's name]")
@click.option("--artifacts", help="Workers keep the files of trials there: a folder of all machines, s3://BUCKET/FOLDER, ...")
@click.option("--seed", type=int, help="A seed instead of the experiment's.")
@click.option("--limit", "limits", multiple=True, help="Instead of the experiment's, e.g. 'size <= 100 kB'. May be repeated.")
@click.option("--target", "targets", multiple=True, help="Where it will run, e.g. openvino-cpu:2threads. May be repeated.")
@click.option("--costs", type=click.Path(path_type=Path), help="A cost table from `autocompress profile`, perhaps elsewhere.")
@click.option("--quiet", is_flag=True, help="No progress, only the front.")
@json_option("A line of JSON for each finished trial, and one for the front.")
@click.pass_obj
def search(
    state: State,
    *,
    file: Path,
    run: Path | None,
    space: str | None,
    trials: int | None,
    minutes: float | None,
    sampler: str | None,
    driver: str,
    address: str | None,
    concurrency: int | None,
    tracking_uri: str | None,
    storage: str | None,
    study: str | None,
    artifacts: str | None,
    seed: int | None,
    limits: tuple[str, ...],
    targets: tuple[str, ...],
    costs: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Search for compressed models of the experiment in FILE."""
    from autocompress.opened import Options
    from autocompress.progress import open_view
    from autocompress.run import run_search, usual_folder
    from autocompress.trackers.mlflow_run import default_uri

    folder = run or usual_folder(file)
    state.log, state.secrets = folder / "autocompress.log", secrets_of(tracking_uri, storage, artifacts)
    chosen = driver_named(driver, address, concurrency)
    options = Options(
        space=space,
        trials=trials,
        minutes=minutes,
        sampler=sampler,
        seed=seed,
        limits=limits,
        costs=None if costs is None else str(costs),
        targets=targets,
    )
    console = new_console()
    with open_view(console, quiet=quiet, heard=print_json if as_json else None) as view:
        run_search(
            file,
            folder,
            driver=chosen,
            tracking_uri=tracking_uri or default_uri(Path.cwd()),
            options=options,
            storage=storage,
            study=study,
            artifacts=artifacts,
            view=view,
        )
    show_front(console, folder, as_json=as_json)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--trials", type=int, help="End when there are so many trials in all.")
@click.option("--minutes", type=float, help="End after so many minutes from now.")
@click.option("--driver", default="tune", show_default=True, help="tune: many trials at once, on Ray. local: one by one.")
@click.option("--address", help="Join the Ray cluster at this address (`auto` on one of its nodes).")
@click.option("--concurrency", type=int, help="At most so many trials at once.")
@click.option("--tracking-uri", help="Log to another MLflow than before, or to the same with the credentials it needs.")
@click.option("--storage", help="The database that has the study, with the credentials it needs: they are not kept.")
@click.option("--artifacts", help="The storage of the trials' files, with the credentials it needs, or where it is now.")
@click.option("--quiet", is_flag=True, help="No progress, only the front.")
@json_option("A line of JSON for each finished trial, and one for the front.")
@click.pass_obj
def resume(
    state: State,
    *,
    run: Path,
    trials: int | None,
    minutes: float | None,
    driver: str,
    address: str | None,
    concurrency: int | None,
    tracking_uri: str | None,
    storage: str | None,
    artifacts: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Go on with an interrupted search, or raise its budget.

    Of a budget in minutes what is left is left: a search whose time is up is only measured and reported, unless it is given
    more.
    """
    from autocompress.progress import open_view
    from autocompress.run import resume as go_on

    state.log, state.secrets = run / "autocompress.log", secrets_of(tracking_uri, storage, artifacts)
    chosen = driver_named(driver, address, concurrency)
    console = new_console()
    with open_view(console, quiet=quiet, heard=print_json if as_json else None) as view:
        go_on(
            run,
            driver=chosen,
            trials=trials,
            minutes=minutes,
            tracking_uri=tracking_uri,
            storage=storage,
            artifacts=artifacts,
            view=view,
        )
    show_front(console, run, as_json=as_json)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--rivals", help="Some of uniform,random,nsga2,tpe,nsga2-warm,tpe-warm,int8,uncompressed. [default: all]")
@click.option("--worker-seconds", type=float, help="What each may spend. [default: as much as the run has spent]")
@click.option("--driver", default="tune", show_default=True, help="tune: many trials at once, on Ray. local: one by one.")
@click.option("--address", help="Join the Ray cluster at this address (`auto` on one of its nodes).")
@click.option("--concurrency", type=int, help="At most so many trials at once.")
@click.option("--tracking-uri", help="Log to another MLflow than the run.")
@click.option("--quiet", is_flag=True, help="No progress, only how they compare.")
@json_option("A line of JSON for each finished trial, and one for how they compare.")
@click.pass_obj
def baseline(
    state: State,
    *,
    run: Path,
    rivals: str | None,
    worker_seconds: float | None,
    driver: str,
    address: str | None,
    concurrency: int | None,
    tracking_uri: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Give plain searchers the compute that a run had, and compare.

    Each is a run of its own in RUN/baselines; the report of RUN shows them all. Called again it goes on.
    """
    from autocompress.baselines import run_baselines
    from autocompress.progress import open_view

    state.log, state.secrets = run / "autocompress.log", secrets_of(tracking_uri)
    chosen = driver_named(driver, address, concurrency)
    console = new_console()
    with open_view(console, quiet=quiet, heard=print_json if as_json else None) as view:
        run_baselines(
            run,
            driver=chosen,
            rivals=None if rivals is None else rivals.split(","),
            worker_seconds=worker_seconds,
            tracking_uri=tracking_uri,
            view=view,
        )
    _show_standings(console, run, as_json=as_json)


def _show_standings(console: Console, folder: Path, *, as_json: bool) -> None:
    from autocompress.opened import open_run
    from autocompress.report.evidence import evidence_of
    from autocompress.report.landmarks import landmarks, plain_words
    from autocompress.report.standings import standings_table
    from autocompress.report.worth import control, verdict

    run = open_run(folder)
    evidence, front = evidence_of(run.folder), run.front()
    worth = evidence.worth
    assert worth is not None
    plain = plain_words(landmarks(evidence.rivals, run.folder.results(), front, run.baseline().layers), front)
    told = [line for line in (verdict(worth), plain, control(worth, front)) if line]
    if as_json:
        print_json(
            {"event": "standings", "run": str(folder), "rivals": [one.model_dump() for one in worth.standings], "verdict": told}
        )
        return
    console.print(standings_table(worth.standings))
    for line in told:
        print_line(console, line)
    print_line(console, f"look at the curves {folder / 'front.html'}")
