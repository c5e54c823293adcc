"""The trainer: a Ray process that carries out one trial after another.

Only strings, bytes and arrays come in and go out; the model is built here, from the experiment file.
"""

import shutil
from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import ray
from ray import tune

from autocompress import gpu
from autocompress.artifacts import InStorage
from autocompress.drivers.supplies import Supplies
from autocompress.drivers.timing import places_of
from autocompress.errors import StorageError, TrialError
from autocompress.policy import Policy
from autocompress.result import Rung, TrialResult
from autocompress.runtimes.machine import environment
from autocompress.target import Target
from autocompress.trial import trial_rungs
from autocompress.trial_files import CHECKPOINT, checked_checkpoint, checkpoint_of

_SHELF_SECONDS = 300.0


class Trainer(tune.Trainable):
    """One call of `step` takes the trial to its next rung.

    A trial is `{"shelf": name of the actor, "number": int, "policy": JSON, "seed": int, "refit_of": int | None,
    "checkpoint_sha256": str | None, "gpus": float, "gpu_cap": float}`, the last two a `packing.Slice`. A step gives `{"rung":
    JSON}`, at the first rung with the `"environment"` (JSON). The last one gives `{"result": JSON, "done": True}`, when the
    trial's files are already on the shelf or in the storage of the run, or, when the trial could not even begin, `{"error":
    one line, "done": True}`, or, when the run folder does not take its files, `{"unkept": one line, "done": True}`. Raises
    `StorageError` when the storage does not take or give files.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._shelf = cast(Any, ray.get_actor(config["shelf"]))
        equipment = _answer(self._shelf.equip.remote())
        self._artifacts: InStorage | None = equipment["artifacts"]
        self._supplies: Supplies = _answer(equipment["supplies"])
        self._places = places_of(self._supplies.baseline.target, equipment["lanes"], equipment["baseline_files"])
        self._supplies.take_place()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            rung = next(self._rungs)
        except StopIteration as end:
            result: TrialResult = end.value
        except StorageError:  # Tune begins the trial again
            raise
        except TrialError as error:
            return {"error": str(error), "done": True}
        else:
            return {"rung": rung.to_json(), **({"environment": self._environment} if rung.step == 0 else {})}
        files = {path.name: path.read_bytes() for path in self._folder.iterdir()} if self._folder.is_dir() else {}
        if self._artifacts is not None:
            self._artifacts.keep(result.number, files)
        elif (problem := _answer(self._shelf.keep.remote(result.number, files))) is not None:
            return {"unkept": problem, "done": True}
        return {"result": result.to_json(), "done": True}

    def cleanup(self) -> None:
        self._rungs.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, config: dict[str, Any]) -> None:
        self._folder = Path(self.logdir) / "files"
        self._rungs = self._carry_out(config)

    # A generator, so that whatever fails does so in a step: there Tune tells what, and tries again. (It would wait for ever
    # for a trial whose `reset_config` has failed.)
    def _carry_out(self, config: dict[str, Any]) -> Generator[Rung, None, TrialResult]:
        device = gpu.device_for(config["gpus"])
        gpu.check(device)  # an earlier trial may have left this process with a GPU that answers nothing more
        gpu.cap(device, config["gpu_cap"])
        return (
            yield from trial_rungs(
                Policy.from_json(config["policy"]),
                self._supplies.task,
                Target.from_json(self._supplies.target),
                baseline=self._supplies.baseline,
                data=self._supplies.data,
                number=config["number"],
                seed=config["seed"],
                folder=self._folder,
                places=self._places,
                rungs=self._supplies.rungs,
                screened=self._supplies.halving and config["refit_of"] is None,
                checkpoint=self._checkpoint_of(config["refit_of"], config["checkpoint_sha256"]),
                device=device,
            )
        )

    def _checkpoint_of(self, number: int | None, sha256: str | None) -> bytes | None:
        if number is None:
            return None
        if self._artifacts is not None:
            return checkpoint_of(self._artifacts, number, sha256)
        return checked_checkpoint(_answer(self._shelf.give.remote(number, CHECKPOINT)), number, sha256)

    @cached_property
    def _environment(self) -> str:
        return environment().to_json()


def _answer(reference: Any) -> Any:
    """What comes of the driver's machine, within a time that is long for it."""
    return ray.get(reference, timeout=_SHELF_SECONDS)
