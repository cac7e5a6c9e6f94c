"""The processes of a scenario: which services, with which settings, in which order they start."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.timing.scenarios import LOCAL, REMOTE, Scenario
from triptych.cli.processes import Service, free_ports
from triptych.cli.topology import STAGES, serve_command
from triptych.contract import StageName
from triptych.errors import StartError

STAND_IN = "stand-in"
"""The name of the model that has no networks (`benchmarks/stand_in.py`): what is left is what a topology costs."""

REQUEST_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the services of every scenario are told alike.

    Attributes:
        model: A name or a path, as for `TRIPTYCH_MODEL`, or `stand-in`.
        threads: That a network may use. Replicas share them.
        sizes: (width, height) of the pictures to be ready for; none is what the model says.
        cache_folder: Of compiled networks; None is what the environment says.
        stand_in_seconds: What each stage takes, where the model is the stand-in.
    """

    model: str
    threads: int
    sizes: tuple[tuple[int, int], ...] = ()
    cache_folder: Path | None = None
    stand_in_seconds: Mapping[StageName, float] = field(default_factory=dict)

    def environment(self, threads: int) -> dict[str, str]:
        told = {
            "TRIPTYCH_THREADS": str(threads),
            # That a stage is not ready yet, while all of them start, is no news.
            "TRIPTYCH_LOG_LEVEL": "error",
            "TRIPTYCH_LOG_FORMAT": "console",
            # Else only the first request of a prompt would be encoded.
            "TRIPTYCH_CACHED_CONTEXTS": "0",
            "TRIPTYCH_CONTEXT_CACHE_BYTES": "0",
            # A topology of the user's would go before the addresses of a scenario.
            "TRIPTYCH_TOPOLOGY": "",
            "TRIPTYCH_REQUEST_TIMEOUT_SECONDS": str(REQUEST_SECONDS),
        }
        if self.model != STAND_IN:
            told["TRIPTYCH_MODEL"] = self.model
        if self.sizes:
            told["TRIPTYCH_SIZES"] = ",".join(f"{width}x{height}" for width, height in self.sizes)
        if self.cache_folder is not None:
            told["TRIPTYCH_CACHE_FOLDER"] = str(self.cache_folder)
        return told


def services_of(scenario: Scenario, served: Served) -> tuple[Service, ...]:
    """What is to be started: stages first, and last what answers `/generate`.

    Raises:
        StartError: There are fewer threads than replicas.
    """
    if served.threads < scenario.replicas:
        raise StartError(f"{scenario.replicas} replicas cannot share {served.threads} threads")
    if scenario.replicas > 1:
        return _replicas(scenario, served)
    if scenario.is_one_process:
        return (_monolith("all_in_one", served, served.threads),)
    remote = [stage for stage in STAGES if scenario.places[StageName(stage)] == REMOTE]
    ports = free_ports(len(remote) + 1)
    stages = [stage_service(StageName(stage), port, served) for stage, port in zip(remote, ports, strict=False)]
    started = {StageName(stage.name): stage.url for stage in stages}
    addresses = {stage: started.get(stage, place) for stage, place in scenario.places.items() if place != LOCAL}
    return (*stages, _front(ports[-1], addresses, served))


def stage_service(stage: StageName, port: int, served: Served) -> Service:
    """One stage as a service of its own."""
    command = serve_command(stage, port)
    if served.model == STAND_IN:
        seconds = str(served.stand_in_seconds.get(stage, 0.0))
        command = (sys.executable, "-m", "benchmarks.stand_in", stage, "--port", str(port), "--seconds", seconds)
    return Service(
        name=stage, port=port, command=command, ready_path="/v2/health/ready", environment=served.environment(served.threads)
    )


def _replicas(scenario: Scenario, served: Served) -> tuple[Service, ...]:
    threads = served.threads // scenario.replicas
    monoliths = [_monolith(f"all_in_one-{number + 1}", served, threads) for number in range(scenario.replicas)]
    (port,) = free_ports(1)
    behind = [str(monolith.port) for monolith in monoliths]
    return (*monoliths, _answering("forwarder", port, ("benchmarks.timing.forwarder", str(port), *behind), {}))


def _monolith(name: str, served: Served, threads: int) -> Service:
    (port,) = free_ports(1)
    if served.model == STAND_IN:
        return replace(_front(port, {}, served), name=name)
    environment = served.environment(threads)
    return Service(
        name=name, port=port, command=serve_command("all_in_one", port), ready_path="/health/ready", environment=environment
    )


def _front(port: int, addresses: Mapping[StageName, str], served: Served) -> Service:
    """The gateway, with those stages local that have no address."""
    environment = served.environment(served.threads)
    if len(addresses) == len(StageName):
        told = {f"TRIPTYCH_{stage.upper()}_URL": url for stage, url in addresses.items()}
        command = serve_command("central", port)
        return Service(name="central", port=port, command=command, ready_path="/health/ready", environment=environment | told)
    places = [f"{stage}={addresses.get(stage) or _local_place(stage, served)}" for stage in StageName]
    return _answering("front", port, ("benchmarks.timing.front", str(port), *places), environment)


def _local_place(stage: StageName, served: Served) -> str:
    return f"stand-in:{served.stand_in_seconds.get(stage, 0.0)}" if served.model == STAND_IN else LOCAL


def _answering(name: str, port: int, module: Sequence[str], environment: Mapping[str, str]) -> Service:
    command = (sys.executable, "-m", *module)
    return Service(name=name, port=port, command=command, ready_path="/health/ready", environment=environment)
