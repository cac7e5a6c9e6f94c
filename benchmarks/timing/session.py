"""One run: its units in their order, each measured once and kept in the journal, with how busy the machine was meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from benchmarks.timing.asking import ask
from benchmarks.timing.busy import SHORTEST_SECONDS, Meter
from benchmarks.timing.journal import Journal, Record
from benchmarks.timing.peers import PEERS, PeerTask, PeerUnavailable, RunningPeer, running_peer
from benchmarks.timing.plan import RANDOM_MODEL, WARM_UP_STEPS, Plan
from benchmarks.timing.processes import Served
from benchmarks.timing.scenarios import Scenario
from benchmarks.timing.subjects import Fleet, RunningScenario, running

Subject = RunningScenario | RunningPeer
Measure = Callable[[], Mapping[str, Any]]


class Display(Protocol):
    """Who watches."""

    def begins(self, unit: str) -> None:
        """A unit is measured now, which may take long."""

    def ended(self, unit: str, note: str) -> None:
        """It was, and what there is to say of it."""

    def log(self, name: str, line: str) -> None:
        """A process said something."""


class Session:
    """What the parts of a run share.

    Args:
        model_folder: Of the model as diffusers lays it out, for the peers; None where there is none.
    """

    def __init__(self, plan: Plan, journal: Journal, display: Display, *, served: Served, model_folder: str | None) -> None:
        self.plan = plan
        self.journal = journal
        self.display = display
        self.served = served
        self._part = plan.parts[0]
        self._model_folder = model_folder
        starts: dict[str, Callable[[], AbstractContextManager[Subject]]] = {
            scenario.name: partial(self._start_scenario, scenario) for scenario in plan.scenarios
        }
        starts |= {name: partial(self._start_peer, name) for name in plan.peers}
        self._fleet = Fleet(starts, keep_all=plan.keep_all)

    def scenario(self, scenario: Scenario) -> RunningScenario:
        """It runs, and has made a picture of each sort that will be asked for: first ones take longer."""
        subject = self._fleet.get(scenario.name)
        assert isinstance(subject, RunningScenario)
        return subject

    def peer(self, name: str) -> RunningPeer:
        """It runs, and has made a picture. Raises PeerUnavailable."""
        subject = self._fleet.get(name)
        assert isinstance(subject, RunningPeer)
        return subject

    def begin(self, part: str) -> None:
        """A part begins: what runs stays for it, or is started anew with the sizes that it asks for."""
        self._part = part
        if not self.plan.keep_all:
            self.close()
        if self.served.sizes:
            self.served = replace(self.served, sizes=self.plan.sizes_of(part))

    def close(self) -> None:
        self._fleet.close()

    def unit(self, key: str, part: str, measure: Measure, *, prepare: Callable[[], object] = lambda: None) -> Record:
        """What was measured of a unit: now, unless the journal knows; again, where the machine was busy and that is wished.

        Args:
            prepare: What comes before, and is no part of it.
        """
        while self.journal.attempts(key) == 0 or self._is_worth_repeating(key):
            self.display.begins(key)
            prepare()
            began, meter = datetime.now(UTC), Meter()
            measured = measure()
            busy = meter.read()
            is_flagged = busy.seconds >= SHORTEST_SECONDS and busy.others_share > self.plan.busy_share
            self.journal.add(
                {
                    "unit": key,
                    "part": part,
                    "began": began.isoformat(timespec="seconds"),
                    "busy": asdict(busy),
                    "is_flagged": is_flagged,
                    "measured": measured,
                }
            )
            self.display.ended(key, f"others took {busy.others_share:.0%} of the machine" if is_flagged else "")
        return self.journal.calmest(key)

    def _is_worth_repeating(self, key: str) -> bool:
        return bool(self.journal.calmest(key)["is_flagged"]) and self.journal.attempts(key) <= self.plan.repeat_busy

    @contextmanager
    def _start_scenario(self, scenario: Scenario) -> Iterator[RunningScenario]:
        with running(scenario, self.served, on_line=self.display.log) as subject:
            asyncio.run(self._warm_up(subject, scenario.replicas))
            yield subject

    async def _warm_up(self, subject: RunningScenario, replicas: int) -> None:
        """As often at once as there are replicas, so that each has made one."""
        for picture in self.plan.first_pictures(self._part):
            await asyncio.gather(*(ask(subject.url, picture) for _ in range(replicas)))

    def _start_peer(self, name: str) -> AbstractContextManager[RunningPeer]:
        plan = self.plan
        if self._model_folder is None:
            raise PeerUnavailable(f"{plan.model} is no folder that diffusers could read")
        if PEERS[name].real_size_only and plan.model != RANDOM_MODEL:
            raise PeerUnavailable(f"{PEERS[name].label} has networks of Stable Diffusion's size only")
        task = PeerTask(
            setting=PEERS[name].setting,
            model=self._model_folder,
            threads=plan.threads,
            width=plan.width,
            height=plan.height,
            num_images=plan.batch,
            warm_up_steps=WARM_UP_STEPS,
        )
        return running_peer(name, task, on_line=self.display.log)
