"""The cheapest plan of each sort that keeps a 95th percentile at a rate.

First in closed form (large_pools.py): for every way to place the stages, replicas are added where they cut most of the
percentile for their price. Then, if no pool has more than `SEAM` replicas, by simulation: the few cheapest are given
replicas until the simulated percentile is kept, and lose those that it does not need. Above the seam, and for plans so busy
that a run would end before their queues have settled, the closed form stands, with the error that it has at the seam as its
interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.advisor.large_pools import FULL, Response, respond, service_rates
from benchmarks.advisor.plans import Market, Plan, Sort
from benchmarks.advisor.simulation import WARM_UP, Estimate, simulate

SEAM = 64
"""Replicas in the largest pool, up to which plans are simulated."""

TOO_MANY, TOO_FEW = 0.12, 0.03
"""Replicas that the closed form asks for beyond what the simulation does, and short of it, at most, as shares; a test at the seam
holds them. It is used beyond, where both errors are the same or smaller."""

# How many plans of a sort are simulated, in the order of their price in closed form.
_SIMULATED_PLANS = 2
_FEWEST_REQUESTS, _MOST_REQUESTS = 1000, 20_000
_RELAXATIONS = 3
# A step of the search in closed form, as a share of a pool: counts are exact to that.
_STEP = 0.004
# Utilisation of the busiest group, below which more machines make nothing quicker.
_IDLE = 0.01


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted, and how much the simulation may do for it.

    Attributes:
        rate: Requests a second, one picture each.
        p95_seconds: Of the latency.
        calls: Of networks, in a simulation.
    """

    rate: float
    p95_seconds: float
    calls: int = 100_000


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The cheapest plan of a sort.

    Attributes:
        plan: Without spare machines.
        spares: By group, against losses.
        sizing_rate: What it was sized for: the load grows while machines start.
        p95: Of the latency at the sizing rate.
        utilisations: By group: the sizing rate over what the group could do at most.
        is_simulated: Else in closed form.
        cost: Of a thousand pictures at the goal's rate, with spares.
        cost_low, cost_high: How far the cost may be off, for what the simulation or the closed form does not know better.
    """

    plan: Plan
    spares: tuple[int, ...]
    sizing_rate: float
    p95: Estimate
    utilisations: dict[str, float]
    is_simulated: bool
    cost: float
    cost_low: float
    cost_high: float

    @property
    def bottleneck(self) -> str:
        """The group that has least left."""
        return max(self.utilisations, key=lambda name: self.utilisations[name])


def advise(market: Market, goal: Goal) -> dict[Sort, Advice | None]:
    """The cheapest plan of each sort; None where no number of machines can keep the percentile."""
    found: dict[Sort, Advice | None] = {}
    for sort in Sort:
        outlines = Outlines(market, goal, sort).cheapest()
        advices = [_refine(market, goal, plan) for plan in outlines]
        kept = [advice for advice in advices if advice is not None]
        found[sort] = min(kept, key=lambda advice: advice.cost) if kept else None
    return found


def quickest(market: Market) -> float:
    """Seconds of a picture alone, on the machines that are quickest for it: no percentile can be below."""
    return min(_alone(market, plan) for plan in market.plans())


def _alone(market: Market, plan: Plan) -> float:
    """Seconds of the longest sort of request, with nobody else there."""
    pools = market.pools(plan)
    sorts = range(len(market.shares))
    work = [sum(each.evaluations[sort] * each.seconds[sort][0] for pool in pools for each in pool.phases) for sort in sorts]
    return max(work) + sum(pool.delay_seconds for pool in pools)


class Outlines:
    """Plans of a sort, with the counts that the closed form gives them."""

    def __init__(self, market: Market, goal: Goal, sort: Sort) -> None:
        self._market, self._goal, self._sort = market, goal, sort
        self._responses: dict[tuple[object, ...], Response | None] = {}

    def cheapest(self) -> list[Plan]:
        """The few that cost least, cheapest first."""
        candidates = [plan for plan in self._market.plans() if plan.sort is self._sort]
        bounds = sorted(((self._least_cost(plan), index) for index, plan in enumerate(candidates)), key=lambda each: each)
        found: list[tuple[float, Plan]] = []
        for bound, index in bounds:
            if len(found) >= _SIMULATED_PLANS and bound > sorted(cost for cost, _ in found)[_SIMULATED_PLANS - 1]:
                break
            plan = self.counted(candidates[index])
            if plan is not None:
                found.append((self._market.price_per_hour(plan, self._goal.rate), plan))
        return [plan for _, plan in sorted(found, key=lambda each: each[0])[:_SIMULATED_PLANS]]

    def fewest(self, plan: Plan) -> Plan:
        """What just keeps up with the rate."""
        rate = self._market.sizing_rate(plan, self._goal.rate)
        rates = (service_rates(pool.phases, self._market.shares)[-1] for pool in self._market.pools(plan))
        return plan.with_replicas([math.floor(rate / (FULL * each)) + 1 for each in rates])

    def _least_cost(self, plan: Plan) -> float:
        return self._market.price_per_hour(self.fewest(plan), self._goal.rate)

    def counted(self, plan: Plan) -> Plan | None:
        """The plan with counts that keep the percentile, or None if none does."""
        rate = self._market.sizing_rate(plan, self._goal.rate)
        if self.p95(self.endless(plan), rate) > self._goal.p95_seconds:
            return None
        plan = self.fewest(plan)
        while self.p95(plan, rate) > self._goal.p95_seconds:
            plan = self._grown(plan, rate)
        while smaller := next((each for each in self._smaller(plan) if self.p95(each, rate) <= self._goal.p95_seconds), None):
            plan = smaller
        return plan

    def p95(self, plan: Plan, rate: float) -> float:
        """In closed form; infinite if the plan cannot keep up."""
        total = np.zeros(1)
        for index, (group, pool) in enumerate(zip(plan.groups, self._market.pools(plan), strict=True)):
            key = index, group, pool.delay_seconds, rate
            if key not in self._responses:
                self._responses[key] = respond(pool, rate, self._market.shares, seed=index)
            response = self._responses[key]
            if response is None:
                return math.inf
            total = total + response.seconds
        return float(np.quantile(total, 0.95))

    def endless(self, plan: Plan) -> Plan:
        """So many replicas that nobody ever waits."""
        fewest = self.fewest(plan).replicas
        return plan.with_replicas([100 * count + 100 for count in fewest])

    def _bigger(self, plan: Plan) -> Iterator[Plan]:
        for index, count in enumerate(plan.replicas):
            yield _changed(plan, index, math.ceil(count * _STEP))

    def _smaller(self, plan: Plan) -> Iterator[Plan]:
        for index, count in enumerate(plan.replicas):
            if count > 1:
                yield _changed(plan, index, -math.ceil(count * _STEP / 2))

    def _grown(self, plan: Plan, rate: float) -> Plan:
        """More of the group of which a second cut from the percentile costs least; of the busiest, where none cuts any."""
        price, p95 = self._market.price_per_hour(plan, rate), self.p95(plan, rate)
        prices = {each: self._market.price_per_hour(each, rate) - price for each in self._bigger(plan)}
        worth = {each: more / cut for each, more in prices.items() if (cut := p95 - self.p95(each, rate)) > 0}
        if worth:
            return min(worth, key=lambda each: worth[each])
        busy = utilisations(self._market, plan, rate)
        return list(prices)[max(range(len(busy)), key=lambda index: busy[index])]


def _changed(plan: Plan, index: int, by: int) -> Plan:
    replicas = list(plan.replicas)
    replicas[index] += by
    return plan.with_replicas(replicas)


def utilisations(market: Market, plan: Plan, rate: float) -> list[float]:
    """By group: a rate over what it could do at most, with full calls."""
    pools = market.pools(plan)
    return [rate / (pool.replicas * float(service_rates(pool.phases, market.shares)[-1])) for pool in pools]


class Judge:
    """Percentiles of one outline's plans, each simulated or computed once."""

    def __init__(self, market: Market, goal: Goal, outline: Plan, *, simulated: bool) -> None:
        self.rate = market.sizing_rate(outline, goal.rate)
        self._simulated = simulated
        self._market, self._goal = market, goal
        self._outlines = Outlines(market, goal, outline.sort)
        self._known: dict[tuple[int, ...], Estimate] = {}

    def p95(self, plan: Plan) -> Estimate:
        """Of the latency; infinite if the plan cannot keep up."""
        if plan.replicas not in self._known:
            self._known[plan.replicas] = self._judge(plan)
        return self._known[plan.replicas]

    def _judge(self, plan: Plan) -> Estimate:
        value = self._outlines.p95(plan, self.rate)
        if math.isinf(value):
            return Estimate(math.inf, 0.0)
        if not self.is_simulated(plan):
            return Estimate(value, 0.0)
        pools = self._market.pools(plan)
        return simulate(pools, self.rate, self._requests(plan), shares=self._market.shares, seed=1).p95

    def is_simulated(self, plan: Plan) -> bool:
        """Else in closed form: pools are too large, or so busy that their queues would still be growing when the run ends.

        A queue forgets its start in about 4 / (capacity * (1 - utilisation)^2) seconds (the relaxation time of M/M/c in heavy
        traffic); a run is to be some of these.
        """
        busy = max(self.utilisations(plan).values())
        settled = _RELAXATIONS * 4 * busy / (1 - busy) ** 2 if busy < 1 else math.inf
        return self._simulated and (1 - WARM_UP) * self._requests(plan) >= settled

    def _requests(self, plan: Plan) -> int:
        """As many as the goal's calls are for."""
        evaluations = sum(max(phase.evaluations) for pool in self._market.pools(plan) for phase in pool.phases)
        return min(max(self._goal.calls // evaluations, _FEWEST_REQUESTS), _MOST_REQUESTS)

    def utilisations(self, plan: Plan) -> dict[str, float]:
        """By group: the rate over what it could do at most, with full calls."""
        names = (group.name for group in plan.groups)
        return dict(zip(names, utilisations(self._market, plan, self.rate), strict=True))

    def fitted(self, plan: Plan, is_kept: Callable[[Estimate], bool]) -> Plan | None:
        """More of the busiest until the percentile is kept; then fewer of each, the dearest first, as long as it is.

        None where idle machines do not keep it either: the percentile is closer to what a picture alone takes than the interval.
        """
        while not is_kept(self.p95(plan)):
            busy = list(self.utilisations(plan).values())
            if max(busy) < _IDLE:
                return None
            plan = _changed(plan, busy.index(max(busy)), self._step(plan, busy.index(max(busy))))
        for index in self._dearest_first(plan):
            while plan.replicas[index] > (step := self._step(plan, index)):
                fewer = _changed(plan, index, -step)
                if not is_kept(self.p95(fewer)):
                    break
                plan = fewer
        return plan

    def _step(self, plan: Plan, index: int) -> int:
        """One replica where it is simulated, else a share of the pool."""
        return 1 if self._simulated else math.ceil(_STEP * plan.replicas[index])

    def _dearest_first(self, plan: Plan) -> list[int]:
        prices = [self._market.assumptions.machines[group.machine].price_per_hour for group in plan.groups]
        return sorted(range(len(prices)), key=lambda index: -prices[index])


def _refine(market: Market, goal: Goal, outline: Plan) -> Advice | None:
    """The outline with the counts that its judge gives it."""
    judge = Judge(market, goal, outline, simulated=max(outline.replicas) <= SEAM)
    plan = judge.fitted(outline, lambda p95: p95.value <= goal.p95_seconds)
    if plan is None:
        return None
    cost = market.cost_per_thousand(plan, goal.rate, market.spares(plan))
    low, high = _cost_range(market, goal, judge, plan, cost)
    return Advice(
        plan=plan,
        spares=market.spares(plan),
        sizing_rate=judge.rate,
        p95=judge.p95(plan),
        utilisations=judge.utilisations(plan),
        is_simulated=judge.is_simulated(plan),
        cost=cost,
        cost_low=low,
        cost_high=high,
    )


def _cost_range(market: Market, goal: Goal, judge: Judge, plan: Plan, cost: float) -> tuple[float, float]:
    """The cost of plans that keep the lower and the upper end of the simulated percentile.

    Without a simulation from the closed form's error, and no less than what just keeps up with the rate.
    """
    if not judge.is_simulated(plan):
        least = Outlines(market, goal, plan.sort).fewest(plan)
        return max(cost / (1 + TOO_MANY), market.cost_per_thousand(least, goal.rate, market.spares(least))), cost * (1 + TOO_FEW)
    keeps = (lambda p95: p95.low <= goal.p95_seconds), (lambda p95: p95.high <= goal.p95_seconds)
    ends = [judge.fitted(plan, each) for each in keeps]
    costs = [math.inf if end is None else market.cost_per_thousand(end, goal.rate, market.spares(end)) for end in ends]
    return min(cost, *costs), max(cost, *costs)
