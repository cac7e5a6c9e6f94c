"""Plans: which machines, how many of each, and what each of them does. All options are pools of replicas behind gateways."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import product
from statistics import NormalDist

from benchmarks.advisor.machines import Assumptions
from benchmarks.advisor.service_times import STAGES, ServiceTimes, StageName
from benchmarks.advisor.simulation import Lognormal, Phase, Pool

SECONDS_PER_HOUR = 3600

# From here on the normal distribution's quantile is that of Poisson's to one.
_NEARLY_NORMAL = 300


class Sort(StrEnum):
    """The options that are compared."""

    MONOLITH = "monoliths"
    ONE_KIND = "split, one kind of machine"
    MIXED = "split, mixed machines"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Machines that are alike and do the same.

    Attributes:
        stages: Those that each of them runs: all three in a monolith, else one.
        machine: A name in the table of machines.
    """

    stages: tuple[StageName, ...]
    machine: str
    replicas: int = 1

    @property
    def name(self) -> str:
        return self.stages[0] if len(self.stages) == 1 else "monolith"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Groups in the order in which a request passes them."""

    sort: Sort
    groups: tuple[Group, ...]

    def with_replicas(self, replicas: Sequence[int]) -> Plan:
        groups = tuple(replace(group, replicas=count) for group, count in zip(self.groups, replicas, strict=True))
        return replace(self, groups=groups)

    @property
    def replicas(self) -> tuple[int, ...]:
        return tuple(group.replicas for group in self.groups)


@dataclass(frozen=True)
class Market:
    """Measured times and assumed machines: what turns a plan into pools and a price."""

    times: ServiceTimes
    assumptions: Assumptions

    @cached_property
    def shares(self) -> tuple[float, ...]:
        return tuple(request.share for request in self.times.requests)

    def plans(self) -> Iterator[Plan]:
        """Every way to place the stages where their memory suffices, with one replica each."""
        machines = self.assumptions.machines
        for name in machines:
            if self.fits(STAGES, name):
                yield Plan(sort=Sort.MONOLITH, groups=(Group(stages=STAGES, machine=name),))
        for names in product(machines, repeat=len(STAGES)):
            if all(self.fits((stage,), name) for stage, name in zip(STAGES, names, strict=True)):
                sort = Sort.ONE_KIND if len(set(names)) == 1 else Sort.MIXED
                groups = (Group(stages=(stage,), machine=name) for stage, name in zip(STAGES, names, strict=True))
                yield Plan(sort=sort, groups=tuple(groups))

    def fits(self, stages: Sequence[StageName], machine: str) -> bool:
        needed = sum(self.times.stages[stage].memory_bytes for stage in stages)
        return needed <= self.assumptions.machines[machine].memory_bytes

    def pools(self, plan: Plan) -> list[Pool]:
        """The plan as the simulation takes it. Gateways are a delay."""
        return [self._pool(group, self._delay(plan, index)) for index, group in enumerate(plan.groups)]

    def _pool(self, group: Group, delay_seconds: float) -> Pool:
        phases = tuple(self.phase(stage, group.machine) for stage in group.stages)
        return Pool(name=group.name, phases=phases, replicas=group.replicas, delay_seconds=delay_seconds)

    def _delay(self, plan: Plan, index: int) -> float:
        """The gateway's own work before the first pool, and the hop to each; a monolith's one hop carries the picture."""
        group = plan.groups[index]
        hop = self.times.transfer_seconds[group.stages[-1]].median
        return hop + (self.times.gateway.seconds.median if index == 0 else 0.0)

    def phase(self, stage: StageName, machine: str) -> Phase:
        """A stage's calls on a machine."""
        measured, speed = self.times.stages[stage], self.assumptions.speed(machine, stage)
        requests = self.times.requests
        steps = [request.num_steps if stage == "diffusion" else 1 for request in requests]
        seconds = [tuple(each / speed for each in measured.seconds_by_pictures(request.size)) for request in requests]
        return Phase(evaluations=tuple(steps), seconds=tuple(seconds), noise=Lognormal(measured.sigma(requests[0].size)))

    # Money

    def gateways(self, plan: Plan, rate: float) -> int:
        """A single monolith needs none: its process is a gateway too."""
        if plan.replicas == (1,):
            return 0
        place, work = self.assumptions.gateway, self.times.gateway.seconds.median
        return max(1, math.ceil(rate * work / place.utilisation))

    def price_per_hour(self, plan: Plan, rate: float, extra: Sequence[int] = ()) -> float:
        """Of all machines, gateways' included.

        Args:
            extra: Machines by group, beside the plan's own.
        """
        machines = self.assumptions.machines
        counts = [count + more for count, more in zip(plan.replicas, extra or (0,) * len(plan.groups), strict=True)]
        stages = sum(count * machines[group.machine].price_per_hour for count, group in zip(counts, plan.groups, strict=True))
        return stages + self.gateways(plan, rate) * machines[self.assumptions.gateway.machine].price_per_hour

    def cost_per_thousand(self, plan: Plan, rate: float, extra: Sequence[int] = ()) -> float:
        """Of a thousand pictures, at that rate all the time."""
        return self.price_per_hour(plan, rate, extra) / (rate * SECONDS_PER_HOUR) * 1000

    # What is lost, and what grows

    def replacement_seconds(self, group: Group) -> float:
        """From a loss, or a wish for more, to one more replica that is ready; a monolith's stages start one after the other."""
        cold = sum(self.times.stages[stage].cold_start_seconds for stage in group.stages)
        return self.assumptions.machines[group.machine].start_seconds + cold

    def sizing_rate(self, plan: Plan, rate: float) -> float:
        """What the load may have grown to by the time that one more machine is ready."""
        delay = max(self.replacement_seconds(group) for group in plan.groups)
        return rate * (1 + self.assumptions.load.growth_per_minute * delay / 60)

    def spare(self, group: Group) -> int:
        """Machines beside those needed, so that more are missing only in the share of the time that `availability` leaves over.

        How many are missing is a Poisson number, whatever the distribution of the time that a replacement takes (M/G/infinity).
        """
        losses_per_second = 1 / (self.assumptions.machines[group.machine].hours_between_losses * SECONDS_PER_HOUR)
        missing = group.replicas * losses_per_second * self.replacement_seconds(group)
        return poisson_quantile(missing, self.assumptions.load.availability)

    def spares(self, plan: Plan) -> tuple[int, ...]:
        return tuple(self.spare(group) for group in plan.groups)


def poisson_quantile(mean: float, share: float) -> int:
    """The smallest number that a Poisson variable does not exceed with that probability."""
    if mean > _NEARLY_NORMAL:
        return math.ceil(mean + NormalDist().inv_cdf(share) * math.sqrt(mean))
    term = total = math.exp(-mean)
    number = 0
    while total < share:
        number += 1
        term *= mean / number
        total += term
    return number
