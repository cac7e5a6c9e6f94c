"""Several replicas of a stage as one stage: each request goes to the least busy of them, and from one that fails to another.

::

    what a replica does                            what becomes of it               what becomes of the request
    it cannot be reached, or is not ready          no work until it is heard again  goes to another
    it breaks off, or falls silent                 the same, and a failure          goes to another
    it fails: garbage, NaN, an error of its own    a failure                        goes to another
    its queue is full                              nothing                          goes to another
    it is too small for the request                nothing                          goes to another; refused where all are
    it refuses the request                         nothing                          is refused

After `breaker.FAILURES_TO_OPEN` failures without an answer between them it rests; a denoising answers with each evaluation. Where
there is no other, a request that has lost nothing yet is told so at once: whoever sent it waits. One that has something to lose
waits here, for any replica, the same one included.
Replicas must be alike in all that decides a picture; only their `numerics` may differ.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

import structlog

from triptych.contract import StageName
from triptych.errors import QueueFull, StageBrokeOff, StageError, StageNotReady, StageTimeout, TooLarge
from triptych.remote.replica import Replica, ReplicaStatus, StageT, Work, difference
from triptych.remote.watching import watched

IDENTITY_TIMEOUT_SECONDS = 3.0
"""Less than whoever asks them all would wait: one that is frozen must not silence the others."""

MOST_FAILURES = 4
"""Of one request in a row, without any progress between them: then it is the request that something is wrong with."""

STALL_MULTIPLE = 8
"""So many times the usual time between two answers is silence."""

SILENCES = 3
"""In a row, of a replica that says who it is but answers nothing: then it has stalled."""

FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 1.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long replicas are waited for.

    Attributes:
        wait_seconds: For one to come, by a request that has something to lose; 0 does not wait.
        stall_seconds: Silence that is nothing to worry about, whatever the usual time between two answers is.
    """

    wait_seconds: float = 0.0
    stall_seconds: float = 5.0


class Replicas(Generic[StageT]):
    """The replicas of a stage.

    Args:
        stage: Which one they serve, for the errors.
        stages: By the address that errors may show.
        patience: See there.
        resolve: Says which they are now, asked before they are asked who they are; None where they are always the same.
    """

    def __init__(
        self,
        stage: StageName,
        stages: Mapping[str, StageT],
        *,
        patience: Patience | None = None,
        resolve: Callable[[], Awaitable[Mapping[str, StageT]]] | None = None,
    ) -> None:
        self.stage = stage
        self.patience = patience or Patience()
        self._replicas = {address: Replica(address, each) for address, each in stages.items()}
        self._resolve = resolve
        self._turns = count(1)
        self._looking: asyncio.Task[None] | None = None
        self._unlike: StageNotReady | None = None

    @property
    def all(self) -> tuple[Replica[StageT], ...]:
        return tuple(self._replicas.values())

    @property
    def status(self) -> tuple[ReplicaStatus, ...]:
        return tuple(replica.status for replica in self.all)

    async def identity(self) -> Any:
        """What all that answer agree on; the numerics are those of the first.

        Raises:
            StageError: None answers.
            StageNotReady: They are not alike.
        """
        await self._ask_all()
        if self._unlike is not None:
            raise self._unlike
        for replica in self.all:
            if replica.heard:
                return replica.identity
        raise self.missing()

    def missing(self) -> StageError:
        """Why there is no replica, in the words of the first."""
        problems = (replica.problem for replica in self.all if replica.problem is not None)
        return next(problems, StageNotReady(f"no replica of the {self.stage} stage is there", stage=self.stage))

    async def look(self) -> None:
        """Asks all replicas who they are. Callers at the same time share the answers."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._ask_all())
        await asyncio.shield(self._looking)

    async def says_who_it_is(self, replica: Replica[StageT]) -> bool:
        try:
            async with asyncio.timeout(IDENTITY_TIMEOUT_SECONDS):
                replica.hear(await replica.stage.identity())
        except TimeoutError:
            seconds = f"{IDENTITY_TIMEOUT_SECONDS:g} s"
            words = f"the {self.stage} stage at {replica.address} did not say who it is within {seconds}"
            replica.miss(StageTimeout(words, stage=self.stage))
        except StageError as error:
            replica.miss(error)
        return replica.heard

    async def _ask_all(self) -> None:
        if self._resolve is not None:
            self._take_up(await self._resolve())
        await asyncio.gather(*map(self.says_who_it_is, self.all))
        self._unlike = None
        first, *others = [replica for replica in self.all if replica.heard] or (None,)
        for other in others:
            assert first is not None and other is not None
            self._check_alike(first, other)

    def _take_up(self, stages: Mapping[str, StageT]) -> None:
        """From now on it is these. What runs elsewhere goes on."""
        if list(stages) != list(self._replicas):
            log.info("replicas_changed", stage=self.stage, addresses=list(stages))
            kept = self._replicas
            self._replicas = {address: kept.get(address) or Replica(address, each) for address, each in stages.items()}

    def _check_alike(self, first: Replica[StageT], other: Replica[StageT]) -> None:
        if (field := difference(first.identity, other.identity)) is None:
            return
        here, there = getattr(first.identity, field), getattr(other.identity, field)
        self._unlike = StageNotReady(
            f"the replicas of the {self.stage} stage are not alike: "
            f"the {field} of {first.address} is {here}, that of {other.address} is {there}",
            stage=self.stage,
        )
        other.miss(self._unlike)

    def least_busy(self, replicas: Sequence[Replica[StageT]]) -> Replica[StageT]:
        """Of equally busy ones that whose last turn was longest ago."""
        chosen = min(replicas, key=lambda replica: (replica.load, replica.last_turn))
        chosen.last_turn = next(self._turns)
        return chosen

    async def answers(
        self, replica: Replica[StageT], work: Work, ask: Callable[[StageT], AsyncGenerator[T, None]]
    ) -> AsyncGenerator[T, None]:
        """What a replica answers, as long as nobody better could.

        Raises:
            StageBrokeOff: It fell silent, and another one is there, or it answers questions but not this one.
        """
        heard_at = work.began

        def patience() -> float:
            return max(self.patience.stall_seconds, STALL_MULTIPLE * (replica.pace or 0.0))

        async def suspect(silences: int) -> None:
            if await self.says_who_it_is(replica):
                has_stalled = replica.pace is not None and silences >= SILENCES
            else:
                has_stalled = any(other.is_available for other in self.all if other is not replica)
            if has_stalled:
                seconds = time.monotonic() - heard_at
                words = f"the {self.stage} stage at {replica.address} fell silent for {seconds:.0f} s"
                raise StageBrokeOff(words, stage=self.stage)

        async with aclosing(watched(ask(replica.stage), patience=patience, suspect=suspect)) as answers:
            async for answer in answers:
                heard_at = time.monotonic()
                replica.breaker.succeed()
                yield answer

    async def call(self, ask: Callable[[StageT], Awaitable[T]], *, rows: int, deadline: float | None, keep: bool = False) -> T:
        """The answer of a replica to one question.

        Args:
            rows: How much work it is.
            deadline: Of `time.monotonic()`.
            keep: Whether work was done for it that must not be lost: then it waits for a replica where none is there.

        Raises:
            StageError, QueueFull, TooLarge: As the replicas raised it, where none is left to ask.
        """

        async def once(stage: StageT) -> AsyncGenerator[T, None]:
            yield await ask(stage)

        search = Search(self, deadline=deadline)
        expected: Any = None

        def is_alike(each: Replica[StageT]) -> bool:
            return each.is_like(expected)

        while True:
            replica = await search.next(patiently=keep, suits=is_alike)
            expected = expected or replica.identity
            with replica.at_work(rows) as work:
                try:
                    async with aclosing(self.answers(replica, work, once)) as answers:
                        answer = await anext(answers)
                        async for _ in answers:
                            pass
                except (StageError, QueueFull, TooLarge) as error:
                    search.fail(replica, error, began=work.began)
                else:
                    replica.measure(time.monotonic() - work.began)
                    return answer


class Search(Generic[StageT]):
    """One request's way from replica to replica.

    Args:
        replicas: To choose from.
        deadline: Of the request, by `time.monotonic()`.
    """

    def __init__(self, replicas: Replicas[StageT], *, deadline: float | None) -> None:
        self._replicas = replicas
        self._deadline = float("inf") if deadline is None else deadline
        self._too_small: dict[str, TooLarge] = {}
        self.begin_anew()

    def progress(self) -> None:
        """The request got somewhere: all that went wrong before is forgotten."""
        if self._errors:
            self.begin_anew()

    def begin_anew(self) -> None:
        """All replicas may be asked again, but for those that the request would never fit into."""
        self._tried: set[str] = set()
        self._errors: list[StageError | QueueFull] = []
        self._failures = 0
        self._rounds = 0
        self._missed_at: float | None = None

    async def next(self, *, patiently: bool, suits: Callable[[Replica[StageT]], bool] = lambda replica: True) -> Replica[StageT]:
        """The least busy replica that was not asked in this round.

        Args:
            patiently: Whether to wait for one where none is there.
            suits: Whether a replica can do it.

        Raises:
            StageError, QueueFull: There is none; the first thing that went wrong.
            TooLarge: It would fit into none.
            StageNotReady: Those that are there can not do it, because another stage is in their place.
        """
        while True:
            suited = [replica for replica in self._replicas.all if suits(replica)]
            large_enough = [replica for replica in suited if replica.address not in self._too_small]
            if suited and not large_enough:
                raise self._too_small[suited[0].address]
            there = [replica for replica in large_enough if replica.is_available]
            if fresh := [replica for replica in there if replica.address not in self._tried]:
                chosen = self._replicas.least_busy(fresh)
                self._tried.add(chosen.address)
                return chosen
            self._check_suitable(suits)
            await self._wait_for_the_next_round(patiently=patiently)

    def _check_suitable(self, suits: Callable[[Replica[StageT]], bool]) -> None:
        heard = [replica for replica in self._replicas.all if replica.heard]
        if heard and not any(map(suits, heard)):
            stage = self._replicas.stage
            raise StageNotReady(f"the {stage} stage was exchanged for another in mid-picture", stage=stage)

    def fail(self, replica: Replica[StageT], error: StageError | QueueFull | TooLarge, *, began: float) -> None:
        """It did not answer. Raises the error where nobody else is to be asked."""
        if isinstance(error, TooLarge):
            self._too_small[replica.address] = error
            return
        if isinstance(error, StageError):
            if isinstance(error, StageTimeout) and time.monotonic() >= self._deadline:
                raise error
            replica.fail(error, began=began)
            log.warning("replica_failed", stage=self._replicas.stage, address=replica.address, reason=error.message)
        self._errors.append(error)
        if not isinstance(error, StageNotReady | QueueFull):
            self._failures += 1
            if self._failures == MOST_FAILURES:
                raise error

    async def _wait_for_the_next_round(self, *, patiently: bool) -> None:
        now = time.monotonic()
        wait = self._replicas.patience.wait_seconds
        if self._missed_at is None:
            self._missed_at = now
        problem = self._errors[0] if self._errors else self._not_ready()
        # Who failed may not fail again; for one that is not there, whoever sent the request waits.
        if not wait or not (patiently or self._failures):
            raise problem
        left = min(self._missed_at + wait, self._deadline) - now
        if left <= 0:
            waited = now - self._missed_at
            raise StageNotReady(f"{problem.message}; waited {waited:.0f} s", stage=self._replicas.stage, waited=True)
        delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0**self._rounds) * random.uniform(0.5, 1.0)
        await asyncio.sleep(min(delay, left))
        if not all(replica.heard for replica in self._replicas.all):
            await self._look(left - delay)
        self._rounds += 1
        self._tried.clear()

    def _not_ready(self) -> StageNotReady:
        """Why nobody was asked; what went wrong with others' requests is no error of this one."""
        problem = self._replicas.missing()
        if isinstance(problem, StageNotReady):
            return problem
        stage = self._replicas.stage
        return StageNotReady(f"no replica of the {stage} stage is ready: {problem.message}", stage=stage)

    async def _look(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._replicas.look()
        except TimeoutError:
            pass
