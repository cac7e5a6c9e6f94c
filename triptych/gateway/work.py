"""One request on its way: accepted, in line, at work, answered."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from triptych.contract import StageName
from triptych.errors import InvalidValue, StageError, StageTimeout
from triptych.gateway.parameters import Parameters
from triptych.gateway.previews import Preview, Previews
from triptych.gateway.registry import Identities, Model
from triptych.gateway.state import Gateway
from triptych.pipeline import Generated, PredictedOriginal, StageProgress


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, understood and accepted.

    Attributes:
        previews: How many are wanted.
        warnings: What the caller should know of a default that was filled in.
        identities: What its stages said of themselves when it was accepted.
        arrived: When the request came, by `time.monotonic()`.
        deadline: When nobody waits for it any more, by the same clock.
    """

    id: str
    model: Model
    identities: Identities
    parameters: Parameters
    previews: int
    warnings: tuple[str, ...]
    arrived: float
    deadline: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job came to.

    Attributes:
        queue_seconds: How long it waited for its turn.
        ended: When it was done, by `time.monotonic()`.
    """

    job: Job
    generated: Generated
    queue_seconds: float
    ended: float = field(default_factory=time.monotonic)


Event: TypeAlias = StageProgress | Preview | Outcome


def carry_out(gateway: Gateway, job: Job) -> AsyncGenerator[Event, None]:
    """Waits for the job's turn and carries it out: progress and previews, then the outcome, the last.

    Closing the iterator ends the work, and so does `gateway.running.cancel` with the job's name.

    Raises:
        RequestCancelled: By the latter.
    """
    return gateway.running.follow(job.id, partial(_carry_out, gateway, job))


async def _carry_out(gateway: Gateway, job: Job, tell: Callable[[Event], None]) -> None:
    queued = time.monotonic()
    try:
        async with gateway.admission.turn(job.deadline):
            queue_seconds = time.monotonic() - queued
            request = replace(job.parameters.to_request(), previews=job.previews)
            async with (
                aclosing(job.model.pipeline.generate(request, deadline=job.deadline)) as events,
                _previews(gateway, job, tell) as previews,
            ):
                with ExitStack() as decoding:
                    async for event in events:
                        if isinstance(event, PredictedOriginal):
                            previews.offer(event)
                        elif isinstance(event, StageProgress):
                            at_work = event.stage
                            tell(event)
                            if at_work is StageName.DECODER:
                                decoding.enter_context(job.model.idle_decoder.left_to_a_picture())
                        else:
                            generated = event
    except StageTimeout:
        raise  # a caller with little patience says nothing about the stage
    except StageError:
        job.model.forget()
        raise
    except InvalidValue as error:
        if at_work is StageName.TEXT_ENCODER:
            raise await _name_the_prompt(job, error) from None
        # Its text encoder joins more chunks than its diffusion stage takes: no caller has sent a context.
        raise (InvalidValue(error.message, param="prompt") if error.param == "context" else error) from None
    # The place is free again before the answer is sent: a slow reader holds nobody up.
    gateway.metrics.count(generated, job.parameters.model)
    tell(Outcome(job=job, generated=generated, queue_seconds=queue_seconds))


def _previews(gateway: Gateway, job: Job, tell: Callable[[Preview], None]) -> Previews:
    return Previews(
        job.model.idle_decoder,
        most=job.previews,
        deadline=job.deadline,
        tell=tell,
        count=partial(gateway.metrics.count_preview, job.parameters.model),
    )


async def _name_the_prompt(job: Job, error: InvalidValue) -> InvalidValue:
    """The text encoder was sent two prompts and refuses one of them; asked for the first alone it shows which."""
    request = job.parameters.to_request().to_encode()
    prompt, *others = request.prompts
    try:
        if others:
            alone = replace(request, prompts=(prompt,))
            await job.model.pipeline.text_encoder.encode(alone, deadline=job.deadline)
            return InvalidValue(error.message, param="negative_prompt")
    except InvalidValue:
        pass
    return InvalidValue(error.message, param="prompt")


async def carry_out_to_the_end(gateway: Gateway, job: Job) -> Outcome:
    async with aclosing(carry_out(gateway, job)) as events:
        async for event in events:
            if isinstance(event, Outcome):
                return event
    raise AssertionError("a job ends in an outcome or in an error")
