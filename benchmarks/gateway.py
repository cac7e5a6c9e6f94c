"""What the split costs: time, bytes and memory of a gateway before three services, against the same pipeline in one process.

Three parts, each of which can be left out:

- overhead: stand-in stages with Stable Diffusion 1.5's shapes as three processes and the real gateway as a fourth, against the
  pipeline on the same stand-ins in the process that asks. Once with a diffusion stage that takes no time, which shows how many
  requests a second can be carried, and once with one that takes a second, which shows what a request feels of it.
- wire: bytes between gateway and stages, counted on the sockets, over the bytes of the tensors.
- start: the real services with a real model, each alone: from the start of the process until it is ready, first without and then
  with its compiled network on disk; and the memory of each after a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks.bare_client import BareConnection
from benchmarks.report import circumstances, describe, markdown_table, quantile, write_results
from benchmarks.stand_in import CONTEXT_SHAPE, FILE_BYTES, HEIGHT, LATENTS_SHAPE, WIDTH, stand_in_pipeline
from triptych.cli.processes import HOST, Service, ServiceGroup, free_ports
from triptych.cli.topology import STAGES, four_services
from triptych.contract import ImageFormat, StageName
from triptych.pipeline import GenerateRequest

PACKAGES = ("triptych", "fastapi", "uvicorn", "httpx2", "numpy", "keras", "openvino")
PROMPT = "a red circle on a blue background"
READY_SECONDS = 600.0
_EVERY_STAGE_IS_ASKED = {"TRIPTYCH_CONTEXT_CACHE_BYTES": "0"}
"""Else the gateway answers for the text encoder from the second request of a prompt on."""

TARGETS = {"overhead_p50_ms": 10.0, "wire_ratio": 1.02, "first_start_seconds": 10.0, "compiled_start_seconds": 3.0}


# Overhead


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of many requests, in milliseconds; `requests_per_second` over all of them."""

    where: str
    diffusion_seconds: float
    concurrency: int
    requests: int
    p50_ms: float
    p99_ms: float
    requests_per_second: float


def measure_overhead(diffusion_seconds: float, loads: Sequence[tuple[int, int]]) -> list[Latency]:
    """The same load on the pipeline in this process and on the gateway.

    Args:
        diffusion_seconds: What the stand-in for the U-Net takes.
        loads: (concurrency, number of requests).
    """
    results = []
    with stand_in_services(diffusion_seconds) as url:
        for concurrency, number in loads:
            results.append(asyncio.run(_measure_in_process(diffusion_seconds, concurrency, number)))
            results.append(asyncio.run(_measure_gateway(url, diffusion_seconds, concurrency, number)))
    return results


@contextmanager
def stand_in_services(diffusion_seconds: float, *, between: dict[str, str] | None = None) -> Iterator[str]:
    """Three stand-ins and a gateway as processes; yields the gateway's address.

    Args:
        between: Addresses that the gateway is told instead of the stages' own, by environment variable.
    """
    ports = free_ports(4)
    *stages, gateway = four_services(ports)
    stand_ins = [_stand_in(stage, diffusion_seconds) for stage in stages]
    environment = {**gateway.environment, **(between or {}), **_EVERY_STAGE_IS_ASKED, "TRIPTYCH_LOG_LEVEL": "warning"}
    told = Service(**{**vars(gateway), "environment": environment})
    with ServiceGroup([*stand_ins, told], on_line=_complain) as group:
        group.wait_until_ready(seconds=READY_SECONDS, on_ready=lambda service, seconds: None)
        yield gateway.url


def _stand_in(stage: Service, diffusion_seconds: float) -> Service:
    seconds = diffusion_seconds if stage.name == StageName.DIFFUSION else 0.0
    options = ("--port", str(stage.port), "--seconds", str(seconds))
    return Service(
        name=stage.name,
        port=stage.port,
        ready_path=stage.ready_path,
        command=(sys.executable, "-m", "benchmarks.stand_in", stage.name, *options),
    )


def _complain(name: str, line: str) -> None:
    print(f"{name}: {line}", file=sys.stderr)


async def _measure_in_process(diffusion_seconds: float, concurrency: int, number: int) -> Latency:
    pipeline = stand_in_pipeline(diffusion_seconds)
    request = GenerateRequest(
        prompt=PROMPT,
        seed=1,
        width=WIDTH,
        height=HEIGHT,
        sampler="ddim",
        num_steps=20,
        guidance_scale=7.5,
        image_format=ImageFormat.PNG,
    )

    async def generate() -> None:
        async for _ in pipeline.generate(request, deadline=time.monotonic() + 600):
            pass

    return await _measure("in process", generate, diffusion_seconds, concurrency, number)


async def _measure_gateway(url: str, diffusion_seconds: float, concurrency: int, number: int) -> Latency:
    async with AsyncExitStack() as open_ones:
        idle = [await open_ones.enter_async_context(BareConnection(url)) for _ in range(concurrency)]

        async def generate() -> None:
            connection = idle.pop()
            status, content = await connection.post("/generate", {"prompt": PROMPT, "seed": 1}, accept="image/png")
            idle.append(connection)
            assert status == 200
            assert len(content) == FILE_BYTES

        return await _measure("three services", generate, diffusion_seconds, concurrency, number)


async def _measure(
    where: str, generate: Callable[[], Awaitable[None]], diffusion_seconds: float, concurrency: int, number: int
) -> Latency:
    """A closed loop: so many callers, each of whom asks again as soon as it has its answer."""
    for _ in range(3):
        await asyncio.gather(*(generate() for _ in range(concurrency)))
    durations: list[float] = []
    left = iter(range(number))

    async def call() -> None:
        for _ in left:
            started = time.perf_counter()
            await generate()
            durations.append(time.perf_counter() - started)

    began = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(concurrency)))
    took = time.perf_counter() - began
    return Latency(
        where=where,
        diffusion_seconds=diffusion_seconds,
        concurrency=concurrency,
        requests=number,
        p50_ms=1000 * quantile(durations, 0.5),
        p99_ms=1000 * quantile(durations, 0.99),
        requests_per_second=number / took,
    )


# Wire


@dataclass(frozen=True, kw_only=True)
class Wire:
    """Bytes of one request between the gateway and its stages, both ways, headers and all."""

    stage: str
    wire_bytes: int
    tensor_bytes: int

    @property
    def ratio(self) -> float:
        return self.wire_bytes / self.tensor_bytes


class CountingProxy:
    """Passes bytes between a caller and a stage, and counts them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: list[asyncio.Task[None]] = []
        self.bytes = 0

    def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.create_task(self._carry(reader, writer)))

    async def close(self) -> None:
        """Both ends have closed by now, or will not any more."""
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stage_reader, stage_writer = await asyncio.open_connection(HOST, self._port)
        await asyncio.gather(self._pump(reader, stage_writer), self._pump(stage_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(2**16):
            self.bytes += len(chunk)
            writer.write(chunk)
            await writer.drain()
        writer.close()


def measure_wire(requests: int) -> list[Wire]:
    """Bytes a request, by the difference between many requests and none: what the gateway asks on its own is not counted."""
    return asyncio.run(_measure_wire(requests))


async def _measure_wire(requests: int) -> list[Wire]:
    stage_ports = free_ports(3)
    services = [
        Service(
            name=stage,
            port=port,
            ready_path="/v2/health/ready",
            command=(sys.executable, "-m", "benchmarks.stand_in", stage, "--port", str(port)),
        )
        for stage, port in zip(STAGES, stage_ports, strict=True)
    ]
    async with _proxies(stage_ports) as (proxies, proxy_ports):
        (gateway_port,) = free_ports(1)
        *_, gateway = four_services((gateway_port, *proxy_ports))
        quiet = {"TRIPTYCH_POLL_SECONDS": "3600", "TRIPTYCH_LOG_LEVEL": "warning", **_EVERY_STAGE_IS_ASKED}
        told = Service(**{**vars(gateway), "environment": {**gateway.environment, **quiet}})
        with ServiceGroup([*services, told], on_line=_complain) as group:
            await asyncio.to_thread(group.wait_until_ready, seconds=READY_SECONDS, on_ready=lambda service, seconds: None)
            async with httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False) as client:
                (await client.post("/generate", json={"prompt": PROMPT, "seed": 1})).raise_for_status()
                before = [proxy.bytes for proxy in proxies]
                for _ in range(requests):
                    (await client.post("/generate", json={"prompt": PROMPT, "seed": 1})).raise_for_status()
                counted = [(proxy.bytes - start) // requests for proxy, start in zip(proxies, before, strict=True)]
    wires = [
        Wire(stage=stage, wire_bytes=count, tensor_bytes=tensors)
        for stage, count, tensors in zip(STAGES, counted, _tensor_bytes(), strict=True)
    ]
    for wire in wires:
        assert wire.wire_bytes >= wire.tensor_bytes, f"the {wire.stage} stage was not asked every time"
    return wires


@asynccontextmanager
async def _proxies(ports: Sequence[int]) -> AsyncIterator[tuple[list[CountingProxy], list[int]]]:
    proxies = [CountingProxy(port) for port in ports]
    servers = [await asyncio.start_server(proxy.handle, HOST, 0) for proxy in proxies]
    try:
        yield proxies, [server.sockets[0].getsockname()[1] for server in servers]
    finally:
        for server in servers:
            server.close()
        for proxy in proxies:
            await proxy.close()


def _tensor_bytes() -> tuple[int, int, int]:
    """Of one guided picture: prompts in and contexts out, contexts and a seed in and latents out, latents in and a file out."""
    contexts = 2 * 4 * CONTEXT_SHAPE[0] * CONTEXT_SHAPE[1]
    latents = 4 * LATENTS_SHAPE[0] * LATENTS_SHAPE[1] * LATENTS_SHAPE[2]
    return len(PROMPT) + contexts, contexts + 8 + latents, latents + FILE_BYTES


# Start and memory


@dataclass(frozen=True, kw_only=True)
class Start:
    """Of one real process: seconds until it is ready, and its memory after it has had part in a picture."""

    service: str
    first_seconds: float
    compiled_seconds: float
    rss_mib: float
    uss_mib: float


def measure_start() -> list[Start]:
    """Each service alone, so that none waits for another one's share of the processor; then all together for a picture."""
    services = four_services(free_ports(4))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRIPTYCH_CACHE_FOLDER"] = folder
        os.environ["TRIPTYCH_LOG_LEVEL"] = "warning"
        first = [_seconds_to_ready(service) for service in services]
        compiled = [_seconds_to_ready(service) for service in services]
        memory = _memory_of(services)
    return [
        Start(service=service.name, first_seconds=cold, compiled_seconds=warm, rss_mib=rss, uss_mib=uss)
        for service, cold, warm, (rss, uss) in zip(services, first, compiled, memory, strict=True)
    ]


def _seconds_to_ready(service: Service) -> float:
    """The gateway is never ready without stages; alone it can only live."""
    if service.ready_path == "/health/ready":
        service = Service(**{**vars(service), "ready_path": "/health/live"})
    took: list[float] = []
    with ServiceGroup([service], on_line=_complain) as group:
        group.wait_until_ready(seconds=READY_SECONDS, on_ready=lambda service, seconds: took.append(seconds))
    return took[0]


def _memory_of(services: Sequence[Service]) -> list[tuple[float, float]]:
    with ServiceGroup(services, on_line=_complain) as group:
        group.wait_until_ready(seconds=READY_SECONDS, on_ready=lambda service, seconds: None)
        body = {"prompt": PROMPT, "seed": 1}
        httpx2.post(f"{services[-1].url}/generate", json=body, timeout=600, trust_env=False).raise_for_status()
        return [_mebibytes(psutil.Process(process.pid)) for process in group.processes]


def _mebibytes(process: psutil.Process) -> tuple[float, float]:
    memory = process.memory_full_info()
    return memory.rss / 2**20, memory.uss / 2**20


# The report


def report_overhead(results: Sequence[Latency]) -> str:
    header = ("", "diffusion takes", "callers", "requests", "p50 ms", "p99 ms", "requests/s")
    rows = [
        (
            each.where,
            f"{each.diffusion_seconds:g} s",
            each.concurrency,
            each.requests,
            f"{each.p50_ms:.2f}",
            f"{each.p99_ms:.2f}",
            f"{each.requests_per_second:.1f}",
        )
        for each in results
    ]
    pairs = zip(results[::2], results[1::2], strict=True)
    differences = [
        f"overhead with {remote.concurrency} callers, diffusion {remote.diffusion_seconds:g} s: "
        f"p50 {remote.p50_ms - local.p50_ms:.2f} ms, p99 {remote.p99_ms - local.p99_ms:.2f} ms"
        for local, remote in pairs
    ]
    return markdown_table(header, rows) + "\n\n" + "\n".join(f"- {line}" for line in differences)


def report_wire(results: Sequence[Wire]) -> str:
    total = Wire(
        stage="all", wire_bytes=sum(each.wire_bytes for each in results), tensor_bytes=sum(each.tensor_bytes for each in results)
    )
    rows = [(each.stage, each.wire_bytes, each.tensor_bytes, f"{each.ratio:.4f}") for each in (*results, total)]
    return markdown_table(("gateway and", "bytes on the wire", "bytes of tensors", "ratio"), rows)


def report_start(results: Sequence[Start]) -> str:
    rows = [
        (
            each.service,
            f"{each.first_seconds:.1f}",
            f"{each.compiled_seconds:.1f}",
            f"{each.rss_mib:.0f}",
            f"{each.uss_mib:.0f}",
        )
        for each in results
    ]
    return markdown_table(("service", "first start s", "compiled start s", "RSS MiB", "USS MiB"), rows)


def main() -> None:
    """Measures, prints Markdown, and keeps the numbers in benchmarks/results/gateway.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--parts", nargs="+", choices=("overhead", "wire", "start"), default=("overhead", "wire", "start"))
    parser.add_argument("--requests", type=int, default=400, help="requests of each load of the overhead")
    parser.add_argument("--results", default="gateway", help="name of the file under benchmarks/results")
    arguments = parser.parse_args()
    told = circumstances(PACKAGES)
    document: dict[str, Any] = {**told, "targets": TARGETS}
    print(f"# The gateway\n\n{describe(told)}\n")
    if "overhead" in arguments.parts:
        few = max(32, arguments.requests // 10)
        latencies = [
            *measure_overhead(0.0, [(1, arguments.requests), (32, 4 * arguments.requests)]),
            *measure_overhead(1.0, [(1, few), (32, 4 * few)]),
        ]
        document["overhead"] = [asdict(each) for each in latencies]
        print(f"## Overhead\n\n{report_overhead(latencies)}\n", flush=True)
    if "wire" in arguments.parts:
        wires = measure_wire(20)
        document["wire"] = [{**asdict(each), "ratio": each.ratio} for each in wires]
        print(f"## Wire\n\n{report_wire(wires)}\n", flush=True)
    if "start" in arguments.parts:
        starts = measure_start()
        document["start"] = [asdict(each) for each in starts]
        print(f"## Start and memory\n\n{report_start(starts)}\n", flush=True)
    path = write_results(arguments.results, document)
    print(f"The numbers are in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}.")


if __name__ == "__main__":
    main()
