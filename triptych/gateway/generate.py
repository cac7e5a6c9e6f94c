"""`POST /generate`: a request comes in, pictures go out as JSON, as the picture itself, or as a stream of events.

`DELETE /requests/{name}` ends one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from typing import Any

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from triptych.contract import ImageFormat
from triptych.errors import Forbidden, InvalidValue, NotAcceptable, NotFound, StageNotReady, TriptychError, UnsupportedMediaType
from triptych.gateway import event_stream
from triptych.gateway.answers import GenerateAnswer, image_response, json_response, preview_document, to_document
from triptych.gateway.body import GenerateBody, parse_body, parse_form
from triptych.gateway.documentation import CANCEL_RESPONSES, REQUEST_BODY, RESPONSES
from triptych.gateway.editing import read_pictures
from triptych.gateway.errors import gateway_error
from triptych.gateway.event_stream import Event, EventStream
from triptych.gateway.forms import MEDIA_TYPE as FORM
from triptych.gateway.forms import read_form
from triptych.gateway.negotiation import choose_media_type
from triptych.gateway.orders import Job, Order, find, give
from triptych.gateway.parameters import draw_seed
from triptych.gateway.previews import Preview
from triptych.gateway.state import Gateway, GatewayDep
from triptych.gateway.work import Outcome, carry_out, carry_out_to_the_end
from triptych.pipeline import StageProgress
from triptych.serving.presence import cancelled_when_the_client_leaves
from triptych.serving.request_ids import request_id
from triptych.wire.bodies import read_bounded
from triptych.wire.deadlines import read_deadline
from triptych.wire.open_inference import quoted

JSON = "application/json"
IMAGES: Mapping[str, ImageFormat] = {f"image/{image_format}": image_format for image_format in ImageFormat}

router = APIRouter()
log = structlog.get_logger(__name__)


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    responses=RESPONSES,
    openapi_extra=REQUEST_BODY,
)
async def generate(request: Request, gateway: GatewayDep) -> Response:
    """Makes one to eight pictures of a prompt, or changes a picture by it.

    The Accept header decides the form of the answer: `application/json`, the picture itself as `image/png`, `image/jpeg` or
    `image/webp`, or `text/event-stream` with `progress` events, and `preview` events where the body asks for previews, then
    one `completed` or `error`.
    """
    arrived = time.monotonic()
    body = await _read_body(request, limit=gateway.settings.max_body_bytes)
    media_type = _negotiate(", ".join(request.headers.getlist("Accept")) or "*/*", body)
    if body.previews and media_type != event_stream.MEDIA_TYPE:
        raise InvalidValue(f"previews are events: ask for them with Accept: {event_stream.MEDIA_TYPE}", param="previews")
    order = await _understand(gateway, request, body, media_type, arrived)
    with ExitStack() as held:
        job = await _accept(gateway, order, held)
        gateway.admission.refuse_if_full()
        if media_type == event_stream.MEDIA_TYPE:
            held = held.pop_all()
            return EventStream(_as_events(gateway, order, job, held), headers={"X-Triptych-Id": order.id}, held=held)
        async with cancelled_when_the_client_leaves(request.receive):
            outcome = await carry_out_to_the_end(gateway, order, job, held)
    return json_response(outcome) if media_type == JSON else image_response(outcome)


@router.delete("/requests/{request_name}", status_code=204, responses=CANCEL_RESPONSES)
async def cancel(request_name: str, gateway: GatewayDep) -> None:
    """Ends a request that is in line or at work, before its next evaluation; its caller is answered 499.

    A request's name is what its caller sent as `X-Request-Id`, else what is answered as `X-Triptych-Id`.
    """
    if not await gateway.running.cancel(request_name):
        raise NotFound(f"no request {quoted(request_name)} is in line or at work here")


async def _read_body(request: Request, *, limit: int) -> GenerateBody:
    """The body. A form is not taken from another site's page: browsers post forms without asking here first."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM):
        raise UnsupportedMediaType(f"the body must be sent as Content-Type: {JSON} or {FORM}, not {kind or 'without one'}")
    if kind == FORM and request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        raise Forbidden(f"a page of another site may not post forms here; send {JSON}")
    raw = await read_bounded(request.stream(), request.headers, limit=limit)
    return parse_body(raw) if kind == JSON else parse_form(await read_form(raw, request.headers))


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


async def _understand(gateway: Gateway, request: Request, body: GenerateBody, media_type: str, arrived: float) -> Order:
    """What is wanted, whoever can do it; its pictures are decoded."""
    deadline = read_deadline(request.headers, longest_seconds=gateway.settings.request_timeout_seconds)
    filled_in: dict[str, Any] = {"seed": draw_seed()} if body.seed is None else {}
    if media_type in IMAGES:
        filled_in["output_format"] = IMAGES[media_type]
    return Order(
        id=request_id(request),
        body=body.model_copy(update=filled_in),
        pictures=await asyncio.to_thread(read_pictures, body, max_pixels=gateway.settings.max_image_pixels),
        arrived=arrived,
        deadline=deadline,
    )


async def _accept(gateway: Gateway, order: Order, held: ExitStack) -> Job | None:
    """The order for a model that is there and can do it; the model counts it until what is held is let go.

    None where no model is there now, and the order may wait for one.
    """
    try:
        model = await find(gateway.registry, order, deadline=order.deadline)
        held.enter_context(model.in_use())
        return await give(order, model, deadline=order.deadline)
    except StageNotReady:
        if not gateway.settings.stage_wait_seconds:
            raise
        return None


async def _as_events(gateway: Gateway, order: Order, job: Job | None, held: ExitStack) -> AsyncGenerator[Event, None]:
    """The order as server-sent events; whatever goes wrong from here on is an event too, as the status has been sent."""
    try:
        async with aclosing(carry_out(gateway, order, job, held)) as events:
            async for event in events:
                yield _told(event)
    except TriptychError as error:
        yield Event(name="error", data=gateway_error(error))
    except Exception:
        log.exception("generate_failed", id=order.id)
        yield Event(name="error", data=gateway_error(TriptychError("something went wrong here, and has been logged")))


def _told(event: StageProgress | Preview | Outcome) -> Event:
    if isinstance(event, Outcome):
        return Event(name="completed", data=to_document(event).model_dump(mode="json"))
    if isinstance(event, Preview):
        return Event(name="preview", data=preview_document(event).model_dump(mode="json"))
    return Event(name="progress", data=_progress(event))


def _progress(progress: StageProgress) -> dict[str, Any]:
    told = {"position": progress.position, "num_evaluations": progress.num_evaluations}
    return {"stage": progress.stage} | {name: value for name, value in told.items() if value is not None}
