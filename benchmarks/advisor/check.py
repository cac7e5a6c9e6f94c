"""The simulation against the load curve that was measured on the machine of the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.advisor.large_pools import service_rates
from benchmarks.advisor.plans import Market
from benchmarks.advisor.service_times import STAGES, LoadCurve, LoadPoint
from benchmarks.advisor.simulation import Estimate, Pool, simulate

CALM = 0.95
"""Share of what the machine can do at most. Above, its queue grows all the time, and only the throughput is compared."""

_FEWEST_REQUESTS, _MOST_REQUESTS = 1000, 5000


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One offered rate.

    Attributes:
        throughput_per_second: As simulated: the rate, or the most that the machine can do.
        p50, p95: As simulated, in seconds; None above the calm part, or where requests were shed.
    """

    measured: LoadPoint
    throughput_per_second: float
    p50: Estimate | None
    p95: Estimate | None

    @property
    def errors(self) -> dict[str, float]:
        """By quantity: simulated over measured, less one."""
        pairs = {"throughput": (self.throughput_per_second, self.measured.throughput_per_second)}
        if self.p50 and self.p95:
            pairs |= {"p50": (self.p50.value, self.measured.p50_seconds), "p95": (self.p95.value, self.measured.p95_seconds)}
        return {name: simulated / measured - 1 for name, (simulated, measured) in pairs.items() if measured}


def compare(market: Market) -> Iterator[Compared]:
    """Each point of the load curve, if the results have one."""
    curve = market.times.load_curve
    if curve is None:
        return
    pool = shared_machine(market, curve)
    most = float(service_rates(pool.phases, market.shares)[-1])
    for point in curve.points:
        rate = point.offered_per_second
        if point.shed or rate > CALM * most:
            yield Compared(measured=point, throughput_per_second=min(rate, most), p50=None, p95=None)
            continue
        count = min(max(point.requests, _FEWEST_REQUESTS), _MOST_REQUESTS)
        seen = simulate([pool], rate, count, shares=market.shares)
        yield Compared(measured=point, throughput_per_second=seen.throughput, p50=seen.percentile(0.5), p95=seen.p95)


def shared_machine(market: Market, curve: LoadCurve) -> Pool:
    """All processes of the measured machine: whatever they are, they share it as a monolith's networks do."""
    times = market.times
    phases = tuple(market.phase(stage, market.assumptions.measured_on) for stage in STAGES)
    hops = sum(times.transfer_seconds[stage].median for stage in STAGES) if curve.scenario == "three-endpoints" else 0.0
    return Pool(name="machine", phases=phases, replicas=1, delay_seconds=times.gateway.seconds.median + hops)
