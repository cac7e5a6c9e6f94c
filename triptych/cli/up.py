"""`triptych up`: four services on this machine, until somebody or one of them stops."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from triptych.cli.console import log_line, say
from triptych.cli.processes import Service, ServiceGroup
from triptych.cli.topology import four_services, ports_from

START_SECONDS = 3600.0
"""A first start may download gigabytes, and compiles networks; for a large model each takes minutes."""


def run_until_stopped(port: int, model: str | None = None, topology: Path | None = None) -> None:
    """Starts the services, says when each is ready, and returns never.

    Args:
        model: Which one they serve; None is what the environment says.
        topology: The gateway's file, so that stages can be swapped; None is one that is gone afterwards.

    Raises:
        StartError: A port is taken, or a service was not ready in time.
        ServiceEnded: One of the services ended; the others have been stopped.
    """
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        services = four_services(ports_from(port), model, topology=topology or Path(folder) / "topology.toml")
        _run(services)


def _run(services: Sequence[Service]) -> None:
    with ServiceGroup(services, on_line=log_line) as group:
        group.wait_until_ready(seconds=START_SECONDS, on_ready=say_ready)
        say(f"The gateway is at {services[-1].url}; Ctrl-C stops all services.")
        group.watch()


def say_ready(service: Service, seconds: float) -> None:
    say(f"{service.name} is ready at {service.url} after {seconds:.1f} s")
