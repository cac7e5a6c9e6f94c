"""Gateways and stages are killed (kill -9) while jobs are made: `python -m tests.chaos.jobs --jobs 100 --database postgresql`.

All jobs complete, each once, with the pictures that are made without faults; and whatever had been stored when a gateway was
killed is not computed again afterwards, which the stages themselves count. With `--networks` the stages are real ones with
vignette, which do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.postgres import is_there, postgres
from triptych.cli.processes import Service, ServiceProcess, free_ports
from triptych.cli.topology import STAGES, serve_command
from triptych.client import Client
from triptych.errors import CallerError, TriptychError
from triptych.gateway.jobs.records import JobRecord
from triptych.gateway.jobs.table import open_table

READY_SECONDS = 120.0
"""A start takes a second or two; this is for a machine that is busy with something else."""


@dataclass(frozen=True)
class Work:
    """A piece of work as the stage counted it."""

    began: float
    what: str
    whose: str
    position: int


@dataclass
class Fleet:
    """One replica of each stage and some gateways, as processes.

    Attributes:
        database: Of the jobs.
        counts: Whether the stages write down what they do.
        stored: After each kill of a gateway, the rows, and a moment when they had been read.
    """

    folder: Path
    database: str
    stages: Sequence[Service]
    gateways: list[Service]
    counts: bool
    processes: dict[Service, ServiceProcess] = field(default_factory=dict)
    stored: list[tuple[float, list[JobRecord]]] = field(default_factory=list)

    def start(self, service: Service) -> None:
        self.processes[service] = ServiceProcess(service, lambda name, line: None)

    def wait(self, service: Service) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not _is_ready(service):
            assert time.monotonic() < deadline, f"{service.name} is not ready: {list(self.processes[service].lines)}"
            time.sleep(0.05)

    def kill(self, service: Service) -> None:
        self.processes[service].kill()
        self.processes[service].wait(10)
        if service in self.gateways:
            # Another gateway may go on meanwhile: what is made before the rows are read may be in them.
            rows = self.rows()
            self.stored.append((time.time(), rows))

    def rows(self) -> list[JobRecord]:
        async def read() -> list[JobRecord]:
            async with open_table(self.database, lease_seconds=1) as table:
                return await table.newest("", limit=10_000)

        return asyncio.run(read())

    def work(self) -> list[Work]:
        lines = (self.folder / "work").read_text().splitlines()
        return [Work(float(began), what, whose, int(position)) for began, what, whose, position in (x.split("\t") for x in lines)]

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(10)


def _is_ready(service: Service) -> bool:
    try:
        return httpx2.get(service.url + service.ready_path, trust_env=False, timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


@contextlib.contextmanager
def fleet(folder: Path, database: str, *, gateways: int, seconds: float | None, lease_seconds: float) -> Iterator[Fleet]:
    """Stages and gateways, ready.

    Args:
        seconds: What an evaluation takes, and each other piece of work; None has real networks do it.
        lease_seconds: After which a gateway's jobs are taken over.
    """
    ports = free_ports(len(STAGES) + gateways)
    if seconds is None:
        stages = [_real_stage(name, port) for name, port in zip(STAGES, ports, strict=False)]
    else:
        stages = [_stage(name, port, folder / "work", seconds, os.getpid()) for name, port in zip(STAGES, ports, strict=False)]
    told = {f"TRIPTYCH_{stage.name.upper()}_URL": stage.url for stage in stages} | {
        "TRIPTYCH_JOBS_DATABASE": database,
        "TRIPTYCH_JOBS_STORE": str(folder / "store"),
        "TRIPTYCH_JOBS_LEASE_SECONDS": str(lease_seconds),
        "TRIPTYCH_JOBS_RUNNING": "8",
    }
    running = Fleet(folder, database, stages, [_gateway(port, told) for port in ports[len(STAGES) :]], seconds is not None)
    try:
        for service in (*stages, *running.gateways):
            running.start(service)
        for service in (*stages, *running.gateways):
            running.wait(service)
        yield running
    finally:
        running.stop()


def _stage(name: str, port: int, file: Path, seconds: float, parent: int) -> Service:
    arguments = (name, str(port), str(file), str(seconds), str(parent))
    command = (sys.executable, "-m", "tests.chaos.stand_in_stage", *arguments)
    return _Hashable(name=name, port=port, command=command, ready_path="/v2/health/ready")


def _real_stage(name: str, port: int) -> Service:
    return _Hashable(name=name, port=port, command=serve_command(name, port), ready_path="/v2/health/ready")


def _gateway(port: int, environment: Mapping[str, str]) -> Service:
    return _Hashable(
        name="central", port=port, command=serve_command("central", port), ready_path="/health/live", environment=environment
    )


class _Hashable(Service):
    """A service is its port."""

    def __hash__(self) -> int:
        return self.port

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Service) and self.port == other.port


def submit_all(running: Fleet, jobs: int, *, num_steps: int) -> dict[str, dict[str, Any]]:
    """Submits the jobs at whichever gateway is there, each until it is accepted: the bodies by the jobs' ids."""
    bodies = [{"prompt": f"picture {seed}", "seed": seed, "num_steps": num_steps, "sampler": "euler"} for seed in range(jobs)]
    return {_submit(running, body): body for body in bodies}


def _submit(running: Fleet, body: Mapping[str, Any]) -> str:
    options = {name: value for name, value in body.items() if name != "prompt"}
    for attempt in range(10_000):
        gateway = running.gateways[attempt % len(running.gateways)]
        try:
            with Client(gateway.url, timeout_seconds=20) as client:
                return client.submit(body["prompt"], idempotency_key=body["prompt"], **options)
        except CallerError:
            raise
        except TriptychError:
            time.sleep(0.1)
    raise AssertionError("no gateway took the job")


def chaos(running: Fleet, *, every: float, seed: int, until: Future[Any]) -> list[str]:
    """Kills a gateway and a stage in turn, again and again, and starts them again; who it was.

    In the thread that lives longest: a service ends with the thread that has started it.
    """
    randomness = random.Random(seed)
    killed: list[str] = []
    while not until.done():
        time.sleep(every)
        victim = randomness.choice(running.stages if len(killed) % 2 else running.gateways)
        running.kill(victim)
        killed.append(victim.name)
        running.start(victim)
        running.wait(victim)
    return killed


def wait_until_ended(running: Fleet, jobs: int, *, seconds: float) -> list[JobRecord]:
    deadline = time.monotonic() + seconds
    while True:
        rows = running.rows()
        if len(rows) == jobs and all(row.status.is_end for row in rows):
            return rows
        assert time.monotonic() < deadline, f"not ended: {[row for row in rows if not row.status.is_end]}"
        time.sleep(0.2)


def check(running: Fleet, bodies: Mapping[str, Mapping[str, Any]], rows: Sequence[JobRecord]) -> None:
    """Raises AssertionError where a promise was not kept."""
    assert {row.id for row in rows} == set(bodies), "a job was made twice, or lost"
    assert {row.status for row in rows} == {"completed"}, [row.error for row in rows if row.error]
    if running.counts:
        check_nothing_stored_was_made_again(running, bodies)
    with Client(running.gateways[-1].url, timeout_seconds=60) as client:
        for job, body in bodies.items():
            options = {name: value for name, value in body.items() if name != "prompt"}
            undisturbed = client.generate(body["prompt"], **options)
            assert client.fetch(job) == undisturbed.pictures, f"job {job} made another picture"


def check_nothing_stored_was_made_again(running: Fleet, bodies: Mapping[str, Mapping[str, Any]]) -> None:
    work = running.work()
    for killed, rows in running.stored:
        later = [each for each in work if each.began > killed]
        for row in rows:
            body = bodies[row.id]
            encoded = "context" in row.kept or row.result is not None
            evaluated = body["num_steps"] if "latents" in row.kept or row.result is not None else row.position or 0
            again = [
                each
                for each in later
                if (each.what == "encode" and encoded and each.whose == body["prompt"])
                or (each.what == "evaluate" and each.position <= evaluated and each.whose == str(body["seed"]))
            ]
            assert not again, f"made again: {again}"


def evaluations(running: Fleet) -> int:
    return sum(each.what == "evaluate" for each in running.work())


def with_kills(running: Fleet, jobs: int, *, num_steps: int, every: float, seed: int, seconds: float) -> str:
    """Jobs while everything is killed now and then; what came of it."""
    began = time.monotonic()

    def make() -> tuple[dict[str, dict[str, Any]], list[JobRecord]]:
        bodies = submit_all(running, jobs, num_steps=num_steps)
        return bodies, wait_until_ended(running, jobs, seconds=seconds)

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make)
        killed = chaos(running, every=every, seed=seed, until=making)
        bodies, rows = making.result()
    took, made = time.monotonic() - began, evaluations(running) if running.counts else None
    check(running, bodies, rows)
    needed = jobs * num_steps
    return (
        f"{jobs} jobs completed in {took:.0f} s, {len(killed)} kills ({killed.count('central')} of gateways), "
        f"{sum(row.attempt for row in rows)} attempts"
        + ("" if made is None else f", {made} evaluations for {needed} ({made / needed - 1:.1%} twice)")
    )


def with_a_gateway_that_dies(running: Fleet, jobs: int, *, num_steps: int, seconds: float) -> str:
    """Two gateways share the jobs, and one is killed for good; what came of it."""
    bodies = submit_all(running, jobs, num_steps=num_steps)
    dying = running.gateways[0]
    deadline = time.monotonic() + READY_SECONDS
    while not any(row.position for row in running.rows()):
        assert time.monotonic() < deadline, "no job has begun"
        time.sleep(0.02)
    running.kill(dying)
    killed = time.monotonic()
    running.gateways.remove(dying)
    left = {row.id: row.attempt for row in running.stored[-1][1] if row.status == "running"}
    taken_over: dict[str, float] = {}
    while True:
        rows = running.rows()
        for row in rows:
            if row.id in left and row.attempt > left[row.id]:
                taken_over.setdefault(row.id, time.monotonic() - killed)
        if all(row.status.is_end for row in rows):
            break
        assert time.monotonic() < killed + seconds, f"not ended: {[row for row in rows if not row.status.is_end]}"
        time.sleep(0.1)
    check(running, bodies, rows)
    assert taken_over, "the gateway that was killed had no jobs"
    assert max(taken_over.values()) < 30
    return (
        f"{jobs} jobs completed; one of two gateways was killed for good, with {len(taken_over)} of {len(left)} jobs at work: "
        f"they were taken over within {max(taken_over.values()):.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--evaluation", type=float, default=0.05, help="seconds that an evaluation takes")
    parser.add_argument("--networks", action="store_true", help="real stages with vignette")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--lease", type=float, default=10.0, help="seconds after which a gateway's jobs are taken over")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed")
    parser.add_argument("--dying-gateway", action="store_true", help="two gateways, of which one is killed for good")
    told = parser.parse_args()
    if told.database == "postgresql" and not is_there():
        raise SystemExit("there is no PostgreSQL: install Debian's package postgresql")
    server = postgres() if told.database == "postgresql" else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as name, server as running_server:
        database = f"{name}/jobs.sqlite3" if running_server is None else running_server.url
        gateways = 2 if told.dying_gateway else 1
        limits = {"seconds": None if told.networks else told.evaluation, "lease_seconds": told.lease}
        with fleet(Path(name), database, gateways=gateways, **limits) as running:
            if told.dying_gateway:
                print(with_a_gateway_that_dies(running, told.jobs, num_steps=told.steps, seconds=600))  # noqa: T201
                return
            chaos_limits = {"every": told.every, "seed": told.seed, "seconds": 1200.0}
            print(with_kills(running, told.jobs, num_steps=told.steps, **chaos_limits))  # noqa: T201


if __name__ == "__main__":
    main()
