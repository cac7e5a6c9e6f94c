"""The routes of the Open Inference Protocol, over any models."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import replace
from functools import partial
from importlib.metadata import version as version_of

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from triptych.errors import (
    MalformedRequest,
    NotFound,
    NotSupported,
    StageFailed,
    TriptychError,
    UnsupportedMediaType,
)
from triptych.serving.auth import Guard
from triptych.serving.bodies import read_in_time
from triptych.serving.places import Places, announced_bytes
from triptych.serving.presence import cancelled_at, cancelled_when_the_client_leaves
from triptych.serving.served_models import FramedModel, ServedModel
from triptych.serving.settings import StageSettings
from triptych.serving.streams import Stream
from triptych.wire.datatypes import Array
from triptych.wire.deadlines import read_deadline
from triptych.wire.frames import MEDIA_TYPE, Frame, encode_frame, error_frame
from triptych.wire.metadata import check_announced, check_outputs, is_finite, raw_request
from triptych.wire.open_inference import (
    VERSION,
    InferRequest,
    decode_request,
    encode_response,
    quoted,
    read_header_length,
)

EXTENSIONS = ("binary_tensor_data",)

SECONDS_FOR_THE_LAST_FRAME = 5.0
"""What is left of a stream after its deadline: enough to say that it has passed."""


def inference_router(models: Mapping[str, ServedModel], *, settings: StageSettings, guard: Guard) -> APIRouter:
    """All routes. Health is for everybody: what asks for it has no tokens, and learns nothing."""
    router = APIRouter()
    router.include_router(_health_router(models))
    router.include_router(_model_router(models, settings), dependencies=[Depends(guard)])
    return router


def _health_router(models: Mapping[str, ServedModel]) -> APIRouter:
    router = APIRouter()

    @router.get("/v2/health/live")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @router.get("/v2/health/ready")
    async def ready() -> Response:
        for model in models.values():
            if (problem := await _problem(model)) is not None:
                return JSONResponse({"ready": False, "error": problem.message}, status_code=problem.status)
        return JSONResponse({"ready": True})

    return router


def _model_router(models: Mapping[str, ServedModel], settings: StageSettings) -> APIRouter:
    router = APIRouter()
    places = Places(settings.max_requests, most_bytes=settings.max_held_bytes)

    @router.get("/v2")
    async def server_metadata() -> Response:
        return JSONResponse({"name": "triptych", "version": version_of("triptych"), "extensions": EXTENSIONS})

    @router.post("/v2/repository/index")
    async def index() -> Response:
        return JSONResponse([await _index_entry(model) for model in models.values()])

    @router.get("/v2/models/{model}")
    @router.get("/v2/models/{model}/versions/{version}")
    async def model_metadata(model: str, version: str = VERSION) -> Response:
        return JSONResponse((await _find(models, model, version).metadata()).to_json())

    @router.get("/v2/models/{model}/ready")
    @router.get("/v2/models/{model}/versions/{version}/ready")
    async def model_ready(model: str, version: str = VERSION) -> Response:
        await _find(models, model, version).metadata()
        return JSONResponse({"name": model, "ready": True})

    @router.post("/v2/models/{model}/infer")
    @router.post("/v2/models/{model}/versions/{version}/infer")
    async def infer(request: Request, model: str, version: str = VERSION) -> Response:
        served = _find(models, model, version)
        with ExitStack() as place:
            place.enter_context(places.take(announced_bytes(request.headers, limit=settings.max_body_bytes)))
            if _wants_frames(request.headers):
                return await _infer_in_frames(served, request, settings, place)
            return await _infer(served, request, settings)

    return router


def _find(models: Mapping[str, ServedModel], name: str, version: str) -> ServedModel:
    if name not in models:
        raise NotFound(f"there is no model {quoted(name)} here; there is {', '.join(models)}")
    if version != VERSION:
        raise NotFound(f"{name} has no version {quoted(version)}; it has {VERSION}")
    return models[name]


async def _problem(model: ServedModel) -> TriptychError | None:
    try:
        await model.metadata()
    except TriptychError as error:
        return error
    return None


async def _index_entry(model: ServedModel) -> dict[str, str]:
    problem = await _problem(model)
    state, reason = ("READY", "") if problem is None else ("UNAVAILABLE", problem.message)
    return {"name": model.name, "version": VERSION, "state": state, "reason": reason}


async def _infer(model: ServedModel, request: Request, settings: StageSettings) -> Response:
    _check_headers(request.headers)
    deadline = read_deadline(request.headers, longest_seconds=settings.request_timeout_seconds)
    async with cancelled_at(deadline, stage=model.stage_name):
        wanted = await _read_request(model, request, settings)
        async with cancelled_when_the_client_leaves(request.receive):
            response = await model.infer(wanted, deadline=deadline)
    outputs = {name: array for name, array in response.outputs.items() if wanted.wants(name)}
    _check_finite(model, outputs)
    body = encode_response(replace(response, id=wanted.id, outputs=outputs), is_binary=wanted.wants_binary)
    return Response(body.content, headers=body.headers)


async def _infer_in_frames(model: ServedModel, request: Request, settings: StageSettings, place: ExitStack) -> Response:
    """The inference begins when the response does, and keeps its place until that has ended."""
    _check_headers(request.headers)
    if not isinstance(model, FramedModel):
        raise NotSupported(f"{model.name} does not answer in frames: leave them out of Accept")
    deadline = read_deadline(request.headers, longest_seconds=settings.request_timeout_seconds)
    async with cancelled_at(deadline, stage=model.stage_name):
        wanted = await _read_request(model, request, settings)
    parts = _frames(model, wanted, request, deadline)
    seconds = deadline - time.monotonic() + SECONDS_FOR_THE_LAST_FRAME
    return Stream(parts, media_type=MEDIA_TYPE, held=place.pop_all(), seconds=seconds)


async def _frames(model: FramedModel, wanted: InferRequest, request: Request, deadline: float) -> AsyncGenerator[bytes, None]:
    """Frames as bytes. An error is one too, but not the first: until then it can have a status."""
    begun = False
    try:
        async with aclosing(model.frames(wanted, deadline=deadline)) as frames:
            while True:
                async with cancelled_at(deadline, stage=model.stage_name):
                    frame = await anext(frames, None)
                if frame is None:
                    return
                _check_finite(model, frame.response.outputs)
                begun = True
                yield encode_frame(_named(frame, wanted))
    except TriptychError as error:
        if not begun:
            raise
        request.state.error = error
        yield encode_frame(_named(error_frame(error, model_name=model.name), wanted))


def _named(frame: Frame, request: InferRequest) -> Frame:
    return replace(frame, response=replace(frame.response, id=request.id))


def _wants_frames(headers: Headers) -> bool:
    kinds = (kind.partition(";")[0].strip().lower() for accept in headers.getlist("Accept") for kind in accept.split(","))
    return MEDIA_TYPE in kinds


def _check_headers(headers: Headers) -> None:
    if headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMediaType("a compressed body is not read: tensors hardly compress")


async def _read_request(model: ServedModel, request: Request, settings: StageSettings) -> InferRequest:
    # First, because a stage that cannot work yet need not be sent megabytes.
    metadata = await model.metadata()
    header_length = read_header_length(request.headers)
    content = await read_in_time(request, limit=settings.max_body_bytes, seconds=settings.body_timeout_seconds)
    check = partial(check_announced, specs=metadata.inputs, max_rows=settings.max_rows)
    wanted = raw_request(content, metadata) if header_length == 0 else decode_request(content, header_length, check=check)
    if wanted.model_name not in (None, model.name):
        raise MalformedRequest(f"the request is for the model {quoted(str(wanted.model_name))}, its address for {model.name}")
    check_outputs(wanted, metadata.outputs)
    return wanted


def _check_finite(model: ServedModel, outputs: Mapping[str, Array]) -> None:
    if not all(map(is_finite, outputs.values())):
        raise StageFailed(f"the {model.stage_name} stage computed NaN or infinity", stage=model.stage_name)
