"""Pools in closed form: against theory where it is exact, and against the simulation where one takes over from the other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.advisor.large_pools import respond, service_rates
from benchmarks.advisor.search import SEAM, TOO_FEW, TOO_MANY
from benchmarks.advisor.simulation import Lognormal, Phase, Pool, simulate
from tests.benchmarks.test_advisor_simulation import Exponential, erlang_c

STEPS = 8


def phase(*seconds: float, evaluations: int = 1) -> Phase:
    return Phase(evaluations=(evaluations,), seconds=(seconds,), noise=Lognormal(0.1))


ONE_BY_ONE = (phase(0.1, evaluations=STEPS),)
IN_COMPANY = (phase(0.1, 0.13, 0.16, 0.2, evaluations=STEPS),)
MONOLITH = (phase(0.05), *IN_COMPANY, phase(0.3))
DECODER = (phase(0.1, 0.13, 0.16, 0.2),)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.8), (4, 0.7), (100, 0.95), (10_000, 0.995)])
def test_one_queue_and_one_picture_a_call_is_m_m_c(servers: int, utilisation: float) -> None:
    server = Phase(evaluations=(1,), seconds=((1.0,),), noise=Exponential())
    rate = servers * utilisation

    found = respond(Pool(name="it", phases=(server,), replicas=servers, shared_queue=True), rate, (1.0,))

    assert found is not None
    assert found.utilisation == pytest.approx(utilisation, rel=1e-3)
    if servers <= 100:
        assert found.seconds.mean() == pytest.approx(1 + erlang_c(servers, rate) / (servers - rate), rel=0.1)


def test_what_cannot_keep_up_has_no_answer() -> None:
    pool = Pool(name="it", phases=IN_COMPANY, replicas=10)
    most = 10 * 4 / (STEPS * 0.2 * Lognormal(0.1).mean)

    assert respond(pool, 1.01 * most, (1.0,)) is None
    assert respond(pool, (1 - 1e-9) * most, (1.0,)) is None
    assert respond(pool, 0.99 * most, (1.0,)) is not None


def test_sizes_that_share_no_call_cost_more() -> None:
    together = Phase(evaluations=(1, 1), seconds=((1.0, 1.0), (1.0, 1.0)))
    apart = Phase(evaluations=(1, 1), seconds=((1.0, 1.0), (1.0000001, 1.0)))

    assert service_rates((together,), (0.5, 0.5))[-1] == pytest.approx(2.0)
    assert service_rates((apart,), (0.5, 0.5))[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("phases", [ONE_BY_ONE, IN_COMPANY, MONOLITH, DECODER])
def test_at_the_seam_both_ask_for_the_same_replicas(phases: tuple[Phase, ...]) -> None:
    """As many more than in closed form as it may ask too few keep the percentile, and as many fewer do not."""
    alone = sum(each.evaluations[0] * each.seconds[0][0] for each in phases)
    rate = SEAM * (0.9 if phases is not DECODER else 1.5) / alone
    replicas = least_replicas(phases, rate, 1.5 * alone)
    assert SEAM / 2 < replicas < 2 * SEAM

    more, fewer = math.ceil(replicas * (1 + TOO_FEW)), math.floor(replicas / (1 + TOO_MANY)) - 1

    assert simulated_p95(phases, rate, more) < 1.5 * alone
    assert simulated_p95(phases, rate, fewer) > 1.5 * alone


def least_replicas(phases: tuple[Phase, ...], rate: float, p95_seconds: float) -> int:
    """In closed form."""
    for replicas in range(1, 4 * SEAM):
        found = respond(Pool(name="it", phases=phases, replicas=replicas), rate, (1.0,))
        if found is not None and np.quantile(found.seconds, 0.95) <= p95_seconds:
            return replicas
    raise AssertionError


def simulated_p95(phases: tuple[Phase, ...], rate: float, replicas: int) -> float:
    return simulate([Pool(name="it", phases=phases, replicas=replicas)], rate, 3000, seed=2).p95.value
