"""The trials of `benchmarks/scale.py`: Ray processes that sleep where a trainer trains. Without torch, so that many fit."""

import os
import random
import time
from typing import Any

from ray import tune

from autocompress.policy import Policy
from autocompress.result import Environment, Rung, Status, TrialResult

SECONDS, SIZE = "SCALE_SECONDS", "SCALE_SIZE"
_STEPS = (0, 20, 40)
_HERE = Environment(cpu="none", cores=1, python="3", versions={})


class SleepingTrainer(tune.Trainable):
    """Speaks as `autocompress.drivers.trainer.Trainer` does. A trial takes half to one and a half times `SECONDS`."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial, self._draw = new_config, random.Random(new_config["seed"])
        self._seconds = float(os.environ[SECONDS]) * self._draw.uniform(0.5, 1.5)
        self._began: float | None = None
        self._rungs: list[Rung] = []
        self._left = self._draw.uniform(0.02, 0.6)
        return True

    def step(self) -> dict[str, Any]:
        self._began = self._began or time.time()
        done = len(self._rungs)
        if done == len(_STEPS):
            return {"result": self._result().to_json(), "done": True}
        time.sleep(self._seconds / len(_STEPS))
        accuracy = 0.95 - (0.4 - 0.1 * done) * (1 - self._left) ** 4 - self._draw.uniform(0.0, 0.01)
        self._rungs.append(Rung(step=_STEPS[done], accuracy=accuracy, seconds=time.time() - self._began))
        return {"rung": self._rungs[-1].to_json(), **({"environment": _HERE.to_json()} if done == 0 else {})}

    def _result(self) -> TrialResult:
        assert self._began is not None
        size = float(os.environ[SIZE]) * self._left
        latency = 0.2 + 0.8 * self._left
        metrics = {"size_bytes": size, "download_bytes": size, "latency_ms": latency, "latency_ratio": latency}
        return TrialResult(
            number=self._trial["number"],
            policy=Policy.from_json(self._trial["policy"]),
            status=Status.COMPLETE,
            metrics={**metrics, "macs": 1.0, "params": 1.0, "accuracy": self._rungs[-1].accuracy},
            rungs=tuple(self._rungs),
            seed=self._trial["seed"],
            started=self._began,
            seconds={"finetune": time.time() - self._began},
            environment=_HERE,
            summary="asleep",
        )
