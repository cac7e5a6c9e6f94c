"""Requests that arrive together share a call of the network: what the text encoder and the decoder do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.stages.worker import Admission, Worker

Arrays = Mapping[str, NDArray[Any]]
Network = Callable[[Arrays], Arrays]

WINDOW_SECONDS = 0.003
"""How long the first of a batch waits for company. What arrives while the network is busy waits for it anyway."""


@dataclass(eq=False)
class _Part:
    """The rows of one request, and its answer to be."""

    inputs: Arrays
    admission: Admission
    deadline: float | None
    outputs: asyncio.Future[Arrays] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


class CallBatcher:
    """Calls a network with the rows of several requests at once. For one event loop.

    Args:
        network: Called by the worker's thread.
        capacity: Rows in one call; a request with more has calls of its own.
    """

    def __init__(self, network: Network, worker: Worker, *, capacity: int) -> None:
        self.capacity = capacity
        self._network = network
        self._worker = worker
        self._waiting: list[_Part] = []
        self._serving: asyncio.Task[None] | None = None

    async def __call__(self, inputs: Arrays, *, deadline: float | None = None) -> Arrays:
        """The network's outputs for these rows.

        Raises:
            QueueFull, StageNotReady, StageTimeout: As the worker raised them.
        """
        with self._worker.admit() as admission:
            part = _Part(inputs, admission, deadline)
            self._waiting.append(part)
            if self._serving is None:
                self._serving = asyncio.create_task(self._serve())
            patience = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                async with asyncio.timeout(patience):
                    return await part.outputs
            except TimeoutError:
                raise self._worker.too_late() from None

    async def _serve(self) -> None:
        """Until nobody waits any more: gathers a batch, and calls."""
        try:
            while self._waiting:
                await asyncio.sleep(WINDOW_SECONDS)
                if batch := self._gather():
                    await self._answer(batch)
        finally:
            self._serving = None

    def _gather(self) -> list[_Part]:
        """As many requests as fit, in the order in which they came; those whose callers left are dropped."""
        self._waiting = [part for part in self._waiting if not part.outputs.done()]
        rows = 0
        batch: list[_Part] = []
        for part in self._waiting:
            if batch and rows + part.rows > self.capacity:
                break
            batch.append(part)
            rows += part.rows
        self._waiting = self._waiting[len(batch) :]
        return batch

    async def _answer(self, batch: list[_Part]) -> None:
        inputs = {name: np.concatenate([part.inputs[name] for part in batch]) for name in batch[0].inputs}
        deadlines = [part.deadline for part in batch]
        latest = None if None in deadlines else max(deadline for deadline in deadlines if deadline is not None)
        try:
            outputs = await self._worker.run(batch[0].admission, partial(self._network, inputs), deadline=latest)
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            for part in batch:
                if not part.outputs.done():
                    part.outputs.set_exception(error)
            return
        start = 0
        for part in batch:
            end = start + part.rows
            if not part.outputs.done():
                part.outputs.set_result({name: array[start:end] for name, array in outputs.items()})
            start = end
