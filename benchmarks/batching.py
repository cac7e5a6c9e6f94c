"""What the step batcher gives: the diffusion stage with it, against the same stage that takes one request after the other.

In one process, without services: what is measured is the stage. Two models: vignette, and a stand-in with the tensor shapes of
Stable Diffusion 1.5 whose network is matrix products of a known cost. The real U-Net takes seconds a row on two cores, hours for
this benchmark; the stand-in's calls cost as many times more as they have rows, as the real one's do.

Three parts, each of which can be left out:

- python: the time between two calls of vignette's network, as a share of a step.
- loop: 16 clients, each of whom asks again as soon as it has its answer.
- short: 4 clients with 4 steps among 12 with 50.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from benchmarks.report import circumstances, describe, markdown_table, quantile, write_results
from benchmarks.stand_in import CONTEXT_SHAPE, HEIGHT, LATENTS_SHAPE, WIDTH, StandInDiffusion
from triptych.contract import DenoiseRequest, DiffusionIdentity, Float32
from triptych.sampling.schedule import ScheduleConfig
from triptych.serving.settings import StageSettings, read_settings
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.networks import NetworkLoader
from triptych.stages.step_batcher import StepBatcher

PACKAGES = ("triptych", "numpy", "openvino")
TARGETS = {"python_share": 0.1, "short_p95_ratio": 0.2}
CLIENTS = 16
SHORT_CLIENTS, SHORT_STEPS, LONG_STEPS = 4, 4, 50
SAMPLER = "ddim"
GUIDANCE_SCALE = 7.5
CAPACITY = 16
VIGNETTE, STAND_IN = "vignette", "SD 1.5's shapes, stand-in"
BATCHED, FIFO = "step batcher", "first in, first out"

# A product of two matrices of this width is a row of the stand-in.
_MATRIX_WIDTH = 640

Denoise = Callable[[DenoiseRequest], Any]


class StandInUNet:
    """A network whose calls cost the same for every row."""

    def __init__(self) -> None:
        self._matrix = np.random.default_rng(0).standard_normal((_MATRIX_WIDTH, _MATRIX_WIDTH), np.float32)

    def __call__(self, inputs: Mapping[str, Float32]) -> Mapping[str, Float32]:
        for _ in range(len(inputs["latents"])):
            self._matrix @ self._matrix
        level = inputs["context"].mean(axis=(1, 2))[:, None, None, None]
        return {"prediction": np.float32(0.1) * inputs["latents"] + level}


class StandInStage(DiffusionStage):
    """The diffusion stage, with a stand-in for its network."""

    def load(self, networks: NetworkLoader) -> DiffusionIdentity:
        self._schedule = ScheduleConfig()
        shape = LATENTS_SHAPE, CONTEXT_SHAPE
        self._batcher = StepBatcher({shape: StandInUNet()}, capacity=CAPACITY, queue_size=self.options.queue_size)
        return asyncio.run(StandInDiffusion().identity())


def make_stage(model: str) -> DiffusionStage:
    cache_folder = platformdirs.user_cache_path("triptych")
    settings = read_settings(StageSettings, model=VIGNETTE, cache_folder=cache_folder, queue_size=4 * CLIENTS)
    return DiffusionStage(settings) if model == VIGNETTE else StandInStage(settings)


@asynccontextmanager
async def started(model: str) -> AsyncIterator[tuple[DiffusionStage, DiffusionIdentity]]:
    stage = make_stage(model)
    await asyncio.to_thread(stage.start)
    try:
        yield stage, await stage.identity()
    finally:
        await asyncio.to_thread(stage.close)


def request_of(identity: DiffusionIdentity, seed: int, num_steps: int, sampler: str = SAMPLER) -> DenoiseRequest:
    """One picture with guidance, of the model's first size."""
    shape = (2, identity.context_length, identity.context_width)
    contexts = np.random.default_rng(seed).standard_normal(shape, np.float32)
    width, height = identity.sizes[0]
    return DenoiseRequest(
        context=contexts[:1],
        unconditional_context=contexts[1:],
        seeds=np.array([seed], np.uint64),
        width=width,
        height=height,
        sampler=sampler,
        num_steps=num_steps,
        guidance_scale=GUIDANCE_SCALE,
    )


async def denoise(stage: DiffusionStage, request: DenoiseRequest) -> None:
    async with aclosing(stage.denoise(request)) as events:
        async for _ in events:
            pass


# Python between two calls


@dataclass(frozen=True, kw_only=True)
class Between:
    """Medians over the calls of a denoising, in milliseconds."""

    sampler: str
    pictures: int
    step_ms: float
    python_ms: float

    @property
    def share(self) -> float:
        return self.python_ms / self.step_ms


class Stopwatch:
    """A network that notes when its calls begin and end."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.times: list[tuple[float, float]] = []

    def __call__(self, inputs: Mapping[str, Float32]) -> Mapping[str, Float32]:
        began = time.perf_counter()
        outputs: Mapping[str, Float32] = self.network(inputs)
        self.times.append((began, time.perf_counter()))
        return outputs


async def measure_python(num_steps: int) -> list[Between]:
    """One picture alone, and eight that share calls, with a sampler without noise and with one that draws it."""
    results = []
    async with started(VIGNETTE) as (stage, identity):
        assert stage._batcher is not None
        networks: dict[Any, Any] = stage._batcher._networks  # type: ignore[assignment]
        (shape, network), *_ = networks.items()
        for sampler, pictures in itertools.product((SAMPLER, "euler_ancestral"), (1, 8)):
            networks[shape] = stopwatch = Stopwatch(network)
            requests = [request_of(identity, seed, num_steps, sampler) for seed in range(pictures)]
            await asyncio.gather(*(denoise(stage, request) for request in requests))
            # Those at the ends have not all pictures in them.
            times = stopwatch.times[2:-2]
            pairs = list(itertools.pairwise(times))
            results.append(
                Between(
                    sampler=sampler,
                    pictures=pictures,
                    step_ms=1000 * quantile([after[0] - before[0] for before, after in pairs], 0.5),
                    python_ms=1000 * quantile([after[0] - before[1] for before, after in pairs], 0.5),
                )
            )
    return results


# Closed loops


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests of one kind in a closed loop. What is under way when the time is over is finished and counts, as does its time."""

    model: str
    how: str
    num_steps: int
    clients: int
    seconds: float
    requests: int
    pictures_per_second: float
    p50_seconds: float
    p95_seconds: float


def one_at_a_time(stage: DiffusionStage) -> Denoise:
    """The same stage without batching: requests in the order in which they came."""
    lock = asyncio.Lock()

    async def call(request: DenoiseRequest) -> None:
        async with lock:
            await denoise(stage, request)

    return call


async def measure_loop(model: str, steps_of_clients: Sequence[int] | None, seconds: float) -> list[Load]:
    """The same clients on the step batcher and first-in-first-out.

    Args:
        steps_of_clients: Of each client's requests; None is 16 clients with the model's default.
    """
    results: list[Load] = []
    async with started(model) as (stage, identity):
        clients = steps_of_clients or [identity.default_num_steps] * CLIENTS
        for how, call in ((BATCHED, lambda request: denoise(stage, request)), (FIFO, one_at_a_time(stage))):
            results += await _closed_loop(model, how, call, identity, clients, seconds)
    return results


async def _closed_loop(
    model: str, how: str, call: Denoise, identity: DiffusionIdentity, clients: Sequence[int], seconds: float
) -> list[Load]:
    durations: dict[int, list[float]] = {num_steps: [] for num_steps in clients}
    began = time.perf_counter()

    async def client(number: int, num_steps: int) -> None:
        for turn in itertools.count():
            started_at = time.perf_counter()
            if started_at - began >= seconds:
                return
            await call(request_of(identity, turn * len(clients) + number, num_steps))
            durations[num_steps].append(time.perf_counter() - started_at)

    await asyncio.gather(*(client(number, num_steps) for number, num_steps in enumerate(clients)))
    took = time.perf_counter() - began
    return [
        Load(
            model=model,
            how=how,
            num_steps=num_steps,
            clients=list(clients).count(num_steps),
            seconds=took,
            requests=len(done),
            pictures_per_second=len(done) / took,
            p50_seconds=quantile(done, 0.5),
            p95_seconds=quantile(done, 0.95),
        )
        for num_steps, done in durations.items()
    ]


# Reports


def report_python(results: Sequence[Between]) -> str:
    header = ("sampler", "pictures in a call", "step ms", "of which Python ms", "share")
    rows = [
        (each.sampler, each.pictures, f"{each.step_ms:.2f}", f"{each.python_ms:.2f}", f"{each.share:.1%}") for each in results
    ]
    return markdown_table(header, rows)


def report_loads(results: Sequence[Load]) -> str:
    header = ("model", "how", "steps", "clients", "pictures/s", "p50 s", "p95 s", "requests")
    rows = [
        (
            each.model,
            each.how,
            each.num_steps,
            each.clients,
            f"{each.pictures_per_second:.2f}",
            f"{each.p50_seconds:.2f}",
            f"{each.p95_seconds:.2f}",
            each.requests,
        )
        for each in results
    ]
    return markdown_table(header, rows)


def short_ratios(results: Sequence[Load]) -> dict[str, float]:
    """By model: p95 of short requests with the step batcher over that of first-in-first-out."""
    p95 = {(each.model, each.how): each.p95_seconds for each in results if each.num_steps == SHORT_STEPS}
    return {model: p95[model, BATCHED] / p95[model, FIFO] for model, how in p95 if how == BATCHED}


def main() -> None:
    """Measures, prints Markdown, and keeps the numbers in benchmarks/results/batching.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--parts", nargs="+", choices=("python", "loop", "short"), default=("python", "loop", "short"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each closed loop; there are eight")
    parser.add_argument("--results", default="batching", help="name of the file under benchmarks/results")
    arguments = parser.parse_args()
    told = circumstances(PACKAGES)
    document: dict[str, Any] = {**told, "targets": TARGETS}
    print(f"# The step batcher\n\n{describe(told)}\n")
    print(
        f"In one process; every picture has guidance ({SAMPLER}). SD 1.5's own U-Net is not run: it takes seconds a row\n"
        f"on two cores. Its stand-in has the shapes of {WIDTH}x{HEIGHT} and costs {2 * _MATRIX_WIDTH**3 / 1e9:.1f} GFLOP a row.\n"
    )
    if "python" in arguments.parts:
        between = asyncio.run(measure_python(LONG_STEPS))
        document["python"] = [{**asdict(each), "share": each.share} for each in between]
        print(f"## Python between two calls, vignette\n\n{report_python(between)}\n", flush=True)
    if "loop" in arguments.parts:
        loads = [load for model in (VIGNETTE, STAND_IN) for load in asyncio.run(measure_loop(model, None, arguments.seconds))]
        document["loop"] = [asdict(each) for each in loads]
        print(f"## {CLIENTS} clients for {arguments.seconds:g} s\n\n{report_loads(loads)}\n", flush=True)
    if "short" in arguments.parts:
        mixed = [SHORT_STEPS] * SHORT_CLIENTS + [LONG_STEPS] * (CLIENTS - SHORT_CLIENTS)
        loads = [load for model in (VIGNETTE, STAND_IN) for load in asyncio.run(measure_loop(model, mixed, arguments.seconds))]
        document["short"] = [asdict(each) for each in loads]
        document["short_p95_ratios"] = ratios = short_ratios(loads)
        print(f"## Short requests among long ones, {arguments.seconds:g} s\n\n{report_loads(loads)}\n")
        for model, ratio in ratios.items():
            print(f"- p95 of {SHORT_STEPS}-step requests, {model}: {ratio:.3f} of first in, first out", flush=True)
    path = write_results(arguments.results, document)
    print(f"\nThe numbers are in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}.")


if __name__ == "__main__":
    main()
