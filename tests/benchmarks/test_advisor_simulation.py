"""The advisor's simulation against what queueing theory knows exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.advisor.simulation import Floats, Lognormal, Noise, Phase, Pool, batched, simulate


@dataclass(frozen=True)
class Exponential:
    """Mean 1: what M/M/c wants of a service time."""

    mean: float = 1.0
    squared_variation: float = 1.0

    def draw(self, generator: np.random.Generator, count: int) -> Floats:
        return generator.exponential(1.0, count)


def server(*seconds: float, noise: Noise | None = None, evaluations: int = 1) -> Phase:
    return Phase(evaluations=(evaluations,), seconds=(seconds,), noise=noise or Lognormal())


def pool(*phases: Phase, replicas: int = 1, shared_queue: bool = False, delay_seconds: float = 0.0) -> Pool:
    return Pool(name="it", phases=phases, replicas=replicas, shared_queue=shared_queue, delay_seconds=delay_seconds)


def erlang_c(servers: int, load: float) -> float:
    """The share of requests that wait in M/M/c (Erlang 1917); load in servers."""
    last = load**servers / math.factorial(servers) / (1 - load / servers)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.5), (2, 0.7), (8, 0.8)])
def test_waits_are_those_of_m_m_c(servers: int, utilisation: float) -> None:
    load = servers * utilisation
    queue = pool(server(1.0, noise=Exponential()), replicas=servers, shared_queue=True)

    seen = simulate([queue], load, 15_000, seed=1)

    waits = seen.waits["it"]
    mean, p95 = (
        batched(waits, lambda values: float(values.mean())),
        batched(waits, lambda values: float(np.quantile(values, 0.95))),
    )
    waiting, spare = erlang_c(servers, load), servers - load
    assert mean.low < waiting / spare < mean.high
    assert p95.low < math.log(waiting / 0.05) / spare < p95.high
    assert mean.half_width < 0.3 * mean.value
    assert p95.half_width < 0.3 * p95.value


def test_an_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    queue = pool(server(1.0, noise=Exponential()))
    means = [
        batched(simulate([queue], 0.4, 3_000, seed=seed).waits["it"], lambda values: float(values.mean())) for seed in range(20)
    ]

    held = sum(mean.low < 0.4 / 0.6 < mean.high for mean in means)

    assert held >= 17


def test_waits_are_those_of_m_d_1() -> None:
    seen = simulate([pool(server(1.0))], 0.7, 15_000, seed=1)

    mean = batched(seen.waits["it"], lambda values: float(values.mean()))
    assert mean.low < 0.7 / (2 * 0.3) < mean.high
    assert mean.half_width < 0.2 * mean.value


def test_waits_are_those_of_pollaczek_and_khinchine() -> None:
    """M/G/1 with lognormal service: the spread of calls counts as it should."""
    noise = Lognormal(0.8)
    rate = 0.6 / noise.mean

    mean = batched(
        simulate([pool(server(1.0, noise=noise))], rate, 15_000, seed=2).waits["it"], lambda values: float(values.mean())
    )

    exact = 0.6 / 0.4 * noise.mean * (1 + noise.squared_variation) / 2
    assert mean.low < exact < mean.high


def test_a_pool_holds_rate_times_latency() -> None:
    """Little's law, for each of two pools in a row."""
    pools = [
        Pool(name="first", phases=(server(1.0, noise=Exponential()),), replicas=2),
        Pool(name="second", phases=(server(0.1, 0.15, evaluations=5),), replicas=2),
    ]
    seen = simulate(pools, 1.2, 8_000)

    held = seen.in_system["first"] + seen.in_system["second"]
    assert held == pytest.approx(seen.throughput * seen.latencies.mean(), rel=0.02)
    assert seen.utilisations["first"] == pytest.approx(0.6, rel=0.05)


def test_requests_that_share_a_call_are_served_in_turns() -> None:
    """Twice as many as fit: each takes twice as long, and a newcomer comes in at once."""
    alone = simulate([pool(server(1.0, evaluations=10))], 1e-6, 100).latencies
    together = simulate([pool(server(1.0, evaluations=10))], 1e6, 2).latencies
    shared = simulate([pool(server(1.0, 1.5, evaluations=10))], 1e6, 2).latencies

    assert alone == pytest.approx(np.full(80, 10.0), rel=1e-4)
    assert together == pytest.approx([19.0, 20.0], rel=1e-4)
    assert shared == pytest.approx([1.0 + 9 * 1.5, 1.0 + 9 * 1.5 + 1.0], rel=1e-4)


def test_all_newcomers_take_part_in_the_next_call() -> None:
    """The first is alone in its first call, and the two others come during it."""
    seen = simulate([pool(server(1.0, 1.0, 1.0, evaluations=2))], 1e6, 3).latencies

    assert seen == pytest.approx([2.0, 3.0, 3.0], rel=1e-4)


def test_sizes_do_not_share_calls_and_steps_do() -> None:
    """Forty at once, all of which fit in a call: four calls for those of one size, and four for each of two sizes."""
    size, other = (1.0,) * 40, (1.1,) * 40
    one_size = Phase(evaluations=(1, 4), seconds=(size, size))
    two_sizes = Phase(evaluations=(4, 4), seconds=(size, other))

    ends = [float(simulate([pool(phase)], 1e6, 40, shares=(0.5, 0.5)).latencies.max()) for phase in (one_size, two_sizes)]

    assert (one_size.shapes, two_sizes.shapes) == ((0, 0), (0, 1))
    assert 4 <= ends[0] <= 5.1
    assert 4 + 4.4 <= ends[1] <= 4 + 4.4 + 1.2


def test_a_monolith_does_one_thing_at_a_time() -> None:
    phases = (server(1.0), server(2.0, evaluations=3), server(4.0))

    seen = simulate([pool(*phases, delay_seconds=0.5)], 1e6, 2).latencies

    # Two requests, 11 s of work each, and nothing shares a call.
    assert max(seen) == pytest.approx(22.5, rel=1e-4)


def test_pools_in_a_row_work_at_the_same_time() -> None:
    pools = [Pool(name=str(k), phases=(phase,), replicas=1) for k, phase in enumerate([server(1.0), server(2.0), server(4.0)])]

    seen = simulate(pools, 1e6, 2).latencies

    assert max(seen) == pytest.approx(11.0, rel=1e-4)


def test_a_request_goes_to_the_least_busy() -> None:
    """Four at once on two replicas: two each."""
    seen = simulate([pool(server(1.0), replicas=2)], 1e6, 4).latencies

    assert sorted(seen) == pytest.approx([1.0, 1.0, 2.0, 2.0], rel=1e-4)
