from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState, create_trial

from autocompress.errors import RunFolderError
from autocompress.folder import RunFolder
from autocompress.importance import LEAST_TRIALS, MOST_PARAMETERS, Importance, importance_of, write_importance
from autocompress.study import STUDY_NAME
from tests.made import OBJECTIVES

SIZE, LATENCY, ACCURACY = (objective.metric for objective in OBJECTIVES)


def study_in(folder: Path, *, sampler: str = "random", seed: int = 0) -> optuna.Study:
    samplers = {
        "random": optuna.samplers.RandomSampler(seed=seed),
        "tpe": optuna.samplers.TPESampler(multivariate=True, seed=seed),
    }
    return optuna.create_study(
        study_name=STUDY_NAME,
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        sampler=samplers[sampler],
        directions=["minimize", "minimize", "maximize"],
    )


def knobs(trial: Trial) -> tuple[float, float, float]:
    """Bits make the size, channels the latency, steps and a little of the teacher the accuracy; one knob does nothing."""
    bits = trial.suggest_int("weight_bits", 2, 8)
    share = trial.suggest_float("channel_sparsity", 0.0, 0.75)
    steps = trial.suggest_categorical("steps", [0, 100, 400])
    teacher = trial.suggest_categorical("distill/temperature", [None, 4.0])
    trial.suggest_float("idle", 0.0, 1.0)
    trial.suggest_categorical("fixed", ["always"])
    return 100.0 * bits + 40 * (1 - share), 1 - share, 0.9 + steps / 10_000 + (0.004 if teacher else 0.0)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_knob_that_matters_comes_first(tmp_path: Path, sampler: str) -> None:
    study_in(tmp_path, sampler=sampler).optimize(knobs, n_trials=40)
    found = importance_of(tmp_path / "study.log", OBJECTIVES)
    assert found.trials == 40
    assert not found.missing
    first = {metric: next(iter(shares)) for metric, shares in found.shares.items()}
    assert first == {SIZE: "weight_bits", LATENCY: "channel_sparsity", ACCURACY: "steps"}
    for shares in found.shares.values():
        assert set(shares) == {"weight_bits", "channel_sparsity", "steps", "distill/temperature", "idle"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert max(shares.values()) > 0.7
        assert shares["idle"] < 0.1


def test_the_same_seed_gives_the_same_shares_and_the_study_stays_as_it_was(tmp_path: Path) -> None:
    study_in(tmp_path).optimize(knobs, n_trials=30)
    before = (tmp_path / "study.log").read_bytes()
    first, again, other = (importance_of(tmp_path / "study.log", OBJECTIVES, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert (tmp_path / "study.log").read_bytes() == before


def test_an_objective_that_never_changes_says_so(tmp_path: Path) -> None:
    study_in(tmp_path).optimize(lambda trial: (*knobs(trial)[:2], 0.9), n_trials=25)
    found = importance_of(tmp_path / "study.log", OBJECTIVES)
    assert set(found.shares) == {SIZE, LATENCY}
    assert found.missing == {ACCURACY: "it is the same in all 25 trials"}


def test_only_sampled_and_complete_trials_count(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    study.optimize(knobs, n_trials=LEAST_TRIALS)
    expected = importance_of(tmp_path / "study.log", OBJECTIVES)
    for trial in study.get_trials():
        shared: dict[str, Any] = {"params": trial.params, "distributions": trial.distributions}
        study.add_trial(create_trial(**shared, values=[1e9, 1e9, 0.0], user_attrs={"refit_of": trial.number}))
        study.add_trial(create_trial(**shared, values=[1e9, 1e9, 0.0], user_attrs={"duplicate_of": trial.number}))
        study.add_trial(create_trial(**shared, state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert importance_of(tmp_path / "study.log", OBJECTIVES) == expected


def test_too_few_trials_are_the_reason(tmp_path: Path) -> None:
    study_in(tmp_path).optimize(knobs, n_trials=LEAST_TRIALS - 1)
    found = importance_of(tmp_path / "study.log", OBJECTIVES)
    assert not found.shares
    assert set(found.missing) == {SIZE, LATENCY, ACCURACY}
    assert found.missing[SIZE] == "only 19 trials were sampled and completed, at least 20 are needed"


def test_too_many_knobs_are_the_reason(tmp_path: Path) -> None:
    def many(trial: Trial) -> tuple[float, float, float]:
        values = [trial.suggest_float(f"layer{place}/offset", 0, 1) for place in range(MOST_PARAMETERS + 1)]
        return sum(values), values[0], values[1]

    study_in(tmp_path).optimize(many, n_trials=LEAST_TRIALS)
    found = importance_of(tmp_path / "study.log", OBJECTIVES)
    assert found.missing[SIZE] == "the space has 26 parameters, more than 25 cannot be told apart"


def test_a_single_knob_has_no_share_to_compare(tmp_path: Path) -> None:
    def one(trial: Trial) -> tuple[float, float, float]:
        return (trial.suggest_float("share", 0, 1),) * 3

    study_in(tmp_path).optimize(one, n_trials=LEAST_TRIALS)
    assert "fewer than two parameters" in importance_of(tmp_path / "study.log", OBJECTIVES).missing[SIZE]


def test_it_is_stored_in_the_run_folder_and_read_again(tmp_path: Path) -> None:
    study_in(tmp_path).optimize(knobs, n_trials=LEAST_TRIALS)
    folder = RunFolder(tmp_path)
    stored = write_importance(folder, OBJECTIVES)
    again = Importance.from_json(folder.importance.read_bytes())
    assert again == stored
    assert {metric: list(shares) for metric, shares in again.shares.items()} == {
        metric: list(shares) for metric, shares in stored.shares.items()
    }, "the order is kept"


@pytest.mark.parametrize("content", [None, ""])
def test_without_a_study_there_is_only_a_reason(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "study.log").write_text(content)
    found = importance_of(tmp_path / "study.log", OBJECTIVES)
    assert found.trials == 0
    assert set(found.missing) == {SIZE, LATENCY, ACCURACY}
    assert (tmp_path / "study.log").exists() == (content is not None)


def test_a_damaged_study_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.log").write_text('not json\n{"op_code": 0}\n')
    with pytest.raises(RunFolderError, match="is damaged"):
        importance_of(tmp_path / "study.log", OBJECTIVES)
