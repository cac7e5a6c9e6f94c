"""A small client of a running gateway, for programs in Python.

::

    with Client("http://127.0.0.1:8000") as client:
        (picture,) = client.generate("a red circle on a blue background", seed=7).pictures
        picture.save("circle.png")

What goes wrong is raised as the classes of `triptych.errors`, the same that the gateway itself raises.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import quote

import httpx2

from triptych.errors import CallerError, QueueFull, StageError, TriptychError

DEFAULT_URL = "http://127.0.0.1:8000"
POLL_SECONDS = 0.25
"""Between two questions how a job is."""


class Options(TypedDict, total=False):
    """What `POST /generate` takes besides the prompt; where one is left out the model's own default is used.

    `image` and `mask` are the contents of PNG, JPEG or WebP files.
    """

    negative_prompt: str
    num_steps: int
    guidance_scale: float
    guidance_start: float
    guidance_end: float
    cache_interval: int
    seed: int
    width: int
    height: int
    num_images: int
    sampler: str
    model: str
    output_format: str
    truncate: bool
    long_prompt: bool
    image: bytes
    mask: bytes
    strength: float
    num_resamples: int
    mask_blur: int
    request_priority: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A stage is at work; `position` of `num_evaluations` are done where the stage tells."""

    stage: str
    position: int | None = None
    num_evaluations: int | None = None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the pictures look like after `position` of `num_evaluations`: a JPEG each."""

    position: int
    num_evaluations: int
    images: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture, as an encoded file, and the seed that makes it again."""

    data: bytes
    seed: int

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(self.data)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The answer to one request.

    Attributes:
        parameters: What was done, every default filled in.
        timings: Where the time went, by name, in seconds.
        receipt: SHA-256 of contexts, latents and pixels, and who the stages were.
    """

    id: str
    model: str
    pictures: tuple[Picture, ...]
    parameters: Mapping[str, Any]
    warnings: tuple[str, ...]
    timings: Mapping[str, float]
    receipt: Mapping[str, Any]


class Client:
    """Talks to one gateway. Not for use by several threads at once.

    Args:
        url: Where the gateway is.
        api_key: What it demands as `Authorization: Bearer`, if it demands one.
        timeout_seconds: How long an answer is waited for; the gateway is told.
        transport: How requests travel; a test brings its own.

    Raises:
        TriptychError: The address is none.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 600.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        headers = {"X-Request-Timeout-Seconds": f"{timeout_seconds:g}"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        # The gateway keeps the deadline, and answers with a sentence; this one is for a gateway that is gone.
        timeout = httpx2.Timeout(timeout_seconds + 5.0, connect=5.0)
        self._http = httpx2.Client(
            base_url=_read_url(url),
            headers=headers,
            timeout=timeout,
            transport=transport,
            # A proxy of the environment is not for this machine's own gateway.
            mounts={"all://127.0.0.1": None, "all://localhost": None},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(
        self,
        prompt: str,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_preview: Callable[[Preview], None] | None = None,
        previews: int = 3,
        request_id: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Makes pictures.

        Args:
            prompt: What they should show.
            on_progress: Called with what the stages tell while they work.
            on_preview: Called with previews, where the decoder has the time for them.
            previews: How many at most; without `on_preview` there are none.
            request_id: A name for the request, by which it can be cancelled; the gateway gives it one where there is none.
            options: See `Options`.

        Raises:
            TriptychError: One of the classes of `triptych.errors`, with the gateway's sentence.
        """
        body = _body(prompt, options)
        headers = {} if request_id is None else {"X-Request-Id": request_id}
        if on_preview is not None:
            body["previews"] = previews
        if on_progress is None and on_preview is None:
            return _generation(self._request("POST", "/generate", json=body, headers=headers))
        with (
            self._unreachable_is_an_error(),
            self._http.stream("POST", "/generate", json=body, headers={**headers, "Accept": "text/event-stream"}) as response,
        ):
            if response.status_code >= 400:
                response.read()
                raise _error(response)
            return _follow(response, on_progress, on_preview)

    def cancel(self, request_id: str) -> None:
        """Ends a request that another client waits for; there `RequestCancelled` is raised.

        Args:
            request_id: As it was given to `generate`.

        Raises:
            NotFound: No such request is in line or at work.
        """
        self._read(f"/requests/{quote(request_id, safe='')}", method="DELETE")

    def submit(self, prompt: str, *, idempotency_key: str | None = None, **options: Unpack[Options]) -> str:
        """Orders pictures as a job, which outlives this client and the gateway.

        Args:
            prompt: What they should show.
            idempotency_key: What the caller calls this job: submitted again it is the same one.
            options: See `Options`.

        Returns:
            The job's id.

        Raises:
            Conflict: Another job was submitted with this key.
            TriptychError: It was refused, with the gateway's sentence.
        """
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        accepted = self._request("POST", "/jobs", json=_body(prompt, options), headers=headers)
        return str(accepted["id"])

    def jobs(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """The last jobs that were submitted with this client's key, the newest first."""
        jobs: list[dict[str, Any]] = self._request("GET", f"/jobs?limit={limit}")["jobs"]
        return jobs

    def job(self, job_id: str) -> dict[str, Any]:
        """How a job is, and its `result` once it is completed.

        Raises:
            NotFound: There is none, or none any more.
        """
        job: dict[str, Any] = self._request("GET", _job_path(job_id))
        return job

    def wait(self, job_id: str, *, on_change: Callable[[Mapping[str, Any]], None] | None = None) -> dict[str, Any]:
        """A job once it has ended, as `job` tells it; a gateway that is gone for a while is waited for.

        Args:
            job_id: Which.
            on_change: Called with the job whenever it has come further.

        Raises:
            NotFound: There is none.
            TriptychError: It has not ended in this client's `timeout_seconds`, or the gateway was not there at their end.
        """
        deadline, told = time.monotonic() + self._timeout_seconds, None
        while True:
            try:
                job = self.job(job_id)
            except CallerError:
                raise
            except TriptychError:
                if time.monotonic() > deadline:
                    raise
            else:
                if on_change is not None and job != told:
                    on_change(told := job)
                if job["ended"] is not None:
                    return job
                if time.monotonic() > deadline:
                    raise TriptychError(f"job {job_id} has not ended in {self._timeout_seconds:g} s; it goes on")
            time.sleep(POLL_SECONDS)

    def fetch(self, job_id: str) -> tuple[Picture, ...]:
        """The pictures of a job that is completed.

        Raises:
            Conflict: It is not.
        """
        job = self.job(job_id)
        if job["result"] is None:
            self._read(f"{_job_path(job_id)}/images/0")
        return tuple(Picture(data=self._read(image["url"]), seed=image["seed"]) for image in job["result"]["images"])

    def cancel_job(self, job_id: str) -> None:
        """Ends a job; removes one that has ended, with its pictures.

        Raises:
            NotFound: There is none.
        """
        self._read(_job_path(job_id), method="DELETE")

    def models(self) -> list[dict[str, Any]]:
        """What the gateway serves, and what each model takes."""
        models: list[dict[str, Any]] = self._request("GET", "/models")["models"]
        return models

    def swap(self, stage: str, to: Sequence[str] = (), *, model: str | None = None, rollback: bool = False) -> Mapping[str, Any]:
        """Exchanges a stage of a model at the gateway, whose `TRIPTYCH_ADMIN_TOKEN` is this client's `api_key`.

        Args:
            stage: `text_encoder`, `diffusion`, `decoder` or `image_encoder`.
            to: Addresses of its new replicas.
            model: Whose; None is the default model's.
            rollback: Put back what the last swap replaced, instead of `to`.

        Returns:
            `model`, its name from now on; `stage`; `before` and `now`, lists of addresses.

        Raises:
            TriptychError: It was refused, with the gateway's sentence; nothing has changed.
        """
        body = {"stage": stage, "to": list(to) or None, "model": model, "rollback": rollback}
        done: Mapping[str, Any] = self._request("POST", "/admin/swap", json=body)
        return done

    def _request(self, method: str, path: str, *, json: object = None, headers: Mapping[str, str] | None = None) -> Any:
        with self._unreachable_is_an_error():
            response = self._http.request(method, path, json=json, headers=headers)
        if response.status_code >= 400:
            raise _error(response)
        try:
            return response.json()
        except ValueError:
            raise TriptychError(f"{self._url} answered something that is not JSON; is it a Triptych gateway?") from None

    def _read(self, path: str, *, method: str = "GET") -> bytes:
        with self._unreachable_is_an_error():
            response = self._http.request(method, path)
        if response.status_code >= 400:
            raise _error(response)
        return response.content

    @contextmanager
    def _unreachable_is_an_error(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError:
            raise TriptychError(f"no gateway answers at {self._url}; `triptych up` starts one") from None
        except httpx2.TimeoutException:
            raise TriptychError(f"the gateway at {self._url} did not answer in time") from None
        except httpx2.TransportError as error:
            raise TriptychError(f"the connection to {self._url} broke off: {error}") from None


def _read_url(text: str) -> httpx2.URL:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise TriptychError(f"{text!r} is not an address; one is like {DEFAULT_URL}")
    return url


def _body(prompt: str, options: Options) -> dict[str, object]:
    body: dict[str, object] = {"prompt": prompt, **options}
    for name in ("image", "mask"):
        if isinstance(content := body.get(name), bytes):
            body[name] = base64.b64encode(content).decode("ascii")
    return body


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _generation(answer: Mapping[str, Any]) -> Generation:
    return Generation(
        id=answer["id"],
        model=answer["model"],
        pictures=tuple(Picture(data=base64.b64decode(image["b64_json"]), seed=image["seed"]) for image in answer["images"]),
        parameters=answer["parameters"],
        warnings=tuple(answer["warnings"]),
        timings=answer["timings"],
        receipt=answer["receipt"],
    )


def _preview(data: Mapping[str, Any]) -> Preview:
    return Preview(
        position=data["position"],
        num_evaluations=data["num_evaluations"],
        images=tuple(base64.b64decode(image["b64_json"]) for image in data["images"]),
    )


def _follow(
    response: httpx2.Response,
    on_progress: Callable[[Progress], None] | None,
    on_preview: Callable[[Preview], None] | None,
) -> Generation:
    for event, data in _events(_lines(response.iter_text())):
        if event == "progress" and on_progress is not None:
            on_progress(Progress(**data))
        elif event == "preview" and on_preview is not None:
            on_preview(_preview(data))
        elif event == "completed":
            return _generation(data)
        elif event == "error":
            raise _error_of(data, retry_after=None)
    raise TriptychError("the gateway's stream of events ended before the pictures came")


def _lines(parts: Iterable[str]) -> Iterator[str]:
    """The lines of a stream of events. httpx2's `iter_lines` ends a line at U+2028 and its like too, which data may contain."""
    rest = ""
    for part in parts:
        *lines, rest = (rest + part).split("\n")
        yield from (line.removesuffix("\r") for line in lines)


def _events(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Server-sent events as (name, JSON data). Comments, which only keep a connection alive, are passed over."""
    name, data = "message", ""
    for line in lines:
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            data += value.strip()
        elif not line and data:
            yield name, json.loads(data)
            name, data = "message", ""


def _error(response: httpx2.Response) -> TriptychError:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("error"), dict):
        return TriptychError(f"the gateway answered {response.status_code} without a sentence")
    return _error_of(body, retry_after=response.headers.get("Retry-After"))


def _error_of(body: Mapping[str, Any], *, retry_after: str | None) -> TriptychError:
    """The gateway's error as the class that it was raised as there."""
    error = body["error"]
    message, param, kind = error["message"], error["param"], _ERRORS.get(error["code"], TriptychError)
    if issubclass(kind, QueueFull):
        return kind(message, retry_after_seconds=float(retry_after or 1))
    if issubclass(kind, StageError):
        return kind(message, stage=param)
    if issubclass(kind, CallerError):
        return kind(message, param=param)
    return kind(message)


def _descendants(kind: type[TriptychError]) -> Iterator[type[TriptychError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


_ERRORS = {kind.code: kind for kind in _descendants(TriptychError)}
