"""Real processes with a tiny real model: the three stages, the gateway, and all in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.cli.processes import Service, ServiceGroup, free_ports
from triptych.cli.topology import four_services, serve_command

START_SECONDS = 300.0
"""A start takes seconds; this is for a machine that is busy with something else."""


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
    with ServiceGroup(services, on_line=Log()) as group:
        group.wait_until_ready(seconds=START_SECONDS, on_ready=lambda service, seconds: None)
        yield group


def addresses(services: Sequence[Service]) -> Mapping[str, str]:
    return {service.name: service.url for service in services}
