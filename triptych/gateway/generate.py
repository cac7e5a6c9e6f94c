"""`POST /generate`: a request comes in, pictures go out as JSON, as the picture itself, or as a stream of events.

`DELETE /requests/{name}` ends one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from triptych.errors import InvalidValue, NotAcceptable, NotFound, TriptychError
from triptych.gateway import event_stream
from triptych.gateway.answers import GenerateAnswer, image_response, json_response, preview_document, to_document
from triptych.gateway.body import GenerateBody
from triptych.gateway.documentation import CANCEL_RESPONSES, IDEMPOTENCY_KEY, REQUEST_BODY, RESPONSES
from triptych.gateway.errors import gateway_error
from triptych.gateway.event_stream import Event, EventStream
from triptych.gateway.idempotency import digest_of, read_idempotency_key
from triptych.gateway.negotiation import choose_media_type
from triptych.gateway.orders import Order
from triptych.gateway.previews import Preview
from triptych.gateway.reception import IMAGES, JSON, accept, read_body, understand
from triptych.gateway.shared_runs import Run
from triptych.gateway.state import Gateway, GatewayDep
from triptych.gateway.work import Event as WorkEvent
from triptych.gateway.work import Outcome, carry_out, outcome_of
from triptych.pipeline import StageProgress
from triptych.serving.presence import cancelled_when_the_client_leaves
from triptych.wire.open_inference import quoted

router = APIRouter()
log = structlog.get_logger(__name__)


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    responses=RESPONSES,
    openapi_extra={**REQUEST_BODY, "parameters": [IDEMPOTENCY_KEY]},
)
async def generate(request: Request, gateway: GatewayDep) -> Response:
    """Makes one to eight pictures of a prompt, or changes a picture by it.

    The Accept header decides the form of the answer: `application/json`, the picture itself as `image/png`, `image/jpeg` or
    `image/webp`, or `text/event-stream` with `progress` events, and `preview` events where the body asks for previews, then
    one `completed` or `error`.
    """
    arrived = time.monotonic()
    with ExitStack() as held:
        body = await read_body(request, gateway, held)
        media_type = _negotiate(", ".join(request.headers.getlist("Accept")) or "*/*", body)
        if body.previews and media_type != event_stream.MEDIA_TYPE:
            raise InvalidValue(f"previews are events: ask for them with Accept: {event_stream.MEDIA_TYPE}", param="previews")
        idempotency_key = read_idempotency_key(request.headers)
        order = await understand(gateway, request, body, media_type, arrived, held)
        if idempotency_key is None and not body.detach:
            events = await _begin(gateway, order, held.enter_context(ExitStack()))
        else:
            digest = digest_of(body, media_type if media_type in IMAGES else "")
            run = await _share(gateway, order, idempotency_key, digest, held)
            run.detached |= bool(body.detach)
            events = held.enter_context(run.followed())
        if media_type == event_stream.MEDIA_TYPE:
            held = held.pop_all()
            return EventStream(_as_events(order.id, events), headers={"X-Triptych-Id": order.id}, held=held)
        async with cancelled_when_the_client_leaves(request.receive):
            outcome = await outcome_of(events)
    return json_response(outcome) if media_type == JSON else image_response(outcome)


@router.delete("/requests/{request_name}", status_code=204, responses=CANCEL_RESPONSES)
async def cancel(request_name: str, gateway: GatewayDep) -> None:
    """Ends a request that is in line or at work, before its next evaluation; its caller is answered 499.

    A request's name is what its caller sent as `X-Request-Id`, else what is answered as `X-Triptych-Id`.
    """
    if not await gateway.running.cancel(request_name):
        raise NotFound(f"no request {quoted(request_name)} is in line or at work here")


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


async def _begin(gateway: Gateway, order: Order, held: ExitStack) -> AsyncGenerator[WorkEvent, None]:
    job = await accept(gateway, order, held)
    gateway.admission.refuse_if_full(key=order.key, priority=order.priority)
    return carry_out(gateway, order, job, held)


async def _share(gateway: Gateway, order: Order, idempotency_key: str | None, digest: str, held: ExitStack) -> Run:
    """The run of an order that is under way or done under this key; else one that is begun now.

    What is held for the caller is that run's from then on: it has the order as long as it is at work, whoever waits for it.
    """
    name = None if idempotency_key is None else (order.key, idempotency_key)
    if name is not None and (run := gateway.shared.find(name, digest)) is not None:
        return run
    in_use = held.enter_context(ExitStack())
    events = await _begin(gateway, order, in_use)
    if name is not None and (run := gateway.shared.find(name, digest)) is not None:
        in_use.close()
        return run  # of a request that came while the model was found
    return gateway.shared.start(name, Run(digest, events, held.pop_all(), detached=bool(order.body.detach)))


async def _as_events(id: str, events: AsyncGenerator[WorkEvent, None]) -> AsyncGenerator[Event, None]:  # noqa: A002
    """An order as server-sent events; whatever goes wrong from here on is an event too, as the status has been sent."""
    try:
        async with aclosing(events):
            async for event in events:
                yield _told(event)
    except TriptychError as error:
        yield Event(name="error", data=gateway_error(error))
    except Exception:
        log.exception("generate_failed", id=id)
        yield Event(name="error", data=gateway_error(TriptychError("something went wrong here, and has been logged")))


def _told(event: WorkEvent) -> Event:
    if isinstance(event, Outcome):
        return Event(name="completed", data=to_document(event).model_dump(mode="json"))
    if isinstance(event, Preview):
        return Event(name="preview", data=preview_document(event).model_dump(mode="json"))
    return Event(name="progress", data=_progress(event))


def _progress(progress: StageProgress) -> dict[str, Any]:
    told = {"position": progress.position, "num_evaluations": progress.num_evaluations}
    return {"stage": progress.stage} | {name: value for name, value in told.items() if value is not None}
