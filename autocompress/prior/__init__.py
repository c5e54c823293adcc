"""From what each option does alone to whole policies: for a size or a time, the one of least summed divergence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from autocompress.errors import InputError
from autocompress.layer import Layers
from autocompress.objective import Limit
from autocompress.policy import Policy
from autocompress.prior.network import STAGES, network, summed_divergence, with_the_quicker_kernels
from autocompress.prior.solver import Budgets, least, solve
from autocompress.prior.weighed import State, Weighed
from autocompress.tables import CostTable, Sensitivity
from autocompress.target import Target

# Up to the one share of the largest divergence of any single option nothing is lost yet, beyond the other nothing is left:
# searched is between them.
_NOTICED = 1e-4
_LOST = 2.0
# Nor does fine-tuning bring back what is that far from the uncompressed model (about 25 points of ResNet-20 on CIFAR-10).
_LOST_NATS = 0.5
_WORSE = 4.0
_HALVINGS = 6
# No more of a limit than that is given away because predictions err.
_LARGEST_MARGIN = 0.1


@dataclass(frozen=True)
class Leaning:
    """Which way a policy leans among those of one size. As it is by default, it does not lean.

    `latency_weight` (0..1) is what a share of the time counts against the same share of the bytes; None: what has no
    budget does not count. The divergences of removed channels and zeros are multiplied by `sparsity_trade`, all
    divergences of a third of the network (by depth) by its entry of `stages`.
    """

    latency_weight: float | None = None
    sparsity_trade: float = 1.0
    stages: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.latency_weight is not None and not 0 <= self.latency_weight <= 1:
            raise InputError(f"latency_weight must be from 0 to 1, given {self.latency_weight}")
        if len(self.stages) != STAGES or not all(0 < factor < math.inf for factor in (self.sparsity_trade, *self.stages)):
            raise InputError(
                f"sparsity_trade and the {STAGES} of stages must be above 0, given {self.sparsity_trade} and {self.stages}"
            )


@dataclass(frozen=True)
class Reach:
    """What can be had within the limits: sizes and times from those of the mildest policy to the least ones."""

    size_bytes: tuple[float, float]
    latency_ms: tuple[float, float]


# Where a search begins: positions on the scales of sizes and of times. First one in which hardly anything is lost and one that
# is quicker too: two that are sure to be good and far from the uncompressed model. The mildest are hardly a gain, and the
# boldest may have lost too much.
BEGINNINGS = (
    *((0.25, 0.0), (0.3, 0.3), (0.4, 0.0), (0.45, 0.5), (0.6, 0.2), (0.5, 0.7)),
    *((0.1, 0.0), (0.65, 0.5), (0.8, 0.3), (0.7, 0.9), (0.95, 0.6), (0.15, 0.15)),
)
_NEUTRAL = Leaning()


class Prior:
    """Solves for policies by the sensitivities and costs of one network.

    Every policy keeps, by prediction, to the `limits` on `size_bytes` and `latency_ms`, with the mean error of the cost
    table to spare. Where not even the smallest can, the smallest is given: see `unreachable`. Fine-tuning and
    distillation of the policies are the default ones. Raises `UnknownNameError` for tables of another network,
    `InputError` when a layer has no usable option.
    """

    def __init__(
        self,
        layers: Layers,
        target: Target,
        sensitivity: Sensitivity,
        costs: CostTable,
        *,
        limits: Sequence[Limit] = (),
        baseline: dict[str, float] | None = None,
    ) -> None:
        self.layers = layers
        self.target = target
        self._costs = costs
        self._in_nats = sensitivity.divergence.endswith("nats")
        self._whole = network(layers, target.menu, sensitivity, costs)
        self._network = with_the_quicker_kernels(self._whole)
        bounds = {metric: _bound(metric, limits, baseline or {}) for metric in ("size_bytes", "latency_ms")}
        self._baseline = baseline or {}
        self._limits = [limit for limit in limits if limit.op == "<=" and limit.metric in bounds]
        self._bounds = Budgets(
            bounds["size_bytes"] * (1 - min(costs.size_error.mean, _LARGEST_MARGIN)),
            bounds["latency_ms"] * (1 - min(costs.latency_error.mean, _LARGEST_MARGIN)),
        )

    def solve(self, size_bytes: float | None = None, latency_ms: float | None = None, *, leaning: Leaning = _NEUTRAL) -> Policy:
        """The policy of least summed divergence that is predicted to keep to the budgets; the mildest without one.

        A budget that cannot be met gives the smallest policy: `size_bytes` and `latency_ms` of it say by how much.
        """
        budgets = Budgets(
            min(self._bounds.size, math.inf if size_bytes is None else size_bytes),
            min(self._bounds.ms, math.inf if latency_ms is None else latency_ms),
        )
        network = self._weighed(leaning)
        state = solve(network, budgets, leaning.latency_weight)
        return self.smallest() if state is None else network.policy(state)

    def smallest(self) -> Policy:
        """The policy of the fewest bytes that keeps to the limits, or that comes nearest to it."""
        return self._neutral.policy(self._smallest)

    def front(self, count: int, *, latency_weights: Sequence[float | None] = (None, 0.5)) -> list[Policy]:
        """The policies of least divergence for `count` sizes worth searching, for each of the weights; no two the same."""
        found: dict[str, Policy] = {}
        for place in range(count):
            for weight in latency_weights:
                policy = self.solve(self.size_at(place / max(count - 1, 1)), leaning=Leaning(latency_weight=weight))
                found.setdefault(policy.canonical(self.layers, self.target.menu).key(), policy)
        return list(found.values())

    def size_at(self, position: float) -> float:
        """The size at a position from 0 (the largest worth searching) to 1 (the smallest) on a logarithmic scale."""
        largest, smallest = self.searched
        return largest * math.pow(smallest / largest, position)

    def latency_at(self, position: float) -> float:
        """The time at a position from 0 (that of the mildest policy) to 1 (the least worth searching), as for sizes."""
        slowest, fastest = self.reach.latency_ms[0], self._fastest
        return slowest * math.pow(min(1.0, fastest / slowest), position)

    @cached_property
    def searched(self) -> tuple[float, float]:
        """The largest and the smallest size worth searching, within the limits.

        The larger of two models that lose nothing is never on the front, and one that has lost all never gets it back.
        """
        noticed = min(_NOTICED * self._neutral.largest_divergence, self._lost / _WORSE)
        high, low = self.reach.size_bytes
        largest, smallest = (self._where(loss, high, low, self.solve) for loss in (noticed, self._lost))
        return largest, smallest

    @cached_property
    def _fastest(self) -> float:
        return self._where(self._lost, *self.reach.latency_ms, lambda ms: self.solve(latency_ms=ms))

    @cached_property
    def _lost(self) -> float:
        lost = min(_LOST * self._neutral.largest_divergence, _LOST_NATS if self._in_nats else math.inf)
        # Where limits leave nothing so mild, what is a little less mild is searched.
        return max(lost, _WORSE * self.divergence(self.solve()))

    @cached_property
    def reach(self) -> Reach:
        """The sizes and times that can be had within the limits."""
        policies = self.solve(), self.smallest()
        fastest = least(self._neutral, Budgets(size=self._bounds.size), size=False)
        return Reach(
            size_bytes=(self.size_bytes(policies[0]), self.size_bytes(policies[1])),
            latency_ms=(self.latency_ms(policies[0]), self._neutral.worth(fastest).ms),
        )

    @property
    def unreachable(self) -> tuple[Limit, ...]:
        """The limits that not even the smallest and the fastest policy keep to, by prediction."""
        smallest, fastest = (least(self._neutral, Budgets(), size=size) for size in (True, False))
        figures = {"size_bytes": self._neutral.worth(smallest).size, "latency_ms": self._neutral.worth(fastest).ms}
        return tuple(limit for limit in self._limits if figures[limit.metric] > limit.bound(self._baseline))

    def size_bytes(self, policy: Policy) -> float:
        """The predicted bytes of the exported file."""
        return self._costs.size_bytes(policy, self.layers)

    def latency_ms(self, policy: Policy) -> float:
        """The predicted milliseconds of the exported file."""
        return self._costs.latency_ms(policy, self.layers)

    def divergence(self, policy: Policy) -> float:
        """The summed divergence of a policy; zeros between the shares that were measured are interpolated."""
        return summed_divergence(self._whole, policy.canonical(self.layers, self.target.menu))

    def boldness(self, policy: Policy) -> float:
        """What a policy loses as a share of the most that is worth searching, summed divergences: 0..1."""
        return min(1.0, self.divergence(policy) / self._lost)

    def _where(self, divergence: float, high: float, low: float, solve: Callable[[float], Policy]) -> float:
        """The budget, from `high` to `low`, at which the least summed divergence of what `solve` gives comes to so much."""
        if self.divergence(solve(high)) >= divergence:
            return high
        if self.divergence(solve(low)) <= divergence:
            return low
        for _ in range(_HALVINGS):
            budget = math.sqrt(high * low)
            high, low = (budget, low) if self.divergence(solve(budget)) <= divergence else (high, budget)
        return low

    @cached_property
    def _neutral(self) -> Weighed:
        return self._weighed(_NEUTRAL)

    @cached_property
    def _smallest(self) -> State:
        return least(self._neutral, self._bounds, size=True)

    def _weighed(self, leaning: Leaning) -> Weighed:
        trade, stages = leaning.sparsity_trade, leaning.stages
        of_cuts = [cut.divergence * trade * stages[cut.stage] for cut in self._network.cuts]
        of_parts = [(part.bits + part.zeros * trade) * stages[part.stage] for part in self._network.parts]
        return Weighed(self._network, of_cuts, of_parts)


def _bound(metric: str, limits: Sequence[Limit], baseline: dict[str, float]) -> float:
    bounds = [limit.bound(baseline) for limit in limits if limit.op == "<=" and limit.metric == metric]
    return float(min(bounds, default=math.inf))
