"""`POST /generate`: a request comes in, pictures go out as JSON, as the picture itself, or as a stream of events."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from triptych.contract import EncodeRequest, ImageFormat, StageName
from triptych.errors import InvalidValue, NotAcceptable, StageError, TriptychError, UnsupportedMediaType
from triptych.gateway import event_stream
from triptych.gateway.errors import ErrorAnswer, gateway_error
from triptych.gateway.event_stream import Event, EventStream
from triptych.gateway.negotiation import choose_media_type
from triptych.gateway.parameters import GenerateBody, Parameters, parse_body, resolve
from triptych.gateway.registry import Model
from triptych.gateway.state import Gateway, GatewayDep
from triptych.pipeline import Generated, StageProgress
from triptych.serving.presence import cancelled_when_the_client_leaves
from triptych.serving.request_ids import request_id
from triptych.wire.bodies import read_bounded
from triptych.wire.deadlines import read_deadline

JSON = "application/json"
IMAGES: Mapping[str, ImageFormat] = {f"image/{image_format}": image_format for image_format in ImageFormat}

router = APIRouter()
log = structlog.get_logger(__name__)


# What the answer looks like as JSON


class GeneratedImage(BaseModel):
    """One picture."""

    b64_json: str = Field(description="The encoded file, base64.")
    seed: int = Field(description="What makes this picture again as the only one of a request.")


class Timings(BaseModel):
    """Where the time went."""

    queue_seconds: float = Field(description="Waiting for a turn at the gateway.")
    text_encoder_seconds: float
    diffusion_seconds: float
    decoder_seconds: float
    gateway_seconds: float = Field(description="Everything that was neither waiting nor a stage.")
    total_seconds: float


class GenerateAnswer(BaseModel):
    """The answer to `POST /generate` as JSON, and the data of the event `completed`."""

    id: str
    model: str
    images: list[GeneratedImage]
    parameters: dict[str, Any] = Field(description="What was done, every default filled in.")
    warnings: list[str]
    timings: Timings


# What the documentation page shows

BODY_SCHEMA = GenerateBody.model_json_schema()

EXAMPLES: Mapping[str, Any] = {
    "plain": {"summary": "Only a prompt", "value": {"prompt": "a red circle on a blue background"}},
    "repeatable": {
        "summary": "Two pictures that can be made again",
        "value": {"prompt": "a green star on a white background", "seed": 7, "num_images": 2, "num_steps": 20},
    },
}

_STREAM_EXAMPLE = """event: progress
data: {"stage": "diffusion", "position": 3, "num_evaluations": 20}

event: completed
data: {"id": "...", "images": [{"b64_json": "...", "seed": 7}], ...}
"""

_REFUSALS = {
    400: "The body is not JSON.",
    401: "No key of this gateway was sent.",
    403: "This gateway has no keys and answers its own machine only.",
    404: "No such model.",
    406: "The Accept header takes none of the answers.",
    413: "The body is too large.",
    415: "The body is not sent as JSON.",
    422: "A field is unknown, missing, or impossible for the model; `param` names it.",
    429: "The queue is full; Retry-After says when a place should be free.",
    502: "A stage failed; `param` names it.",
    503: "A stage is down, starting or stopping; `param` names it.",
    504: "A stage was too slow; `param` names it.",
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures, in the form that the Accept header asks for.",
        "content": {
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in IMAGES},
            event_stream.MEDIA_TYPE: {"schema": {"type": "string"}, "example": _STREAM_EXAMPLE},
        },
    },
    **{status: {"model": ErrorAnswer, "description": words} for status, words in _REFUSALS.items()},
}


# One request on its way


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, understood and accepted.

    Attributes:
        arrived: When the request came, by `time.monotonic()`.
        deadline: When nobody waits for it any more, by the same clock.
    """

    id: str
    model: Model
    parameters: Parameters
    arrived: float
    deadline: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a job came to."""

    job: Job
    generated: Generated
    queue_seconds: float
    answered: float = field(default_factory=time.monotonic)

    @property
    def files(self) -> tuple[bytes, ...]:
        assert isinstance(self.generated.images, tuple), "the gateway asks for encoded files"
        return self.generated.images

    @property
    def timings(self) -> Timings:
        stages = {f"{stage}_seconds": seconds for stage, seconds in self.generated.seconds.items()}
        total = self.answered - self.job.arrived
        gateway = total - self.queue_seconds - sum(stages.values())
        return Timings(queue_seconds=self.queue_seconds, gateway_seconds=gateway, total_seconds=total, **stages)

    def to_document(self) -> GenerateAnswer:
        return GenerateAnswer(
            id=self.job.id,
            model=self.job.parameters.model,
            images=[
                GeneratedImage(b64_json=base64.b64encode(file).decode("ascii"), seed=seed)
                for file, seed in zip(self.files, self.generated.seeds, strict=True)
            ],
            parameters=self.job.parameters.as_json(),
            warnings=list(self.generated.warnings),
            timings=self.timings,
        )

    @property
    def headers(self) -> dict[str, str]:
        milliseconds = {name.removesuffix("_seconds"): 1000 * seconds for name, seconds in self.timings}
        return {
            "X-Triptych-Id": self.job.id,
            "X-Triptych-Seed": str(self.generated.seeds[0]),
            "Server-Timing": ", ".join(f"{name};dur={duration:.1f}" for name, duration in milliseconds.items()),
        }

    def as_json(self) -> Response:
        return Response(self.to_document().model_dump_json(), headers=self.headers, media_type=JSON)

    def as_image(self) -> Response:
        (file,) = self.files
        return Response(file, headers=self.headers, media_type=f"image/{self.job.parameters.output_format}")


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    responses=RESPONSES,
    openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": BODY_SCHEMA, "examples": EXAMPLES}}}},
)
async def generate(request: Request, gateway: GatewayDep) -> Response:
    """Makes one to eight pictures of a prompt.

    The Accept header decides the form of the answer: `application/json`, the picture itself as `image/png`, `image/jpeg` or
    `image/webp`, or `text/event-stream` with `progress` events, then one `completed` or `error`.
    """
    arrived = time.monotonic()
    body = parse_body(await _read_json(request, limit=gateway.settings.max_body_bytes))
    media_type = _negotiate(request.headers.get("Accept", "*/*"), body)
    job = await _accept(gateway, request, body, media_type, arrived)
    gateway.admission.refuse_if_full()
    if media_type == event_stream.MEDIA_TYPE:
        return EventStream(_as_events(gateway, job), headers={"X-Triptych-Id": job.id})
    async with cancelled_when_the_client_leaves(request.receive):
        answer = await _work_to_the_end(gateway, job)
    return answer.as_json() if media_type == JSON else answer.as_image()


async def _read_json(request: Request, *, limit: int) -> bytes:
    """The body. Other kinds are refused also so that no page of a browser can post here without being asked first."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise UnsupportedMediaType(f"the body must be sent as Content-Type: {JSON}, not {kind or 'without one'}")
    return await read_bounded(request.stream(), request.headers, limit=limit)


def _negotiate(accept: str, body: GenerateBody) -> str:
    """What to answer with, where the body and the Accept header must not contradict each other."""
    producible = (JSON, *IMAGES, event_stream.MEDIA_TYPE)
    fitting = [media_type for media_type in producible if _contradiction(media_type, body) is None]
    chosen = choose_media_type(accept, fitting)
    if chosen is not None:
        return chosen
    unfitting = choose_media_type(accept, producible)
    if unfitting is None:
        raise NotAcceptable(f"the Accept header takes none of what can be answered: {', '.join(producible)}")
    contradiction = _contradiction(unfitting, body)
    assert contradiction is not None
    raise contradiction


def _contradiction(media_type: str, body: GenerateBody) -> InvalidValue | None:
    if media_type not in IMAGES:
        return None
    if (body.num_images or 1) > 1:
        return InvalidValue(f"{media_type} is one picture: num_images must be 1, or ask for {JSON}", param="num_images")
    if body.output_format not in (None, IMAGES[media_type]):
        return InvalidValue(
            f"output_format {body.output_format} contradicts the Accept header, which asks for {media_type}",
            param="output_format",
        )
    return None


async def _accept(gateway: Gateway, request: Request, body: GenerateBody, media_type: str, arrived: float) -> Job:
    """The request as a job of a model that is there and can do it."""
    deadline = read_deadline(request.headers, longest_seconds=gateway.settings.request_timeout_seconds)
    model = await gateway.registry.find(body.model, deadline=deadline)
    identities = await model.known(deadline=deadline)
    if media_type in IMAGES:
        body = body.model_copy(update={"output_format": IMAGES[media_type]})
    return Job(
        id=request_id(request),
        model=model,
        parameters=resolve(body, str(model.name), identities),
        arrived=arrived,
        deadline=deadline,
    )


async def _work(gateway: Gateway, job: Job) -> AsyncGenerator[StageProgress | Answer, None]:
    """Waits for the job's turn and carries it out: progress, then the answer, the last."""
    queued = time.monotonic()
    try:
        async with gateway.admission.turn(job.deadline):
            queue_seconds = time.monotonic() - queued
            async with aclosing(job.model.pipeline.generate(job.parameters.to_request(), deadline=job.deadline)) as events:
                async for event in events:
                    if isinstance(event, StageProgress):
                        at_work = event.stage
                        yield event
                    else:
                        generated = event
    except StageError:
        job.model.forget()
        raise
    except InvalidValue as error:
        raise (await _name_the_prompt(job, error) if at_work is StageName.TEXT_ENCODER else error) from None
    # The place is free again before the answer is sent: a slow reader holds nobody up.
    gateway.metrics.count(generated, job.parameters.model)
    yield Answer(job=job, generated=generated, queue_seconds=queue_seconds)


async def _name_the_prompt(job: Job, error: InvalidValue) -> InvalidValue:
    """The text encoder was sent two prompts and refuses one of them; asked for the first alone it shows which."""
    prompt, *others = job.parameters.to_request().to_encode().prompts
    try:
        if others:
            await job.model.pipeline.text_encoder.encode(EncodeRequest(prompts=(prompt,)), deadline=job.deadline)
            return InvalidValue(error.message, param="negative_prompt")
    except InvalidValue:
        pass
    return InvalidValue(error.message, param="prompt")


async def _work_to_the_end(gateway: Gateway, job: Job) -> Answer:
    async with aclosing(_work(gateway, job)) as events:
        async for event in events:
            if isinstance(event, Answer):
                return event
    raise AssertionError("a job ends in an answer or in an error")


async def _as_events(gateway: Gateway, job: Job) -> AsyncGenerator[Event, None]:
    """The job as server-sent events; whatever goes wrong from here on is an event too, as the status has been sent."""
    try:
        async with aclosing(_work(gateway, job)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    yield Event(name="completed", data=event.to_document().model_dump(mode="json"))
                else:
                    yield Event(name="progress", data=_progress(event))
    except TriptychError as error:
        yield Event(name="error", data=gateway_error(error))
    except Exception:
        log.exception("generate_failed", id=job.id)
        yield Event(name="error", data=gateway_error(TriptychError("something went wrong here, and has been logged")))


def _progress(progress: StageProgress) -> dict[str, Any]:
    told = {"position": progress.position, "num_evaluations": progress.num_evaluations}
    return {"stage": progress.stage} | {name: value for name, value in told.items() if value is not None}
