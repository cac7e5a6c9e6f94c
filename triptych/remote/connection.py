"""One stage's address: requests there, answers back, and every way to fail as an error that names the stage.

::

    what happens                                   what is raised
    nobody listens, or the name is unknown         StageNotReady  503
    no answer before the deadline                  StageTimeout   504
    the connection breaks, the answer is garbage   StageFailed    502
    the stage answers 400, 409, 413, 422, 501      the same class, with the stage's words
    the stage answers 429                          QueueFull, with its Retry-After
    the stage answers 503, 504                     StageNotReady, StageTimeout
    the stage answers anything else                StageFailed    502

401, 403 and 404 are among the last: address, token and model are the operator's doing, not the caller's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx2
import structlog
from opentelemetry import propagate

from triptych.contract import StageName
from triptych.errors import (
    CallerError,
    Conflict,
    InvalidValue,
    MalformedRequest,
    NotSupported,
    QueueFull,
    StageError,
    StageFailed,
    StageNotReady,
    StageTimeout,
    StartError,
    TooLarge,
    TriptychError,
)
from triptych.wire.bodies import read_bounded
from triptych.wire.deadlines import write_deadline
from triptych.wire.headers import REQUEST_ID_HEADER
from triptych.wire.json_text import parse_object
from triptych.wire.metadata import ModelMetadata
from triptych.wire.open_inference import (
    Body,
    InferRequest,
    InferResponse,
    decode_response,
    encode_request,
    read_header_length,
)

METADATA_TIMEOUT_SECONDS = 5.0
MAX_RESPONSE_BYTES = 2**30
MAX_ERROR_BYTES = 2**16
MAX_ERROR_CHARACTERS = 500
DEFAULT_RETRY_AFTER_SECONDS = 1.0

_CALLER_ERRORS: Mapping[int, type[CallerError]] = {
    error.status: error for error in (MalformedRequest, Conflict, TooLarge, InvalidValue, NotSupported)
}


class StageConnection:
    """A stage behind an address.

    Args:
        stage: Which one, for the errors.
        url: Where it is, such as `http://127.0.0.1:8002`.
        token: What it demands as `Authorization: Bearer`; None where it demands nothing.
        client: Shared by all stages, and closed by whoever made it.

    Raises:
        StartError: The address is none.
    """

    def __init__(self, stage: StageName, url: str, *, token: str | None, client: httpx2.AsyncClient) -> None:
        self._stage = stage
        self._url = _read_url(stage, url)
        self._client = client
        self._headers = {"Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        # A password in the address must not reach the callers and the log.
        self._who = f"the {stage} stage at {self._url.copy_with(username=None, password=None)}"

    async def metadata(self, model: str) -> ModelMetadata:
        """What the stage says of a model, asked for anew each time."""
        deadline = time.monotonic() + METADATA_TIMEOUT_SECONDS
        _, content = await self._exchange("GET", f"/v2/models/{model}", deadline=deadline)
        with self.blame():
            return ModelMetadata.from_json(parse_object(memoryview(content), what="the metadata"))

    async def infer(self, model: str, request: InferRequest, *, deadline: float | None) -> InferResponse:
        """One inference.

        Args:
            model: Its name at this address.
            request: The tensors and parameters.
            deadline: Of `time.monotonic()`; the stage is told how much is left.
        """
        body = encode_request(request)
        headers, content = await self._exchange("POST", f"/v2/models/{model}/infer", body=body, deadline=deadline)
        with self.blame():
            return decode_response(content, read_header_length(headers))

    @contextmanager
    def blame(self) -> Iterator[None]:
        """Whatever is wrong with an answer is the stage's fault, not the caller's."""
        try:
            yield
        except CallerError as error:
            raise self._error(StageFailed, f"gave an answer that cannot be used: {error.message}") from error

    async def _exchange(
        self, method: str, path: str, *, body: Body | None = None, deadline: float | None
    ) -> tuple[Mapping[str, str], bytes]:
        headers = {**self._headers, **write_deadline(deadline), **_current_request(), **(body.headers if body else {})}
        propagate.inject(headers)
        try:
            async with asyncio.timeout(self._seconds_left(deadline)):
                return await self._send(method, path, content=body.content if body else None, headers=headers)
        except (TimeoutError, httpx2.HTTPError) as error:
            raise self._translate(error) from error

    async def _send(
        self, method: str, path: str, *, content: bytes | None, headers: Mapping[str, str]
    ) -> tuple[Mapping[str, str], bytes]:
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path)
        async with self._client.stream(method, url, content=content, headers=headers) as response:
            if response.status_code != 200:
                raise self._refusal(response, await _read_words(response))
            with self.blame():
                return response.headers, await read_bounded(response.aiter_bytes(), response.headers, limit=MAX_RESPONSE_BYTES)

    def _seconds_left(self, deadline: float | None) -> float | None:
        if deadline is None:
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            raise StageTimeout(f"there was no time left to ask {self._who}", stage=self._stage)
        return left

    def _translate(self, error: Exception) -> StageError:
        """Most specific first: a connection that does not come about is a timeout too."""
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return self._error(StageNotReady, "cannot be reached")
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return self._error(StageTimeout, "did not answer in time")
        return self._error(StageFailed, f"broke off ({type(error).__name__})")

    def _refusal(self, response: httpx2.Response, words: str) -> TriptychError:
        status = response.status_code
        answered = f"answered {status}: {words}" if words else f"answered {status} without a reason"
        if status in _CALLER_ERRORS:
            return _CALLER_ERRORS[status](words or f"{self._who} {answered}")
        if status == QueueFull.status:
            return QueueFull(words or f"{self._who} is full", retry_after_seconds=_read_retry_after(response.headers))
        kinds = {StageNotReady.status: StageNotReady, StageTimeout.status: StageTimeout}
        return self._error(kinds.get(status, StageFailed), answered)

    def _error(self, kind: type[StageError], what: str) -> StageError:
        return kind(f"{self._who} {what}", stage=self._stage)


def _read_url(stage: StageName, text: str) -> httpx2.URL:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise StartError(f"the address of the {stage} stage cannot be read: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise StartError(f"the address of the {stage} stage must be like http://127.0.0.1:8001")
    return url


def _current_request() -> dict[str, str]:
    """The name under which this process logs what it is doing: the stage's log shall call it the same."""
    name = structlog.contextvars.get_contextvars().get("request_id")
    return {} if name is None else {REQUEST_ID_HEADER: name}


async def _read_words(response: httpx2.Response) -> str:
    """The sentence of an error's body, empty where it has none: a proxy may have answered."""
    try:
        content = await read_bounded(response.aiter_bytes(), response.headers, limit=MAX_ERROR_BYTES)
        words = parse_object(memoryview(content), what="the error").get("error")
    except CallerError:
        return ""
    return words[:MAX_ERROR_CHARACTERS] if isinstance(words, str) else ""


def _read_retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else DEFAULT_RETRY_AFTER_SECONDS
