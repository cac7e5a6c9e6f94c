"""Requests, queues and replicas, event by event: what a plan's latencies and utilisations would be.

A request passes through pools in turn. A replica of a pool makes one call of a network at a time, as the product does:
newcomers take part in the next call, those who have waited longest come first, as many pictures as fit share a call, and all
of a call are of one size (`choose_rows` of triptych/stages/step_batcher.py). A replica with several phases is a monolith:
its networks share one machine and take turns. A request goes to the replica with the fewest requests
(triptych/remote/replicas.py), unless the pool has one queue for all, as the textbooks' M/M/c has.

Arrivals are a Poisson process. The first fifth of them is not counted. Confidence intervals (95 %) come from the means of
twenty batches of consecutive requests, which long queues make dependent on each other: near saturation they are too narrow.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WARM_UP = 0.2
BATCHES = 20
# Of Student's distribution with 19 degrees of freedom: 95 % lie within.
_STUDENT = 2.0930240544082634
_DRAWN_AT_ONCE = 4096


class Noise(Protocol):
    """What a call's seconds are multiplied by."""

    @property
    def mean(self) -> float: ...

    @property
    def squared_variation(self) -> float:
        """Variance over the square of the mean."""

    def draw(self, generator: np.random.Generator, count: int) -> Floats: ...


@dataclass(frozen=True)
class Lognormal:
    """Median 1; `sigma` is the standard deviation of its logarithm."""

    sigma: float = 0.0

    @property
    def mean(self) -> float:
        return float(np.exp(self.sigma**2 / 2))

    @property
    def squared_variation(self) -> float:
        return float(np.expm1(self.sigma**2))

    def draw(self, generator: np.random.Generator, count: int) -> Floats:
        return generator.lognormal(0.0, self.sigma, count)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One network's part of a request.

    Attributes:
        evaluations: Calls that a request takes part in, by sort of request.
        seconds: Of a call by sort of request, and by pictures in it less one; the longest call is the capacity.
        noise: From call to call.
    """

    evaluations: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    noise: Noise = field(default_factory=Lognormal)

    @cached_property
    def shapes(self) -> tuple[int, ...]:
        """By sort, the first sort whose calls cost the same: those share calls."""
        return tuple(self.seconds.index(each) for each in self.seconds)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Replicas that are alike.

    Attributes:
        phases: What each of them does, in order.
        delay_seconds: Before a request is there: the wire, and what the gateway does.
        shared_queue: Requests wait in one queue, one at a time with each replica, as in the textbooks; not each with a replica.
    """

    name: str
    phases: tuple[Phase, ...]
    replicas: int
    delay_seconds: float = 0.0
    shared_queue: bool = False


@dataclass(frozen=True)
class Estimate:
    """A number, and how far the true one may be off (95 %)."""

    value: float
    half_width: float

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        return self.value + self.half_width


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What was seen after the warm-up.

    Attributes:
        latencies: Of each request, in the order of arrival, in seconds.
        waits: By pool: seconds from a request's arrival there to its first call.
        utilisations: By pool: the share of the time that a replica was at work.
        in_system: By pool: requests there, on average over time.
        throughput: Requests that left in a second, of those counted.
    """

    latencies: Floats
    waits: dict[str, Floats]
    utilisations: dict[str, float]
    in_system: dict[str, float]
    throughput: float

    def percentile(self, share: float) -> Estimate:
        return batched(self.latencies, lambda values: float(np.quantile(values, share)))

    @cached_property
    def p95(self) -> Estimate:
        return self.percentile(0.95)


class _Statistic(Protocol):
    def __call__(self, values: Floats, /) -> float: ...


def batched(values: Floats, statistic: _Statistic) -> Estimate:
    """A statistic of all values, with an interval from how much it differs between batches."""
    parts = np.array([statistic(batch) for batch in np.array_split(values, BATCHES)])
    return Estimate(float(statistic(values)), float(_STUDENT * parts.std(ddof=1) / np.sqrt(BATCHES)))


def simulate(pools: Sequence[Pool], rate: float, count: int, *, shares: Sequence[float] = (1.0,), seed: int = 0) -> Simulated:
    """Sends requests through pools until all are done.

    Args:
        rate: Requests a second.
        count: Of requests, with those of the warm-up.
        shares: Of the sorts of requests.
    """
    generator = np.random.default_rng(seed)
    arrivals = np.cumsum(generator.exponential(1 / rate, count))
    sorts = generator.choice(len(shares), count, p=np.asarray(shares) / np.sum(shares))
    return _Run(pools, arrivals, sorts, generator).result()


class _Draws:
    """Factors of a noise, drawn many at once."""

    def __init__(self, noise: Noise, generator: np.random.Generator) -> None:
        self._noise, self._generator = noise, generator
        self._left: list[float] = []

    def __call__(self) -> float:
        if not self._left:
            self._left = self._noise.draw(self._generator, _DRAWN_AT_ONCE).tolist()
        return self._left.pop()


class _Replica:
    """One machine's queues: by phase those who never took part in a call, and those who did, longest ago first."""

    __slots__ = ("called", "fresh", "in_flight", "phase", "since", "started")

    def __init__(self, phases: int) -> None:
        self.fresh: list[deque[int]] = [deque() for _ in range(phases)]
        self.started: list[deque[int]] = [deque() for _ in range(phases)]
        self.called: list[int] = []
        self.phase = 0
        self.in_flight = 0
        self.since = 0.0


class _PoolState:
    """A pool while it runs, and what is counted of it between two times."""

    def __init__(self, pool: Pool, requests: int, window: tuple[float, float], generator: np.random.Generator) -> None:
        self.pool = pool
        self.replicas = [_Replica(len(pool.phases)) for _ in range(pool.replicas)]
        self.by_load = [(0, index, index) for index in range(pool.replicas)]
        self.turn = pool.replicas
        self.backlog: deque[int] = deque()
        self.idle: deque[int] = deque(range(pool.replicas))
        self.draws = [_Draws(phase.noise, generator) for phase in pool.phases]
        self.arrived = [0.0] * requests
        self.waited = [-1.0] * requests
        self.busy = self.area = self.changed = 0.0
        self.present = 0
        self._from, self._to = window

    def within(self, start: float, end: float) -> float:
        """Seconds of an interval that count."""
        return max(0.0, min(end, self._to) - max(start, self._from))

    def count(self, now: float, change: int) -> None:
        self.area += self.present * self.within(self.changed, now)
        self.present += change
        self.changed = now

    def least_busy(self) -> int:
        """The replica with the fewest requests, and of those the one whose last turn was longest ago."""
        while True:
            load, _, index = heapq.heappop(self.by_load)
            if load == self.replicas[index].in_flight:
                return index

    def note_load(self, index: int) -> None:
        """Stale entries of the heap are dropped when they come up."""
        self.turn += 1
        heapq.heappush(self.by_load, (self.replicas[index].in_flight, self.turn, index))


class _Run:
    """The loop over events: a request comes to a pool, or a replica's call ends."""

    def __init__(self, pools: Sequence[Pool], arrivals: Floats, sorts: NDArray[np.int64], generator: np.random.Generator) -> None:
        count = len(arrivals)
        self.first = int(WARM_UP * count)
        window = float(arrivals[self.first]), float(arrivals[-1])
        self.window = window
        self.arrivals = arrivals
        self.sorts: list[int] = sorts.tolist()
        self.left = [0] * count
        self.done = [0.0] * count
        self.pools = [_PoolState(pool, count, window, generator) for pool in pools]
        self.events: list[tuple[float, int, int, int]] = []
        self.number = 0
        self._work()

    def _push(self, time: float, pool: int, what: int) -> None:
        """`what` is a replica whose call ends, or -1 - request for one that comes."""
        self.number += 1
        heapq.heappush(self.events, (time, self.number, pool, what))

    def _work(self) -> None:
        coming = enumerate(self.arrivals.tolist())
        request, time = next(coming)
        self._push(time + self.pools[0].pool.delay_seconds, 0, -1 - request)
        newest = request
        while self.events:
            now, _, pool, what = heapq.heappop(self.events)
            if what >= 0:
                self._call_ended(now, pool, what)
                continue
            if pool == 0 and -1 - what == newest and (following := next(coming, None)):
                newest, time = following
                self._push(time + self.pools[0].pool.delay_seconds, 0, -1 - newest)
            self._come(now, pool, -1 - what)

    def _come(self, now: float, pool: int, request: int) -> None:
        state = self.pools[pool]
        state.count(now, 1)
        state.arrived[request] = now
        if not state.pool.shared_queue:
            self._join(now, pool, state.least_busy(), request)
        elif state.idle:
            self._join(now, pool, state.idle.popleft(), request)
        else:
            state.backlog.append(request)

    def _join(self, now: float, pool: int, index: int, request: int) -> None:
        state = self.pools[pool]
        replica = state.replicas[index]
        replica.in_flight += 1
        state.note_load(index)
        self._enter_phase(state, replica, 0, request)
        if not replica.called:
            self._call(now, pool, index)

    def _enter_phase(self, state: _PoolState, replica: _Replica, phase: int, request: int) -> None:
        self.left[request] = state.pool.phases[phase].evaluations[self.sorts[request]]
        replica.fresh[phase].append(request)

    def _call(self, now: float, pool: int, index: int) -> None:
        """The next phase in turn that somebody waits for; nothing if nobody does."""
        state = self.pools[pool]
        replica = state.replicas[index]
        phases = len(state.pool.phases)
        for step in range(1, phases + 1):
            phase = (replica.phase + step) % phases
            if replica.fresh[phase] or replica.started[phase]:
                break
        else:
            if state.pool.shared_queue:
                state.idle.append(index)
            return
        replica.phase = phase
        fresh = replica.fresh[phase]
        waiting = replica.started[phase]
        shapes = state.pool.phases[phase].shapes
        shape = shapes[self.sorts[(fresh or waiting)[0]]]
        seconds = state.pool.phases[phase].seconds[shape]

        def take(queue: deque[int], most: int) -> list[int]:
            """The first of a queue that are of the shape, so many at the most."""
            taken: list[int] = []
            passed: list[int] = []
            while queue and len(taken) < most:
                request = queue.popleft()
                (taken if shapes[self.sorts[request]] == shape else passed).append(request)
            queue.extendleft(reversed(passed))
            return taken

        called = take(fresh, len(seconds))
        for request in called:
            if state.waited[request] < 0:
                state.waited[request] = now - state.arrived[request]
        called += take(waiting, len(seconds) - len(called))
        replica.called, replica.since = called, now
        self._push(now + seconds[len(called) - 1] * state.draws[phase](), pool, index)

    def _call_ended(self, now: float, pool: int, index: int) -> None:
        state = self.pools[pool]
        replica = state.replicas[index]
        state.busy += state.within(replica.since, now)
        called, replica.called = replica.called, []
        for request in called:
            self.left[request] -= 1
            if self.left[request]:
                replica.started[replica.phase].append(request)
            elif replica.phase + 1 < len(state.pool.phases):
                self._enter_phase(state, replica, replica.phase + 1, request)
            else:
                self._leave(now, pool, index, request)
        if state.backlog and not replica.in_flight:
            self._join(now, pool, index, state.backlog.popleft())
        else:
            self._call(now, pool, index)

    def _leave(self, now: float, pool: int, index: int, request: int) -> None:
        state = self.pools[pool]
        state.count(now, -1)
        state.replicas[index].in_flight -= 1
        state.note_load(index)
        if pool + 1 < len(self.pools):
            self._push(now + self.pools[pool + 1].pool.delay_seconds, pool + 1, -1 - request)
        else:
            self.done[request] = now

    def result(self) -> Simulated:
        start, end = self.window
        done = np.array(self.done)
        left = np.count_nonzero((done >= start) & (done <= end))
        return Simulated(
            latencies=(done - self.arrivals)[self.first :],
            waits={state.pool.name: np.array(state.waited[self.first :]) for state in self.pools},
            utilisations={state.pool.name: state.busy / state.pool.replicas / (end - start) for state in self.pools},
            in_system={state.pool.name: state.area / (end - start) for state in self.pools},
            throughput=left / (end - start),
        )
