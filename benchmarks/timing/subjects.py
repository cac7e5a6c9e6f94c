"""What is measured: scenarios of ours and their peers, each started when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from benchmarks.timing.processes import Served, services_of
from benchmarks.timing.scenarios import LOCAL, REMOTE, Scenario
from triptych.cli.processes import Service, ServiceGroup
from triptych.contract import StageName

START_SECONDS = 3600.0
"""A first start compiles networks; for a large model each takes minutes."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunningScenario:
    """A scenario that is ready.

    Attributes:
        url: What answers `/generate`.
        remote: Addresses of the stages that are services of their own.
        pids: Of the processes that were started for it, by the services' names.
        ready_seconds: From the start of the first process until `url` was ready.
    """

    name: str
    url: str
    remote: Mapping[StageName, str]
    pids: Mapping[str, int]
    ready_seconds: float


@contextmanager
def running(scenario: Scenario, served: Served, *, on_line: Callable[[str, str], None]) -> Iterator[RunningScenario]:
    """Starts a scenario's processes, and ends them with the block."""
    services = services_of(scenario, served)
    ready: dict[str, float] = {}

    def note(service: Service, seconds: float) -> None:
        ready[service.name] = seconds

    with ServiceGroup(services, on_line=on_line) as group:
        group.wait_until_ready(seconds=START_SECONDS, on_ready=note)
        yield RunningScenario(
            name=scenario.name,
            url=services[-1].url,
            remote=_remote(scenario, services),
            pids={process.service.name: process.pid for process in group.processes},
            ready_seconds=ready[services[-1].name],
        )


def _remote(scenario: Scenario, services: Sequence[Service]) -> dict[StageName, str]:
    started = {service.name: service.url for service in services}
    return {stage: started[stage] if place == REMOTE else place for stage, place in scenario.places.items() if place != LOCAL}


class Fleet(Generic[T]):
    """Things that are started when they are first asked for.

    Args:
        starts: How each is started, by name.
        keep_all: Whether those that were started stay; else each ends before the next one starts.
    """

    def __init__(self, starts: Mapping[str, Callable[[], AbstractContextManager[T]]], *, keep_all: bool) -> None:
        self._starts = starts
        self._keep_all = keep_all
        self._running: dict[str, T] = {}
        self._stack = ExitStack()

    def get(self, name: str) -> T:
        if name not in self._running:
            if not self._keep_all:
                self.close()
            self._running[name] = self._stack.enter_context(self._starts[name]())
        return self._running[name]

    def close(self) -> None:
        self._running.clear()
        self._stack.close()
