"""`POST /admin/swap`: another stage in a model's place, while requests are flowing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import httpx2
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from triptych.errors import Conflict, Forbidden, InvalidValue, UnsupportedMediaType
from triptych.gateway.body import cut, shown
from triptych.gateway.errors import ErrorAnswer
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.state import GatewayDep
from triptych.gateway.swap import Swapped, Swaps
from triptych.gateway.topology_file import StageEntry, is_address, shown_address
from triptych.serving.auth import check_key, is_this_machine
from triptych.serving.bodies import read_in_time
from triptych.wire.json_text import parse_object

JSON = "application/json"
MAX_BODY_BYTES = 2**16
MAX_REPLICAS = 64
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class SwapBody(BaseModel):
    """The body of `POST /admin/swap`: either `to` or `rollback`."""

    model_config = ConfigDict(extra="forbid")

    stage: Annotated[StageEntry, Field(description="Which one.")]
    to: Annotated[
        list[StrictStr] | None,
        Field(min_length=1, max_length=MAX_REPLICAS, description="Addresses of its new replicas.", examples=[["http://b:8002"]]),
    ] = None
    model: Annotated[StrictStr | None, Field(description="Whose; the default model's where it is missing.")] = None
    rollback: Annotated[StrictBool, Field(description="Put back what the last swap of this stage replaced.")] = False


WORDS = {
    "stage": f"stage must be one of {', '.join(StageEntry)}",
    "to": f"to must be a list of 1 to {MAX_REPLICAS} addresses",
    "model": "model must be the name of a model; GET /models lists them",
    "rollback": "rollback must be true or false",
}


class SwapAnswer(BaseModel):
    """What was done."""

    model: str = Field(description="The model's name from now on.")
    stage: StageEntry
    before: list[str] = Field(description="What is not asked any more once its last request is answered.")
    now: list[str]


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is no JSON object."},
    408: {"description": "The body did not arrive in time; the connection is closed."},
    401: {"description": "No token of the administration was sent."},
    403: {"description": "There is no such token, and there are keys or the caller is elsewhere; or it is another site's page."},
    404: {"description": "No such model."},
    409: {"description": "The new stage does not fit or makes no picture; there is no topology file; another swap is at work."},
    415: {"description": "The body is not sent as JSON."},
    422: {"description": "A field is unknown, missing or impossible; `param` names it."},
    429: {"description": "The model's other stages are too busy to try the new one."},
    503: {"description": "The new stage, or another one of the model, is not there; `param` names it."},
}

router = APIRouter(prefix="/admin")


@router.post(
    "/swap",
    response_model=SwapAnswer,
    responses={status: {"model": ErrorAnswer, **words} for status, words in REFUSALS.items()},
    openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": SwapBody.model_json_schema()}}}},
)
async def swap(request: Request, gateway: GatewayDep) -> SwapAnswer:
    """Exchanges a stage of a model, once it was checked: who it is, whether it fits, and one picture of one step.

    New requests go to the new one; the old one finishes what it has. Refused, nothing has changed. The change is in the
    topology file, and so outlives the gateway.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise UnsupportedMediaType(f"the body must be sent as Content-Type: {JSON}, not {kind or 'without one'}")
    seconds = gateway.settings.body_timeout_seconds
    body = _read(await read_in_time(request, limit=MAX_BODY_BYTES, seconds=seconds))
    if gateway.swaps is None:
        raise Conflict(
            "this gateway follows no topology file, so a swap would be forgotten: "
            "set TRIPTYCH_TOPOLOGY to one, which is written where it does not exist"
        )
    return _told(await _carry_out(gateway.swaps, body))


async def _carry_out(swaps: Swaps, body: SwapBody) -> Swapped:
    if body.to is None:
        return await swaps.roll_back(body.stage, model=body.model)
    return await swaps.swap(body.stage, tuple(body.to), model=body.model)


def _told(done: Swapped) -> SwapAnswer:
    before, now = ([shown_address(address) for address in addresses] for addresses in (done.before, done.now))
    return SwapAnswer(model=done.model, stage=done.stage, before=before, now=now)


def _read(raw: bytes) -> SwapBody:
    """The body, every address of which is one.

    Raises:
        MalformedRequest, InvalidValue: It is none.
    """
    document = parse_object(memoryview(raw), what="the body")
    for name in document:
        if name not in SwapBody.model_fields:
            raise InvalidValue(f"there is no field {shown(name)}; a swap takes {', '.join(WORDS)}", param=cut(name))
    try:
        body = SwapBody.model_validate(document)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise InvalidValue(WORDS[name], param=name) from None
    if (body.to is None) is not body.rollback:
        raise InvalidValue("say where the new stage is, as to, or that the old one comes back, as rollback; not both", param="to")
    for address in body.to or ():
        if not is_address(address):
            raise InvalidValue(f"{shown(address)} is no address of a stage; one is like http://127.0.0.1:8002", param="to")
    if len(set(body.to or ())) < len(body.to or ()):
        raise InvalidValue("to names an address twice", param="to")
    return body


# Who may


def make_guard(settings: GatewaySettings) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets administrators pass and nobody else.

    Raises (the dependency, not this function):
        Unauthenticated: There is a token, and the request has not got it.
        Forbidden: There is none, and the request is not plainly this machine's own; or it is a page of another site.
    """

    async def guard(request: Request) -> None:
        if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Forbidden("a page of another site may not change stages here")
        if settings.admin_token:
            check_key(request, settings.admin_token)
        elif settings.api_keys:
            raise Forbidden("whoever has a key of this gateway could change its stages: set TRIPTYCH_ADMIN_TOKEN, and send that")
        elif not _is_from_here(request):
            raise Forbidden("without TRIPTYCH_ADMIN_TOKEN stages are changed from the gateway's own machine only")

    return guard


def _is_from_here(request: Request) -> bool:
    """By both ends of the connection, and by the name that was asked for: a foreign name that leads here is a page's trick."""
    ends = (request.scope.get("client"), request.scope.get("server"))
    if not all(end and is_this_machine(end[0]) for end in ends):
        return False
    try:
        name = httpx2.URL(f"http://{request.headers.get('Host', '')}").host
    except httpx2.InvalidURL:
        return False
    return name in LOOPBACK_NAMES
