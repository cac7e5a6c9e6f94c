"""A topology file and the models that follow it while the gateway runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from triptych.errors import NotFound, StartError
from triptych.gateway.registry import Model, Registry
from triptych.gateway.remote_models import RemoteModels
from triptych.gateway.steps import StepKind
from triptych.gateway.topology_file import (
    ModelEntry,
    StageEntry,
    Topology,
    parse_topology,
    read_topology,
    replace_text,
    shown_address,
)
from triptych.wire.open_inference import quoted

WATCH_SECONDS = 1.0
"""How often the file is looked at. All of it is read: it is small, and times and sizes of files lie now and then."""

log = structlog.get_logger(__name__)


class LiveTopology:
    """The file is the one source of truth: what it says is taken up, whoever wrote it.

    As an asynchronous context manager it watches the file.

    Attributes:
        models: Makes models of entries.
        registry: The models as the file last said.
        problem: Why the file as it is now was not taken up: one sentence, or None.

    Raises (the constructor):
        StartError: The file cannot be read, or says something that is impossible.
    """

    def __init__(self, path: Path, models: RemoteModels) -> None:
        self.path = path
        self.models = models
        self.problem: str | None = None
        self.text, self.topology = read_topology(path)
        self._by_entry = {entry: models.model(entry) for entry in self.topology}
        self.registry = Registry(tuple(self._by_entry.values()))
        # Between reading or writing the file and taking it up nobody else does either.
        self._alone = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._watching is not None
        self._watching.cancel()
        await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self.refresh()
            except Exception:
                log.exception("topology_watch_failed")

    async def refresh(self) -> None:
        """Takes up the file as it is now. One that cannot be used changes nothing, and is the `problem`."""
        async with self._alone:
            try:
                text, topology = await asyncio.to_thread(read_topology, self.path)
                made = {entry: self._model(entry) for entry in topology}
            except StartError as error:
                self._refuse(error.message)
                return
            self.problem = None
            if text == self.text:
                return
            # Asked before any request is: a model that is ready serves its first one without a question.
            await asyncio.gather(*(model.learn() for entry, model in made.items() if entry not in self._by_entry))
            self._take_up(text, topology, made, told=self._tell_of_new)

    async def write(self, text: str, entry: ModelEntry, model: Model, *, before: str, told: Callable[[], None]) -> None:
        """Replaces the file's text and takes it up.

        Args:
            text: The new one.
            before: What it was made of.
            entry: What is new in it.
            model: That of the entry, ready.
            told: Called once the file is written, before a model is let go.

        Raises:
            Conflict: The file is not as it was, or cannot be written; nothing has changed.
        """
        topology = parse_topology(text, what=f"the topology {self.path}")
        async with self._alone:
            await asyncio.to_thread(replace_text, self.path, before=before, after=text)
            made = {each: model if each == entry else self._model(each) for each in topology}
            self._take_up(text, topology, made, told=lambda new: told())

    def find(self, name: str | None) -> tuple[int, ModelEntry, Model]:
        """A model's place in the file, its entry there, and itself.

        Args:
            name: None is the first.

        Raises:
            NotFound: No model has that name.
        """
        for place, (entry, model) in enumerate(zip(self.topology, self.registry, strict=True)):
            if name is None or name == model.name:
                return place, entry, model
        names = ", ".join(str(model.name) for model in self.registry)
        raise NotFound(f"there is no model {quoted(str(name))} here; there is {names}", param="model")

    def _model(self, entry: ModelEntry) -> Model:
        """The one that there is, with all that it has learnt, or a new one."""
        return self._by_entry.get(entry) or self.models.model(entry)

    def _take_up(
        self, text: str, topology: Topology, made: Mapping[ModelEntry, Model], *, told: Callable[[list[ModelEntry]], None]
    ) -> None:
        new = [entry for entry in topology if entry not in self._by_entry]
        self.text, self.topology, self._by_entry = text, topology, dict(made)
        self.problem = None
        told(new)
        self.registry.replace([made[entry] for entry in topology])

    def _tell_of_new(self, entries: list[ModelEntry]) -> None:
        for entry in entries:
            where = "; ".join(f"{stage} at {shown(entry.at(stage))}" for stage in StageEntry if entry.at(stage))
            self.registry.steps.note(StepKind.TAKEN_UP, f"the topology file says {where}", model=self._by_entry[entry].name)

    def _refuse(self, problem: str) -> None:
        if problem != self.problem:
            self.registry.steps.note(StepKind.NOT_TAKEN_UP, f"{problem}; the topology stays as it was")
        self.problem = problem


def shown(addresses: tuple[str, ...]) -> str:
    """As logs and callers may see them."""
    return ", ".join(map(shown_address, addresses))
