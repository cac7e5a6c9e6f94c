"""From the start of a scenario's processes until it is ready, and until it has made its first picture."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.timing.asking import Asked, ask
from benchmarks.timing.processes import Served, services_of
from benchmarks.timing.scenarios import Scenario
from benchmarks.timing.subjects import START_SECONDS, running
from triptych.cli.processes import Service, ServiceGroup

OnLine = Callable[[str, str], None]


def measure_cold_starts(
    scenario: Scenario, served: Served, asked: Asked, *, compiled_starts: int, on_line: OnLine
) -> dict[str, Any]:
    """One start with an empty folder of compiled networks, then some with what that one left there.

    Of three endpoints each process is started alone too, from its compiled network.
    Files that were read before are still in the system's memory: what a first reading from the disk takes is not in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        fresh = replace(served, cache_folder=Path(folder))
        nothing = _start(scenario, fresh, asked, on_line)
        compiled = [_start(scenario, fresh, asked, on_line) for _ in range(compiled_starts)]
        services = services_of(scenario, fresh) if scenario.is_split else ()
        alone = {service.name: _seconds_alone(service, on_line) for service in services}
    return {"nothing": nothing, "compiled": compiled, "alone": alone}


def _start(scenario: Scenario, served: Served, asked: Asked, on_line: OnLine) -> dict[str, float]:
    began = time.monotonic()
    with running(scenario, served, on_line=on_line) as ready:
        asyncio.run(ask(ready.url, asked))
        return {"ready_seconds": ready.ready_seconds, "first_picture_seconds": time.monotonic() - began}


def _seconds_alone(service: Service, on_line: OnLine) -> float:
    """Of one process with the machine to itself. A gateway is never ready without its stages; of it, until it lives."""
    if service.name == "central":
        service = replace(service, ready_path="/health/live")
    took: list[float] = []
    with ServiceGroup([service], on_line=on_line) as group:
        group.wait_until_ready(seconds=START_SECONDS, on_ready=lambda service, seconds: took.append(seconds))
    return took[0]
