"""One stage's address: requests there, answers back, and every way to fail as an error that names the stage.

::

    what happens                                   what is raised
    nobody listens, or the name is unknown         StageNotReady  503
    no answer before the deadline                  StageTimeout   504
    the connection breaks                          StageBrokeOff  502
    the answer is garbage                          StageFailed    502
    the stage answers 400, 409, 413, 422, 501      the same class, with the stage's words
    the stage answers 429                          QueueFull, with its Retry-After
    the stage answers 503, 504                     StageNotReady, StageTimeout
    the stage answers anything else                StageFailed    502
    an error's frame                               as an answer with its status
    frames that end without a result or an error   StageBrokeOff  502

401, 403 and 404 are anything else: address, token and model are the operator's doing, not the caller's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import TypeVar

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
    StageBrokeOff,
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
from triptych.wire.frames import MEDIA_TYPE, Frame, FrameReader, Kind, Refusal, read_refusal
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

T = TypeVar("T")

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
        ip: Which of the addresses that the host's name stands for; None leaves the choice to the client.

    Raises:
        StartError: The address is none.
    """

    def __init__(
        self, stage: StageName, url: str, *, token: str | None, client: httpx2.AsyncClient, ip: str | None = None
    ) -> None:
        self._stage = stage
        self._url = _read_url(stage, url)
        self._client = client
        self._headers = {"Accept-Encoding": "identity"}
        self._extensions: dict[str, str] = {}
        if ip is not None:
            # The name is still whom the request is for, and whose certificate is checked.
            self._headers["Host"] = self._url.netloc.decode()
            self._extensions["sni_hostname"] = self._url.host
            self._url = self._url.copy_with(host=ip)
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        # A password in the address must not reach the callers and the log.
        self._who = f"the {stage} stage at {self._url.copy_with(username=None, password=None)}"

    async def metadata(self, model: str, *, deadline: float | None = None) -> ModelMetadata:
        """What the stage says of a model, asked for anew each time."""
        patience = time.monotonic() + METADATA_TIMEOUT_SECONDS
        deadline = patience if deadline is None else min(deadline, patience)
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

    async def infer_in_frames(
        self, model: str, request: InferRequest, *, reader: FrameReader, deadline: float | None
    ) -> AsyncGenerator[Frame, None]:
        """One inference as it goes on: frames as they come, the last one its result.

        Closing the generator closes the connection, and so ends the inference.

        Args:
            model: Its name at this address.
            request: The tensors and parameters.
            reader: Of the frames that this request is answered with.
            deadline: Of `time.monotonic()`; the stage is told how much is left.
        """
        body = encode_request(request)
        asked = self._client.build_request(
            "POST",
            self._address(f"/v2/models/{model}/infer"),
            content=body.content,
            headers={**self._headers_for(body, deadline), "Accept": MEDIA_TYPE},
            extensions=self._extensions,
        )
        response = await self._until(deadline, lambda: self._client.send(asked, stream=True))
        try:
            await self._until(deadline, lambda: self._check_status(response))
            if response.headers.get("Content-Type") != MEDIA_TYPE:
                raise self._error(StageFailed, "does not answer in frames, though its metadata say so")
            async with aclosing(response.aiter_bytes()) as chunks:
                while (chunk := await self._until(deadline, lambda: anext(chunks, None))) is not None:
                    for frame in self._frames_of(chunk, reader):
                        yield frame
        finally:
            await response.aclose()
        if not reader.is_complete:
            raise self._error(StageBrokeOff, "broke off in the middle of its answer")

    def _frames_of(self, chunk: bytes, reader: FrameReader) -> Iterator[Frame]:
        with self.blame():
            for frame in reader.feed(chunk):
                if frame.kind is Kind.ERROR:
                    refusal = read_refusal(frame)
                    break
                yield frame
            else:
                return
        # Outside of the block above: an error that the stage tells of is not one of its answer.
        raise self._refusal(refusal)

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
        headers = self._headers_for(body, deadline)
        content = body.content if body else None
        return await self._until(deadline, lambda: self._send(method, path, content=content, headers=headers))

    def _headers_for(self, body: Body | None, deadline: float | None) -> dict[str, str]:
        headers = {**self._headers, **write_deadline(deadline), **_current_request(), **(body.headers if body else {})}
        propagate.inject(headers)
        return headers

    def _address(self, path: str) -> httpx2.URL:
        return self._url.copy_with(path=self._url.path.rstrip("/") + path)

    async def _until(self, deadline: float | None, work: Callable[[], Awaitable[T]]) -> T:
        """Waits for something of the connection, and translates what goes wrong with it."""
        try:
            async with asyncio.timeout(self._seconds_left(deadline)):
                return await work()
        except (TimeoutError, httpx2.HTTPError) as error:
            raise self._translate(error) from error

    async def _send(
        self, method: str, path: str, *, content: bytes | None, headers: Mapping[str, str]
    ) -> tuple[Mapping[str, str], bytes]:
        asked = self._client.build_request(
            method, self._address(path), content=content, headers=headers, extensions=self._extensions
        )
        async with aclosing(await self._client.send(asked, stream=True)) as response:
            await self._check_status(response)
            with self.blame():
                return response.headers, await read_bounded(response.aiter_bytes(), response.headers, limit=MAX_RESPONSE_BYTES)

    async def _check_status(self, response: httpx2.Response) -> None:
        if response.status_code != 200:
            raise self._refusal(await _read_refusal(response))

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
        return self._error(StageBrokeOff, f"broke off ({type(error).__name__})")

    def _refusal(self, refusal: Refusal) -> TriptychError:
        status, words = refusal.status, refusal.sentence[:MAX_ERROR_CHARACTERS]
        answered = f"answered {status}: {words}" if words else f"answered {status} without a reason"
        if status in _CALLER_ERRORS:
            return _CALLER_ERRORS[status](words or f"{self._who} {answered}", param=refusal.param)
        if status == QueueFull.status:
            seconds = DEFAULT_RETRY_AFTER_SECONDS if refusal.retry_after_seconds is None else refusal.retry_after_seconds
            return QueueFull(words or f"{self._who} is full", retry_after_seconds=seconds)
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


async def _read_refusal(response: httpx2.Response) -> Refusal:
    """What an answer that is none says. Its sentence is empty where it has none: a proxy may have answered."""
    retry_after = response.headers.get("Retry-After", "")
    return Refusal(
        status=response.status_code,
        sentence=await _read_words(response),
        retry_after_seconds=float(retry_after) if retry_after.isdecimal() else None,
    )


async def _read_words(response: httpx2.Response) -> str:
    try:
        content = await read_bounded(response.aiter_bytes(), response.headers, limit=MAX_ERROR_BYTES)
        words = parse_object(memoryview(content), what="the error").get("error")
    except CallerError:
        return ""
    return words if isinstance(words, str) else ""
