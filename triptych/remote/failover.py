"""A denoising that outlives its replicas: the newest state goes on where the last one broke off.

The reader sees one iterator. What was told is not told again, and states that were not asked for are not passed on.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import structlog

from triptych.contract import (
    Denoised,
    DenoiseEvent,
    DenoiseRequest,
    DenoiseState,
    DiffusionIdentity,
    Numerics,
    Progress,
    StageName,
    State,
)
from triptych.errors import Conflict, InvalidValue, MalformedRequest, QueueFull, StageError, StageNotReady, TooLarge
from triptych.remote.open_inference import RemoteDiffusion
from triptych.remote.replica import Replica, ReplicaStatus, Work
from triptych.remote.replicas import Replicas, Search

STATE_BYTES_PER_SECOND = 400e6
"""As fast a state is written, sent and read, roughly: see `docs/failover.md`."""

MOST_OF_AN_EVALUATION = 0.01
"""What states may cost, as a share of the time that the evaluations take."""

log = structlog.get_logger(__name__)


class ReplicatedDiffusion:
    """Keeps the Protocol `Diffusion`.

    Attributes:
        evaluations: Of the network, for all rows, that replicas told of.
        evaluations_repeated: Of them, those that were lost with a replica, and made again by another; with each loss one is
            counted that the replica may have been at.
        resumed: How often a denoising went on elsewhere.

    Args:
        stages: By the address that errors may show.
        options: See `Replicas`.
    """

    def __init__(self, stages: Mapping[str, RemoteDiffusion], **options: Any) -> None:
        self._replicas: Replicas[RemoteDiffusion] = Replicas(StageName.DIFFUSION, stages, **options)
        self.evaluations = 0
        self.evaluations_repeated = 0
        self.resumed = 0

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        return self._replicas.status

    async def identity(self) -> DiffusionIdentity:
        identity: DiffusionIdentity = await self._replicas.identity()
        return identity

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        """See `contract.Diffusion.denoise`. Where it has begun, a replica that fails costs time and nothing else.

        Raises:
            StageNotReady: Other weights are at all addresses now, and this denoising means nothing to them.
        """
        journey = Journey(request)
        search = Search(self._replicas, deadline=deadline)
        while True:
            replica = await search.next(patiently=journey.has_begun, suits=journey.suits)
            journey.board(replica.identity)
            try:
                async with aclosing(self._ride(replica, journey, deadline)) as events:
                    async for event in events:
                        search.progress()
                        yield event
                return
            except (StageError, QueueFull, TooLarge) as error:
                self._lose(journey, begun=not isinstance(error, StageNotReady | QueueFull | TooLarge))
                search.fail(replica, error, began=journey.boarded_at)
            except (Conflict, InvalidValue, MalformedRequest) as error:
                if journey.state is None:
                    raise
                # Another version of the code may be there, to which the state says nothing, though the weights are the same.
                self.evaluations_repeated += journey.begin_anew(error.message) * journey.rows
                search.begin_anew()

    async def _ride(
        self, replica: Replica[RemoteDiffusion], journey: Journey, deadline: float | None
    ) -> AsyncGenerator[DenoiseEvent, None]:
        """As far as one replica takes it."""
        alone = not any(other.heard and journey.suits(other) for other in self._replicas.all if other is not replica)
        request = journey.request(pace=replica.pace, finish_here=alone)
        with replica.at_work(journey.evaluations_left) as work:
            answers = self._replicas.answers(replica, work, lambda stage: stage.denoise(request, deadline=deadline))
            clock = _Clock(replica)
            async with aclosing(answers) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        clock.tick()
                        self.evaluations += journey.advance(event, work)
                    for told in journey.tell(event):
                        yield told

    def _lose(self, journey: Journey, *, begun: bool) -> None:
        """Counts what a replica takes with it."""
        lost = journey.reached - journey.position + begun
        self.evaluations_repeated += lost * journey.rows
        self.resumed += journey.has_begun
        if journey.has_begun:
            log.warning("denoising_goes_on_elsewhere", position=journey.position, lost=lost)


class _Clock:
    """How long a replica takes from one evaluation to the next; the first one tells nothing, it may have waited for its turn."""

    def __init__(self, replica: Replica[RemoteDiffusion]) -> None:
        self._replica = replica
        self._ticked_at: float | None = None

    def tick(self) -> None:
        now = time.monotonic()
        if self._ticked_at is not None:
            self._replica.measure(now - self._ticked_at)
        self._ticked_at = now


class Journey:
    """Where one denoising is, whoever it is with.

    Attributes:
        state: The newest that a replica sent.
        told: Evaluations that the reader heard of.
        reached: Evaluations that the replica at work told of.
        rows: Of the network in each evaluation.
        boarded_at: When the last replica was asked, by `time.monotonic()`.
        warnings: What the reader should know of how it came about.
    """

    def __init__(self, request: DenoiseRequest) -> None:
        self._request = request
        self._identity: DiffusionIdentity | None = None
        self._state_numerics: Numerics | None = None
        self._num_evaluations = request.num_steps
        self._told_state = 0 if request.resume is None else int(request.resume.position.min())
        self.state: DenoiseState | None = None
        self.told = 0
        self.reached = self.position
        self.rows = len(request.seeds) * (1 if request.guidance_scale == 1 else 2)
        self.boarded_at = 0.0
        self.warnings: list[str] = []

    @property
    def position(self) -> int:
        """Evaluations that need not be made again."""
        newest = self.state or self._request.resume
        return 0 if newest is None else int(newest.position.min())

    @property
    def has_begun(self) -> bool:
        return self.state is not None or self.told > 0

    @property
    def evaluations_left(self) -> int:
        return max(1, self._num_evaluations - self.reached) * self.rows

    def suits(self, replica: Replica[RemoteDiffusion]) -> bool:
        """Whether it has the weights that this began with, as far as is known."""
        return replica.is_like(self._identity)

    def board(self, identity: DiffusionIdentity | None) -> None:
        """A replica with this identity goes on with it."""
        self.boarded_at = time.monotonic()
        self.reached = self.position
        self._identity = self._identity or identity
        numerics = None if identity is None else identity.numerics
        if self.state is not None and numerics and self._state_numerics and numerics != self._state_numerics:
            self.warnings.append(
                f"the denoising went on after evaluation {self.position} on another replica, whose numerics differ: "
                "the pictures may differ a little from what either replica would have made alone"
            )
        self._state_numerics = numerics

    def begin_anew(self, reason: str) -> int:
        """From the start, or from the state that came with the request; the evaluations that this costs."""
        before, self.state = self.position, None
        self.warnings.append(f"the denoising was begun anew: {reason}")
        return before - self.position

    def request(self, *, pace: float | None, finish_here: bool) -> DenoiseRequest:
        """What a replica is asked for.

        Args:
            pace: Seconds an evaluation takes there, where it was measured.
            finish_here: Whether nobody else could go on with it.
        """
        every = self._states_every(pace)
        resume = self.state or self._request.resume
        return replace(self._request, progress_every=every, resume=resume, finish_here=self._request.finish_here or finish_here)

    def _states_every(self, pace: float | None) -> int:
        """1 where a state costs little against an evaluation, else as many evaluations as make it so."""
        every = 1
        if pace and self.state is not None:
            size = self.state.latents.nbytes + self.state.sampler_state.nbytes
            every = max(1, math.ceil(size / STATE_BYTES_PER_SECOND / (MOST_OF_AN_EVALUATION * pace)))
        return every if self._request.progress_every is None else math.gcd(every, self._request.progress_every)

    def advance(self, progress: Progress, work: Work) -> int:
        """Notes how far the replica is; evaluations of rows that it has made since it last said so."""
        made = max(0, progress.position - self.reached)
        self.reached, self._num_evaluations = progress.position, progress.num_evaluations
        work.evaluations_left = self.evaluations_left
        return made * self.rows

    def tell(self, event: DenoiseEvent) -> Iterator[DenoiseEvent]:
        """What the reader has not heard yet."""
        match event:
            case Progress():
                if event.position > self.told:
                    self.told = event.position
                    yield event
            case State():
                self.state = event.state
                if self._is_asked_for(self.position):
                    self._told_state = self.position
                    yield event
            case Denoised():
                yield replace(event, warnings=(*event.warnings, *self.warnings))

    def _is_asked_for(self, position: int) -> bool:
        """Whether a state was due since the last one that was told; under a `cache_interval` it comes later than it is due."""
        every = self._request.progress_every
        return every is not None and position // every > self._told_state // every
