"""One request on its way: accepted, in line, at work, answered."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from triptych.contract import ImageFormat, StageName
from triptych.errors import InvalidValue, StageBrokeOff, StageError, StageNotReady, StageTimeout
from triptych.gateway.orders import Job, Order, find, give
from triptych.gateway.parameters import cost_of
from triptych.gateway.previews import Preview, Previews
from triptych.gateway.registry import Identities
from triptych.gateway.state import Gateway
from triptych.gateway.waiting import Wait
from triptych.pipeline import Generated, PredictedOriginal, StageProgress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an order came to: all that is told of it, and nothing of what came with it, which whoever keeps this would hold.

    Attributes:
        id: The order's.
        model: The name of the model that made it in the end.
        identities: That model's stages.
        output_format: Of the files.
        parameters: What was done, every default filled in.
        warnings: What the caller should know of how it came about, but for what the stages say.
        arrived: When the order came, by `time.monotonic()`.
        queue_seconds: How long it waited, for its turn and for stages that were gone.
        ended: When it was done, by the same clock.
    """

    id: str
    model: str
    identities: Identities
    output_format: ImageFormat
    parameters: Mapping[str, Any]
    warnings: tuple[str, ...]
    generated: Generated
    arrived: float
    queue_seconds: float
    ended: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, job: Job, generated: Generated, *, queue_seconds: float) -> Outcome:
        """What the order of this job came to."""
        return cls(
            id=job.order.id,
            model=job.parameters.model,
            identities=job.identities,
            output_format=job.parameters.output_format,
            parameters=job.parameters.as_json(),
            warnings=job.warnings,
            generated=generated,
            arrived=job.order.arrived,
            queue_seconds=queue_seconds,
        )


Event: TypeAlias = StageProgress | Preview | Outcome


def carry_out(gateway: Gateway, order: Order, job: Job | None, held: ExitStack) -> AsyncGenerator[Event, None]:
    """Waits for the order's turn and carries it out: progress and previews, then the outcome, the last.

    Closing the iterator ends the work, and so does `gateway.running.cancel` with the order's name.

    Args:
        gateway: Whose models are asked, and whose turn it is.
        order: What is wanted.
        job: The order for the model that was there when it came; None where there was none, and it may wait for one.
        held: Has the model count the job, and holds nothing else; where another one gets it, that one's count is held instead.

    Raises:
        RequestCancelled: By the latter.
    """
    return gateway.running.follow(order.id, partial(_carry_out, gateway, order, job, held))


async def outcome_of(events: AsyncGenerator[Event, None]) -> Outcome:
    """What the work of these events came to; leaving it before ends the work."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Outcome):
                return event
    raise AssertionError("an order ends in an outcome or in an error")


async def _carry_out(gateway: Gateway, order: Order, job: Job | None, held: ExitStack, tell: Callable[[Event], None]) -> None:
    queued = time.monotonic()
    work = None if job is None else job.parameters.work
    cache_interval = order.body.cache_interval or 1
    async with gateway.admission.turn(order.deadline, key=order.key, priority=order.priority, work=work) as turn:

        def note_and_tell(event: Event) -> None:
            if isinstance(event, StageProgress) and event.position and event.num_evaluations:
                done, all_ = (cost_of(number, cache_interval) for number in (event.position, event.num_evaluations))
                turn.note(done / all_)
            tell(event)

        attempt, generated = await _try_until_made(gateway, order, job, held, note_and_tell)
    # The place is free again before the answer is sent: a slow reader holds nobody up.
    gateway.metrics.count(generated, attempt.job.parameters.model)
    tell(Outcome.of(attempt.job, generated, queue_seconds=attempt.began - queued))


async def _try_until_made(
    gateway: Gateway, order: Order, job: Job | None, held: ExitStack, tell: Callable[[Event], None]
) -> tuple[Attempt, Generated]:
    """Has the pictures made by the stages that are there, and once more by those that are there later where one is lost.

    Nothing is lost where a stage says before the first evaluation that it is not ready: that is no attempt.
    """
    begin_to_wait = partial(Wait, seconds=gateway.settings.stage_wait_seconds, deadline=order.deadline)
    wait = begin_to_wait()
    previews = order.body.previews or 0
    warnings: tuple[str, ...] = ()
    while True:
        job = await wait.until_there(partial(_up_to_date, gateway, order, job, wait, held))
        attempt = Attempt(gateway, replace(job, warnings=(*job.warnings, *warnings)), tell, previews=previews)
        try:
            return attempt, await attempt.make()
        except (StageNotReady, StageBrokeOff) as error:
            if isinstance(error, StageNotReady) and error.waited:
                raise
            if attempt.has_lost_work:
                if warnings:
                    raise
                warnings = (f"{error.message}; the pictures were begun anew",)
                wait = begin_to_wait()
            wait.miss(error)
            previews = attempt.previews


async def _up_to_date(gateway: Gateway, order: Order, job: Job | None, wait: Wait, held: ExitStack) -> Job:
    """The job, or where its model's stages are not what they were, or are gone, the order for whatever is there now."""
    if job is not None and job.is_up_to_date:
        return job
    # A wait that has begun ends by itself, with its own words.
    deadline = None if wait.has_begun else order.deadline
    model = await find(gateway.registry, order, patiently=wait.has_begun, deadline=deadline)
    held.close()
    held.enter_context(model.in_use())
    return await give(order, model, patiently=wait.has_begun, deadline=deadline)


class Attempt:
    """One go at a job.

    Attributes:
        job: Which.
        began: When, by `time.monotonic()`.
        previews: How many may still be told.
    """

    def __init__(self, gateway: Gateway, job: Job, tell: Callable[[StageProgress | Preview], None], *, previews: int) -> None:
        self.job = job
        self.began = time.monotonic()
        self.previews = previews
        self._gateway = gateway
        self._tell = tell
        self._at_work = StageName.TEXT_ENCODER
        self._has_evaluated = False

    async def make(self) -> Generated:
        """The pictures; their progress and previews are told on the way.

        Raises:
            InvalidValue, StageError: As a stage raised it; the former names the caller's field.
        """
        try:
            return await self._follow()
        except StageTimeout:
            raise  # a caller with little patience says nothing about the stage
        except StageError:
            self.job.model.forget()
            raise
        except InvalidValue as error:
            if self._at_work is StageName.TEXT_ENCODER:
                raise await self._name_the_prompt(error) from None
            # Its text encoder joins more chunks than its diffusion stage takes: no caller has sent a context.
            raise (InvalidValue(error.message, param="prompt") if error.param == "context" else error) from None

    @property
    def has_lost_work(self) -> bool:
        """Whether there were evaluations before it failed. Where what is made is kept, nothing is lost."""
        return self._has_evaluated and self.job.order.keep is None

    async def _follow(self) -> Generated:
        order = self.job.order
        request = replace(self.job.parameters.to_request(), previews=self.previews, priority=order.priority)
        keep = None if order.keep is None else order.keep(self.job)
        pictures = self.job.model.pipeline.generate(request, deadline=order.deadline, keep=keep)
        async with aclosing(pictures) as events, self._previews() as previews, AsyncExitStack() as decoding:
            async for event in events:
                if isinstance(event, PredictedOriginal):
                    previews.offer(event)
                elif isinstance(event, StageProgress):
                    self._note(event)
                    if event.stage is StageName.DECODER:
                        await decoding.enter_async_context(self.job.model.idle_decoder.left_to_a_picture())
                else:
                    generated = event
        return generated

    def _note(self, progress: StageProgress) -> None:
        self._at_work = progress.stage
        self._has_evaluated |= progress.position is not None or progress.stage is StageName.DECODER
        self._tell(progress)

    def _previews(self) -> Previews:
        return Previews(
            self.job.model.idle_decoder,
            most=self.previews,
            deadline=self.job.order.deadline,
            tell=self._tell_preview,
            count=partial(self._gateway.metrics.count_preview, self.job.parameters.model),
        )

    def _tell_preview(self, preview: Preview) -> None:
        self.previews -= 1
        self._tell(preview)

    async def _name_the_prompt(self, error: InvalidValue) -> InvalidValue:
        """The text encoder was sent two prompts and refuses one of them; asked for the first alone it shows which."""
        request = self.job.parameters.to_request().to_encode()
        prompt, *others = request.prompts
        try:
            if others:
                alone = replace(request, prompts=(prompt,))
                await self.job.model.pipeline.text_encoder.encode(alone, deadline=self.job.order.deadline)
                return InvalidValue(error.message, param="negative_prompt")
        except InvalidValue:
            pass
        return InvalidValue(error.message, param="prompt")
