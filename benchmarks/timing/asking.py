"""One picture from whatever answers `/generate`, and where its seconds went."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import httpx2

from benchmarks.bare_client import BareConnection
from triptych.contract import StageName
from triptych.errors import TriptychError

PROMPT = "a red circle on a blue background"
JSON, PNG = "application/json", "image/png"
_SECONDS_FOR_THE_COUNT = 5.0
_METRIC, _ROUTE = "triptych_request_seconds", 'route="/v2/models/{model}/infer"'


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for: so many pictures of one prompt."""

    num_images: int
    num_steps: int
    width: int
    height: int
    seed: int
    cache_interval: int = 1
    guidance_start: float = 0.0
    guidance_end: float = 1.0

    def body(self) -> dict[str, Any]:
        return {"prompt": PROMPT, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where one request's seconds went; together they are `wall`.

    Attributes:
        encode, diffuse, decode: What the stages worked. A remote one tells by itself how long a request was with it.
        transfer: What the remote ones were waited for longer than that: the wire, and writing and reading it at this end.
        transfer_of: The same of each that told.
        gateway: The gateway's own, from a request's last byte of head until it knows the answer.
        http: The rest of what the caller waited: writing the answer, the connection, and the forwarder where there is one.
        silent: Remote stages that did not tell; what they were waited for is all counted as their work.
    """

    encode: float
    diffuse: float
    decode: float
    transfer: float
    gateway: float
    http: float
    wall: float
    transfer_of: Mapping[StageName, float] = field(default_factory=dict)
    silent: tuple[StageName, ...] = ()


NAMES = ("encode", "diffuse", "decode", "transfer", "gateway", "http")
_OF_STAGE = {StageName.TEXT_ENCODER: "encode", StageName.DIFFUSION: "diffuse", StageName.DECODER: "decode"}


class MeasurementError(TriptychError):
    """What was measured is not what was asked for."""


async def ask(url: str, asked: Asked) -> tuple[float, dict[str, Any]]:
    """Seconds until the last byte of the answer, on a connection that was open before, and the answer.

    Raises:
        MeasurementError: It was not 200.
    """
    async with BareConnection(url) as connection:
        started = time.perf_counter()
        status, content = await connection.post("/generate", asked.body(), accept=JSON)
        seconds = time.perf_counter() - started
    if status != 200:
        raise MeasurementError(f"a picture was answered with {status}: {content[:300].decode(errors='replace')}")
    return seconds, json.loads(content)


async def ask_for_parts(url: str, remote: Mapping[StageName, str], asked: Asked) -> tuple[Parts, dict[str, Any]]:
    """One request that nobody disturbs, taken apart, and its answer.

    Args:
        url: Of the gateway.
        remote: Addresses of the stages that are services of their own.
    """
    async with httpx2.AsyncClient(trust_env=False, timeout=30, verify=_certificates()) as client:
        before = {stage: await work_of(client, address) for stage, address in remote.items()}
        wall, answer = await ask(url, asked)
        told = {
            stage: await worked_since(client, stage, remote[stage], work) for stage, work in before.items() if work is not None
        }
    return _parts(wall, answer["timings"], told, silent=tuple(stage for stage in remote if stage not in told)), answer


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than many a request."""
    return ssl.create_default_context()


def _parts(wall: float, timings: Mapping[str, float], told: Mapping[StageName, float], *, silent: tuple[StageName, ...]) -> Parts:
    waited = {stage: timings[f"{stage}_seconds"] for stage in StageName}
    transfer_of = {stage: waited[stage] - worked for stage, worked in told.items()}
    return Parts(
        **{_OF_STAGE[stage]: seconds for stage, seconds in (waited | dict(told)).items()},
        transfer=sum(transfer_of.values()),
        transfer_of=transfer_of,
        gateway=timings["queue_seconds"] + timings["gateway_seconds"],
        http=wall - timings["total_seconds"],
        wall=wall,
        silent=silent,
    )


@dataclass(frozen=True)
class Work:
    """All that a stage's service has done: requests, and the seconds from the first line of each to the end of its answer."""

    requests: int
    seconds: float


async def work_of(client: httpx2.AsyncClient, address: str) -> Work | None:
    """As its metrics say; None where it has none of ours."""
    response = await client.get(f"{address.rstrip('/')}/metrics")
    if response.status_code != 200 or f"# TYPE {_METRIC} " not in response.text:
        return None
    values = {"count": 0.0, "sum": 0.0}
    for line in response.text.splitlines():
        for name in values:
            if line.startswith(f"{_METRIC}_{name}{{") and _ROUTE in line:
                values[name] += float(line.rpartition(" ")[2])
    return Work(int(values["count"]), values["sum"])


async def worked_since(client: httpx2.AsyncClient, stage: StageName, address: str, before: Work) -> float:
    """Seconds of the one request since then. A stage counts it a moment after its last byte has gone.

    Raises:
        MeasurementError: There was none, or more than one: somebody else uses the stage.
    """
    for wait in (0.0, 0.01, 0.05, 0.25, 1.0, _SECONDS_FOR_THE_COUNT):
        await asyncio.sleep(wait)
        now = await work_of(client, address)
        if now is not None and now.requests > before.requests:
            break
    number = 0 if now is None else now.requests - before.requests
    if now is None or number != 1:
        raise MeasurementError(
            f"the {stage} stage worked on {number} requests where one was asked for: is somebody else using it?"
        )
    return now.seconds - before.seconds
