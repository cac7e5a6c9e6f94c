"""One replica of a stage, and what is known of it: whether it is there, what it has to do, how it fared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from triptych.errors import StageBrokeOff, StageError, StageNotReady
from triptych.remote.breaker import BreakerState, CircuitBreaker

MAY_DIFFER = frozenset({"numerics", "exact", "exact_batch_sizes", "largest_difference", "has_preview_decoder"})
"""Fields of an identity in which replicas of one stage may differ."""

CLAIMED_BY_SOME = frozenset({"tile_sizes"})
"""Fields that replicas of an earlier version leave empty: nothing is claimed, and nothing contradicted."""

WEIGHT_OF_THE_NEWEST = 0.2
"""How much the newest measurement counts against all earlier ones."""


class Stage(Protocol):
    """What all remote stages have in common."""

    async def identity(self) -> Any: ...


StageT = TypeVar("StageT", bound=Stage)


class ReplicaState(StrEnum):
    """Whether a replica is given work."""

    READY = "ready"
    MISSING = "missing"
    """It has not said who it is since it was last missed."""
    RESTING = "resting"
    """It failed again and again; its circuit breaker is open."""
    PROBED = "probed"
    """It rested, and gets one request to see."""


@dataclass(frozen=True, kw_only=True)
class ReplicaStatus:
    """What can be told of a replica.

    Attributes:
        evaluations_outstanding: Of the network, for what this process has sent there and has not back; a call is one.
        evaluations_elsewhere: That it reports on top of them, for others.
        failures: Since this process first knew it.
        problem: What went wrong last, while it is not ready.
    """

    address: str
    state: ReplicaState
    evaluations_outstanding: int
    evaluations_elsewhere: int
    failures: int
    problem: str | None


@dataclass(kw_only=True)
class Work:
    """A request that a replica is at: evaluations of the network that are left of it."""

    evaluations_left: int
    began: float


class Replica(Generic[StageT]):
    """A stage at one address.

    Attributes:
        address: As errors may show it.
        stage: Behind that address.
        heard: Whether it said who it is since it was last missed. Who has not may be another by now, and gets no work.
        identity: What it said of itself; None where it was not asked yet.
        problem: What went wrong last.
        pace: Seconds between two of its answers, as measured; None before that.
        last_turn: Of its stage's requests, the last that it was given.
        failures: That it had.
    """

    def __init__(self, address: str, stage: StageT) -> None:
        self.address = address
        self.stage = stage
        self.heard = True
        self.identity: Any = None
        self.problem: StageError | None = None
        self.pace: float | None = None
        self.last_turn = 0
        self.failures = 0
        self.breaker = CircuitBreaker()
        self._works: list[Work] = []
        self._elsewhere = 0

    @property
    def is_available(self) -> bool:
        return self.heard and self.breaker.lets_through

    @property
    def load(self) -> int:
        return self._outstanding + self._elsewhere

    @property
    def _outstanding(self) -> int:
        return sum(work.evaluations_left for work in self._works)

    @property
    def status(self) -> ReplicaStatus:
        state = self._state
        return ReplicaStatus(
            address=self.address,
            state=state,
            evaluations_outstanding=self._outstanding,
            evaluations_elsewhere=self._elsewhere,
            failures=self.failures,
            problem=None if state is ReplicaState.READY or self.problem is None else self.problem.message,
        )

    @property
    def _state(self) -> ReplicaState:
        if not self.heard:
            return ReplicaState.MISSING
        by_breaker = {BreakerState.OPEN: ReplicaState.RESTING, BreakerState.HALF_OPEN: ReplicaState.PROBED}
        return by_breaker.get(self.breaker.state, ReplicaState.READY)

    @contextmanager
    def at_work(self, evaluations: int) -> Iterator[Work]:
        """Counts the work as its own for the length of the block."""
        with self.breaker.work() as began:
            work = Work(evaluations_left=evaluations, began=began)
            self._works.append(work)
            try:
                yield work
            finally:
                self._works = [each for each in self._works if each is not work]

    def is_like(self, identity: Any) -> bool:
        """Whether it is a replica of what has this identity, as far as is known."""
        return identity is None or self.identity is None or difference(identity, self.identity) is None

    def hear(self, identity: Any) -> None:
        """It said who it is."""
        self.heard, self.identity = True, identity
        reported = getattr(self.stage, "evaluations_reported", None)
        self._elsewhere = 0 if reported is None else max(0, reported - self._outstanding)

    def miss(self, problem: StageError) -> None:
        """It did not."""
        self.heard, self.problem = False, problem

    def fail(self, error: StageError, *, began: float) -> None:
        """Work that began then came to nothing."""
        self.failures += 1
        self.problem = error
        if isinstance(error, StageNotReady | StageBrokeOff):
            self.heard = False
        if not isinstance(error, StageNotReady):
            self.breaker.fail(began)

    def measure(self, seconds: float) -> None:
        """So long it took between two of its answers."""
        before = seconds if self.pace is None else self.pace
        self.pace = before + WEIGHT_OF_THE_NEWEST * (seconds - before)


def difference(expected: Any, identity: Any) -> str | None:
    """The field that keeps two identities from being replicas of one stage; None where they are."""
    for field in fields(expected):
        ours, theirs = getattr(expected, field.name), getattr(identity, field.name)
        if ours == theirs or field.name in MAY_DIFFER:
            continue
        if field.name in CLAIMED_BY_SOME and not (ours and theirs):
            continue
        return field.name
    return None
