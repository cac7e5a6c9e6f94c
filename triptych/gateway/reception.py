"""A request that comes in: its body is read, it is understood, and a model is found that can do it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from fastapi import Request

from triptych.contract import ImageFormat, Priority
from triptych.errors import Forbidden, StageNotReady, UnsupportedMediaType
from triptych.gateway.body import GenerateBody, parse_body, parse_form
from triptych.gateway.editing import read_pictures
from triptych.gateway.forms import MEDIA_TYPE as FORM
from triptych.gateway.forms import read_form
from triptych.gateway.orders import Job, Order, find, give
from triptych.gateway.parameters import draw_seed
from triptych.gateway.state import Gateway
from triptych.serving.auth import key_name
from triptych.serving.bodies import read_in_time
from triptych.serving.places import announced_bytes
from triptych.serving.request_ids import request_id
from triptych.wire.deadlines import read_deadline

JSON = "application/json"
IMAGES: Mapping[str, ImageFormat] = {f"image/{image_format}": image_format for image_format in ImageFormat}


async def read_body(request: Request, gateway: Gateway, held: ExitStack) -> GenerateBody:
    """The body. A form is not taken from another site's page: browsers post forms without asking here first.

    The gateway counts its bytes until what is held is let go; while they come, as many as were announced, or as there may be.
    """
    settings = gateway.settings
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM):
        raise UnsupportedMediaType(f"the body must be sent as Content-Type: {JSON} or {FORM}, not {kind or 'without one'}")
    if kind == FORM and request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        raise Forbidden(f"a page of another site may not post forms here; send {JSON}")
    with gateway.bodies.take(announced_bytes(request.headers, limit=settings.max_body_bytes)):
        raw = await read_in_time(request, limit=settings.max_body_bytes, seconds=settings.body_timeout_seconds)
    held.enter_context(gateway.bodies.take(len(raw)))  # no more than was announced, and nobody came in between
    return parse_body(raw) if kind == JSON else parse_form(await read_form(raw, request.headers))


async def understand(
    gateway: Gateway, request: Request, body: GenerateBody, media_type: str, arrived: float, held: ExitStack
) -> Order:
    """What is wanted, whoever can do it; its pictures are decoded, and counted as `read_body` counts."""
    deadline = read_deadline(request.headers, longest_seconds=gateway.settings.request_timeout_seconds)
    filled_in: dict[str, Any] = {"seed": draw_seed()} if body.seed is None else {}
    if media_type in IMAGES:
        filled_in["output_format"] = IMAGES[media_type]
    pictures = await asyncio.to_thread(read_pictures, body, max_pixels=gateway.settings.max_image_pixels)
    if pictures.num_bytes:
        held.enter_context(gateway.bodies.take(pictures.num_bytes))
    return Order(
        id=request_id(request),
        body=body.model_copy(update=filled_in),
        pictures=pictures,
        arrived=arrived,
        deadline=deadline,
        priority=body.request_priority or Priority.NORMAL,
        key=key_name(request),
    )


async def accept(gateway: Gateway, order: Order, held: ExitStack) -> Job | None:
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
