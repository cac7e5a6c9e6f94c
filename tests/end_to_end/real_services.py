"""Real processes with a tiny real model: the three stages, the gateway, and all in one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.cli.processes import Service, ServiceGroup, free_ports
from triptych.cli.topology import four_services, serve_command
from triptych.errors import StartError

START_SECONDS = 300.0
"""A start takes seconds; this is for a machine that is busy with something else."""

STACKS_SECONDS = 10.0
"""For a service that is not ready in time to write down where it is; what a service that hangs in C needs, too."""


class Log:
    """What the services logged, shown by pytest where a test fails."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append(f"{name}: {line}")
        print(f"{name}: {line}")  # noqa: T201


@dataclass(frozen=True)
class TinyModel:
    """A tiny real model on disk, and the folder of its compiled networks."""

    folder: Path
    cache: Path

    @property
    def environment(self) -> dict[str, str]:
        """The batch sizes are those of tests/stages: what one of them compiles serves all."""
        told = {"MODEL": str(self.folder), "CACHE_FOLDER": str(self.cache), "THREADS": "1", "BATCH_SIZES": "1,2,4"}
        return {f"TRIPTYCH_{name}": value for name, value in told.items()}

    def served_by(self, service: Service) -> Service:
        return replace(service, environment={**self.environment, **service.environment})


def four_tiny_services(model: TinyModel) -> tuple[Service, ...]:
    """Three stages, and last the gateway."""
    return tuple(map(model.served_by, four_services(free_ports(4))))


def tiny_all_in_one(model: TinyModel) -> Service:
    (port,) = free_ports(1)
    command = serve_command("all_in_one", port)
    return model.served_by(Service(name="all_in_one", port=port, command=command, ready_path="/health/ready"))


@contextmanager
def running(services: Sequence[Service]) -> Iterator[ServiceGroup]:
    """The services, ready; stopped afterwards."""
    with ServiceGroup([*map(diagnosable, services)], on_line=Log()) as group:
        wait_until_ready(group)
        yield group


def diagnosable(service: Service) -> Service:
    """The service, where SIGABRT writes the stacks of all its threads to its log and ends it."""
    return replace(service, environment={**service.environment, "PYTHONFAULTHANDLER": "1"})


def wait_until_ready(group: ServiceGroup, *, seconds: float = START_SECONDS) -> None:
    """Until all services, which are `diagnosable`, are ready; of those that are not in time the log says where they hang.

    Raises:
        ServiceEnded, StartError: As `ServiceGroup.wait_until_ready` raises them.
    """
    ready: list[Service] = []
    try:
        group.wait_until_ready(seconds=seconds, on_ready=lambda service, seconds: ready.append(service))
    except StartError:
        hanging = [process for process in group.processes if process.service not in ready]
        for process in hanging:
            os.kill(process.pid, signal.SIGABRT)
        deadline = time.monotonic() + STACKS_SECONDS
        for process in hanging:
            process.wait(max(0.0, deadline - time.monotonic()))
        raise


def addresses(services: Sequence[Service]) -> Mapping[str, str]:
    return {service.name: service.url for service in services}
