"""A pool of many replicas in closed form, where an event for every call would be too many.

The pool as a whole is a birth-death process: N requests are there, spread evenly over its replicas, and leave at the rate at
which that many share calls. With one picture a call this is M/M/c exactly; for requests that take turns at a call its
distribution of N holds for any distribution of their lengths (Cohen 1979, generalized processor sharing). A request that finds
N others stays (N + 1) over the rate of N + 1, and where it is served in the order of arrival its wait beyond that is cut to
(1 + squared variation) / 2 of it (Allen and Cunneen 1978). Pools are taken to be independent of each other.

Two corrections, for what even spreading and one rate for each N leave out:

- A replica that is full when one more comes stays so although others fall idle: the newcomer, and where they take turns those it
  joins, stay longer by a share of a call's pictures that is evenly distributed.
- Where a request is one call that others share, who comes during a call waits for its end. The least busy replica is one whose
  call has just begun, so that this is nearly a whole call: 1.75 calls from coming to leaving, evenly distributed from 1.3 to 2.2,
  and 1.75 times as many requests at a replica as share its calls. This number was found by simulation, not derived.

A test compares this with the simulation where one takes over from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.advisor.simulation import Floats, Phase, Pool

SAMPLES = 2000
CALLS_TO_STAY, SPREAD_OF_CALLS = 1.75, 0.9
"""Of a request that is one shared call: from coming to leaving."""

FULL = 1 - 1e-5
"""Utilisation from which on a pool cannot keep up: its queue would be without bounds, and so would the arrays for it."""

_NEGLIGIBLE = -35.0
"""Of a logarithm of probabilities."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a request meets in a pool.

    Attributes:
        seconds: Equally likely values, in no order.
        utilisation: The share of the time that a replica is at work.
    """

    seconds: Floats
    utilisation: float


def respond(pool: Pool, rate: float, shares: Sequence[float], *, seed: int = 0) -> Response | None:
    """The pool at a rate of requests; None if it cannot keep up.

    Args:
        shares: Of the sorts of requests.
        seed: Decides the order of the values; that of another pool is to be another.
    """
    rates = service_rates(pool.phases, shares)
    if rate >= FULL * pool.replicas * rates[-1]:
        return None
    numbers, weights = _stationary(pool.replicas, rates, rate)
    generator = np.random.default_rng(seed)
    levels = (np.arange(SAMPLES) + 0.5) / SAMPLES
    found = numbers[np.minimum(np.searchsorted(np.cumsum(weights), levels), len(numbers) - 1)]
    busy = float(np.sum(weights * np.minimum(numbers, pool.replicas)) / pool.replicas)
    full = float(np.sum(weights[numbers >= pool.replicas * len(rates)]))
    seconds = _stay(pool, rates, found + 1, full, generator) * _lengths(pool.phases, shares, generator)
    return Response(seconds=generator.permutation(seconds) + pool.delay_seconds, utilisation=busy)


def service_rates(phases: Sequence[Phase], shares: Sequence[float]) -> Floats:
    """Requests that a replica finishes in a second while it has 1, 2, ... of them; the last holds for all above."""
    main = _main(phases)
    capacity = max(len(seconds) for seconds in main.seconds)
    if _is_gated(phases):
        present = np.arange(1, int(np.ceil(CALLS_TO_STAY * capacity)) + 1)
        together = np.clip(present / CALLS_TO_STAY, 1, capacity)
    else:
        together = np.arange(1.0, capacity + 1)
    # In a monolith the phases beside the main one meet requests one by one, between its calls.
    work = sum(_work(phase, shares, together if phase is main else np.ones_like(together)) for phase in phases)
    return np.asarray(1 / work)


def _work(phase: Phase, shares: Sequence[float], together: Floats) -> Floats:
    """Seconds of a replica that the average request takes, with so many in it; those of another size are not in its calls."""
    work = np.zeros_like(together)
    for sort, share in enumerate(shares):
        seconds = phase.seconds[sort]
        alike = sum(each for other, each in enumerate(shares) if phase.shapes[other] == phase.shapes[sort])
        pictures = np.clip(together * alike, 1, len(seconds))
        call = np.interp(pictures, np.arange(1, len(seconds) + 1), seconds)
        work += share * phase.evaluations[sort] * phase.noise.mean * call / pictures
    return work


def _main(phases: Sequence[Phase]) -> Phase:
    """The phase with the most calls."""
    return max(phases, key=lambda each: max(each.evaluations))


def _takes_turns(phases: Sequence[Phase]) -> bool:
    return max(_main(phases).evaluations) > 1


def _is_gated(phases: Sequence[Phase]) -> bool:
    """Whether a request is one call that others share, and therefore waits for the end of the one before."""
    return not _takes_turns(phases) and max(len(seconds) for seconds in _main(phases).seconds) > 1


def _total(replicas: int, rates: Floats, numbers: Floats) -> Floats:
    """The rate at which a pool finishes that many requests, spread evenly."""
    each = np.concatenate([[0.0], rates])
    return np.asarray(replicas * np.interp(numbers / replicas, np.arange(len(each)), each))


def _stationary(replicas: int, rates: Floats, rate: float) -> tuple[Floats, Floats]:
    """Numbers of requests in the pool, and the probability of each; those that are all but impossible are left out."""
    each = np.concatenate([[0.0], rates])
    centre = replicas * float(np.interp(rate / replicas, np.maximum.accumulate(each), np.arange(len(each))))
    width = 10 * np.sqrt(centre) + 50
    while True:
        first, last = max(0, int(centre - width)), int(centre + width)
        numbers = np.arange(first, last + 1, dtype=np.float64)
        steps = np.log(rate) - np.log(_total(replicas, rates, numbers[1:]))
        logarithms = np.concatenate([[0.0], np.cumsum(steps)])
        logarithms -= logarithms.max()
        if logarithms[-1] < _NEGLIGIBLE and (first == 0 or logarithms[0] < _NEGLIGIBLE):
            weights = np.exp(logarithms)
            return numbers, weights / weights.sum()
        width *= 2


def _stay(pool: Pool, rates: Floats, numbers: Floats, full: float, generator: np.random.Generator) -> Floats:
    """Seconds from coming to leaving when that many are there, oneself among them.

    Args:
        full: How likely it is that all replicas have as many as share a call.
    """
    phases, most = pool.phases, len(rates)
    present = np.maximum(numbers, pool.replicas)
    stay = present / _total(pool.replicas, rates, present)
    alone, own = 1 / rates[0], most / rates[-1]
    part = generator.random(SAMPLES)
    if not _takes_turns(phases):
        beyond = (1 + _main(phases).noise.squared_variation) / 2
        stay = np.where(numbers > pool.replicas * most, own + (stay - own) * beyond, stay)
    if _is_gated(phases):
        calls = CALLS_TO_STAY + SPREAD_OF_CALLS * (part - 0.5)
        stay = np.where(numbers > pool.replicas, np.maximum(stay / CALLS_TO_STAY, alone) * calls, stay)
    elif most > 1 or len(phases) > 1:
        stay = np.where(numbers > pool.replicas, stay + _residual(phases, most), stay)
    if pool.shared_queue:
        return np.asarray(stay)
    met = full * (1 + most) if _takes_turns(phases) else full
    crowded = generator.random(SAMPLES) < met
    return np.asarray(np.where(crowded, np.maximum(stay, own * (1 + part / most)), stay))


def _residual(phases: Sequence[Phase], most: int) -> float:
    """Seconds that a request waits, on average, for calls to end in which it has no part: half a call, once for each phase."""
    call = np.mean([seconds[min(len(seconds), most) - 1] for seconds in _main(phases).seconds])
    return float(len(phases) * call / 2)


def _lengths(phases: Sequence[Phase], shares: Sequence[float], generator: np.random.Generator) -> Floats:
    """How much longer than the average a request is: its sort, and the noise of its calls."""
    work = np.array([[phase.evaluations[sort] * phase.seconds[sort][0] for phase in phases] for sort in range(len(shares))])
    calls = np.array([[phase.evaluations[sort] for phase in phases] for sort in range(len(shares))])
    variations = np.array([phase.noise.squared_variation for phase in phases])
    totals = work.sum(axis=1)
    sorts = generator.choice(len(shares), SAMPLES, p=np.asarray(shares) / np.sum(shares))
    variance = (work**2 / calls * variations).sum(axis=1) / totals**2
    sigma = np.sqrt(np.log1p(variance))[sorts]
    noise = generator.lognormal(-(sigma**2) / 2, sigma)
    return np.asarray(totals[sorts] / (totals @ np.asarray(shares)) * noise)
