"""Replicas of real stages and a gateway before them, as processes that may be killed and are started again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.real_services import Log, TinyModel, diagnosable, wait_until_ready
from triptych.cli.processes import Service, ServiceGroup, free_ports
from triptych.cli.topology import STAGES, serve_command

VIGNETTE = Path(__file__).resolve().parents[2] / "triptych" / "vignette"

Address = Callable[[Service], str]
"""Where the gateway is told that a stage is: at its own place, or behind something that stands between."""


def at_its_own_place(service: Service) -> str:
    return service.url


@dataclass
class Cluster:
    """What runs.

    Attributes:
        stages: Replicas of the three stages.
        url: The gateway's.
        log: Of all of them.
    """

    group: ServiceGroup
    stages: Sequence[Service]
    url: str
    log: Log

    def kill(self, stage: Service) -> None:
        """kill -9, and a new process in its place at once."""
        place = next(place for place, each in enumerate(self.group.processes) if each.service.port == stage.port)
        dead = self.group.processes[place]
        dead.kill()
        dead.wait(10)
        self.group.processes[place] = type(dead)(dead.service, self.log)

    def pid_of(self, stage: Service) -> int:
        return next(each.pid for each in self.group.processes if each.service.port == stage.port)

    def metrics(self) -> Mapping[str, float]:
        """The gateway's numbers, each summed over its labels."""
        text = httpx2.get(f"{self.url}/metrics", trust_env=False).text
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals


@contextmanager
def cluster(
    folder: Path,
    *,
    replicas: int,
    model: Path = VIGNETTE,
    cache: Path | None = None,
    address: Address = at_its_own_place,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """Replicas of each stage and a gateway, ready; ended afterwards.

    Args:
        folder: For the topology file, and for compiled networks where no `cache` is named.
        address: See `Address`.
        environment: The gateway's, on top of what it is told anyway.
    """
    tiny = TinyModel(model, cache or folder / "compiled")
    stages = tuple(tiny.served_by(each) for stage in STAGES for each in _services(stage, replicas))
    topology = folder / "topology.toml"
    told = {stage: [address(each) for each in stages if each.name == stage] for stage in STAGES}
    topology.write_text("[[models]]\n" + "".join(f"{stage} = {urls}\n".replace("'", '"') for stage, urls in told.items()))
    (gateway,) = _services("central", 1, ready_path="/health/ready")
    gateway = replace(gateway, environment={"TRIPTYCH_TOPOLOGY": str(topology), **(environment or {})})
    log = Log()
    with ServiceGroup([*map(diagnosable, (*stages, gateway))], on_line=log) as group:
        wait_until_ready(group)
        yield Cluster(group, stages, gateway.url, log)


def _services(name: str, number: int, *, ready_path: str = "/v2/health/ready") -> list[Service]:
    return [
        Service(name=name, port=port, command=serve_command(name, port), ready_path=ready_path) for port in free_ports(number)
    ]


@contextmanager
def every(seconds: float, do: Callable[[], object]) -> Iterator[None]:
    """Does something again and again while the block runs; what goes wrong with it is raised at the end."""
    ended = threading.Event()
    failures: list[Exception] = []

    def repeat() -> None:
        while not ended.wait(seconds):
            try:
                do()
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)
                return

    thread = threading.Thread(target=repeat, name="chaos", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=60)
    if failures:
        raise failures[0]


def random_stage(cluster: Cluster, randomness: random.Random) -> Service:
    return randomness.choice(cluster.stages)
