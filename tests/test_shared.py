"""Several searches on one study in a real PostgreSQL: together they run what was asked for, each trial once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.drivers.local import LocalDriver
from autocompress.errors import InputError, UnreachableError
from autocompress.experiment import Budget, Experiment
from autocompress.folder import RunFolder
from autocompress.opened import open_run
from autocompress.policy import Finetune, LayerPolicy, Policy
from autocompress.refitting import Refit
from autocompress.result import Rung, Status, TrialResult
from autocompress.run import resume, run_search
from autocompress.search import Asked, Search
from autocompress.shared import SharedStudy
from autocompress.study import open_database
from autocompress.testing import ToyTask
from tests.faults.processes import begin, command, ended
from tests.made import BASELINE, LAYERS
from tests.servers import Postgres, free_port
from tests.toy import call, copy_run, write_experiment

TRIALS = 30


def space(trial, layers, target):  # type: ignore[no-untyped-def]
    bits = {layer.name: trial.suggest_int(layer.name, 2, 8) for layer in layers}
    layers_policies = {name: LayerPolicy(weight_bits=value) for name, value in bits.items()}
    return Policy(layers=layers_policies, finetune=Finetune(steps=100))


EXPERIMENT = Experiment(task=ToyTask(), space=space, budget=Budget(trials=TRIALS), sampler="random")


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    url = postgres.new("studies")
    open_database(url)  # makes the tables
    return url


def searching(url: str, name: str, run: str, recorded: tuple[TrialResult, ...] = (), **changes: object) -> Search:
    shared = SharedStudy(open_database(url), name, run)
    return Search(replace(EXPERIMENT, **changes), LAYERS, BASELINE, study=shared, recorded=recorded)  # type: ignore[arg-type]


def result_of(asked: Asked) -> TrialResult:
    size = 1000.0 * sum(layer.weight_bits or 32 for layer in asked.policy.layers.values())
    return TrialResult(
        number=asked.number,
        policy=asked.policy,
        status=Status.COMPLETE,
        metrics=BASELINE | {"size_bytes": size, "latency_ms": 0.4, "accuracy": 0.9},
        rungs=(Rung(step=0, accuracy=0.9),),
        seed=asked.seed,
        started=1_790_000_000.0,
        seconds={"finetune": 1.0},
        refit_of=asked.refit_of,
    )


def work(search: Search, *, most: int = 1000) -> list[TrialResult]:
    told: list[TrialResult] = []
    while len(told) < most and (asked := search.ask()) is not None:
        told.append(result_of(asked))
        search.tell(told[-1])
    return told


def trials_of(url: str, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_database(url)).get_trials()


def test_searches_at_the_same_time_run_the_budget_together_each_trial_once(database: str) -> None:
    searches = [searching(database, "together", run) for run in ("a", "b", "c")]
    start, told = Barrier(3), dict[int, list[TrialResult]]()

    def all_of(index: int) -> None:
        start.wait()
        told[index] = work(searches[index])

    threads = [Thread(target=all_of, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [result for index in range(3) for result in told[index]]
    assert len(results) == TRIALS
    assert max(Counter(result.number for result in results).values()) == 1
    assert len({result.policy.key() for result in results}) == TRIALS
    assert all(len(one) > TRIALS / 10 for one in told.values()), "each had its part"
    stored = trials_of(database, "together")
    complete = [trial for trial in stored if trial.state is TrialState.COMPLETE and "duplicate_of" not in trial.user_attrs]
    assert {trial.number for trial in complete} == {result.number for result in results}
    assert all(trial.state.is_finished() for trial in stored)
    assert {search.reason for search in searches} == {f"the budget of {TRIALS} trials is used up"}


def few(trial, layers, target):  # type: ignore[no-untyped-def]
    return Policy(layers={"classifier": LayerPolicy(weight_bits=trial.suggest_int("bits", 2, 8))})


def test_what_another_search_has_run_is_not_run_again(database: str) -> None:
    one, other = (searching(database, "repeats", run, space=few, budget=Budget(trials=7)) for run in ("a", "b"))
    first = work(one, most=3)
    asked = other.ask()  # under way from now on
    assert asked is not None
    results = [*first, *work(one), result_of(asked)]
    other.tell(results[-1])
    results += work(other)
    assert sorted(result.policy.layers["classifier"].weight_bits or 0 for result in results) == list(range(2, 9))
    repeated = [trial for trial in trials_of(database, "repeats") if "duplicate_of" in trial.user_attrs]
    assert len(trials_of(database, "repeats")) == 7 + len(repeated) + sum(
        "surplus" in trial.user_attrs for trial in trials_of(database, "repeats")
    )


def test_each_goes_on_with_its_own_trials_when_it_is_resumed(database: str) -> None:
    one, other = (searching(database, "resumed", run) for run in ("a", "b"))
    first, theirs = work(one, most=4), work(other, most=3)
    lost, held = [one.ask(), one.ask()], other.ask()
    again = searching(database, "resumed", "a", tuple(first))
    assert [again.ask(), again.ask()] == lost, "the same again: number, policy, seed"
    for asked in lost:
        assert asked is not None
        again.tell(result_of(asked))
    assert held is not None
    other.tell(result_of(held))
    results = [*again.results, *theirs, result_of(held), *work(again), *work(other)]
    assert len({result.number for result in results}) == TRIALS


def test_refits_are_those_of_each(database: str) -> None:
    refit = Refit(models=2, steps=50)
    one, other = (searching(database, "refits", run, refit=refit, budget=Budget(trials=6)) for run in ("a", "b"))
    first = work(one, most=3)
    theirs, ours = work(other), [*first, *work(one)]
    for results in (ours, theirs):
        sampled = {result.number for result in results if result.refit_of is None}
        assert {result.refit_of for result in results} - {None} <= sampled
        assert len(results) > len(sampled) == 3
    assert len({result.number for result in (*ours, *theirs)}) == len(ours) + len(theirs)
    assert work(searching(database, "refits", "a", tuple(one.results), refit=refit, budget=Budget(trials=6))) == []


def test_a_study_of_another_network_or_with_other_objectives_is_not_joined(database: str) -> None:
    searching(database, "other", "a")
    shared = SharedStudy(open_database(database), "other", "b")
    wider = LAYERS.model_copy(update={"layers": LAYERS.layers[:-1], "groups": LAYERS.groups[:-1]})
    with pytest.raises(InputError, match="the study 'other' is of another network"):
        Search(EXPERIMENT, wider, BASELINE, study=shared)
    with pytest.raises(InputError, match="objectives cannot change"):
        searching(database, "other", "b", objectives=("size_bytes", "accuracy"))


def test_a_record_that_is_of_another_study_is_refused(database: str) -> None:
    results = tuple(work(searching(database, "first", "a"), most=5))
    with pytest.raises(InputError, match="'second' has 0 trials, the record of this run one numbered 4"):
        searching(database, "second", "a", results)


def test_two_commands_work_on_one_study_and_either_is_resumed(
    tmp_path: Path, toy_run: Path, postgres: Postgres, tracking_uri: str
) -> None:
    url = postgres.new("commands")
    open_database(url)
    file = write_experiment(tmp_path, trials=8)
    common = ["search", file, "--driver", "local", "--tracking-uri", tracking_uri, "--storage", url, "--study", "ours"]
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    folders = [tmp_path / "one", tmp_path / "two"]
    processes = [begin(command, log, *common, "--run", folder) for log, folder in zip(logs, folders, strict=True)]
    assert [ended(process) for process in processes] == [0, 0], [log.read_text() for log in logs]
    found = [{result.number for result in RunFolder(folder).results()} for folder in folders]
    assert not found[0] & found[1]
    assert len(found[0] | found[1]) == 8
    for folder in folders:
        assert not (folder / "study.log").exists()
        note = open_run(folder).note.study
        assert note is not None
        assert note.storage == f"postgresql://127.0.0.1:{postgres.port}/commands"
    assert call("resume", folders[0], "--driver", "local", "--trials", "9", "--storage", url) == 0
    assert len(RunFolder(folders[0]).results()) == len(found[0]) + 1


def test_a_new_search_does_not_slip_into_a_study(tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_experiment(tmp_path)
    searching(database, "taken", "a")
    assert call("search", file, "--run", tmp_path / "taken", "--storage", database, "--driver", "local") == 2
    told = capsys.readouterr().err
    assert "has a study 'taken'; join it by --study taken" in told
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    ("storage", "problem"),
    [
        ("redis://host/0", "is no database for a study"),
        ("study.db", "write it like postgresql://HOST/NAME"),
        ("postgresql://nobody:Secret-1@127.0.0.1:{port}/x", "cannot use the study's database postgresql://127.0.0.1:"),
    ],
)
def test_what_is_no_database_is_refused_at_once(tmp_path: Path, storage: str, problem: str) -> None:
    with pytest.raises(InputError) as refused:
        run_search(
            write_experiment(tmp_path),
            tmp_path / "run",
            driver=LocalDriver(),
            tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
            storage=storage.format(port=free_port()),
        )
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "Secret-1" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_database_that_is_gone_is_one_line(database: str, tmp_path: Path, toy_run: Path, postgres: Postgres) -> None:
    with pytest.raises(UnreachableError, match=r"cannot use the study's database postgresql://127\.0\.0\.1:.*password"):
        open_database(postgres.url("studies", password="Wrong-Secret"))
    run = tmp_path / "run"
    copy_run(toy_run, run)
    with pytest.raises(InputError, match="keeps its study in its own folder"):
        resume(run, driver=LocalDriver(), storage=database)
