"""What the three stages share: how they start, what they say of themselves, and how they end."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from triptych.contract import (
    DecoderIdentity,
    DiffusionIdentity,
    ImageEncoderIdentity,
    Memory,
    StageName,
    TextEncoderIdentity,
)
from triptych.engines.cache import prune
from triptych.errors import StageNotReady
from triptych.stages.memory import Room
from triptych.stages.networks import NetworkLoader
from triptych.stages.options import StageOptions
from triptych.stages.worker import Worker

_log = logging.getLogger(__name__)

Identity = TypeVar("Identity", TextEncoderIdentity, DiffusionIdentity, DecoderIdentity, ImageEncoderIdentity)


class LocalStage(ABC, Generic[Identity]):
    """A stage whose network runs in this process. Constructing it loads nothing.

    Attributes:
        started_from_cache: Whether its networks came compiled from disk; None before it has started.
    """

    name: ClassVar[StageName]
    title: ClassVar[str | None] = None
    """What it is called in logs, where that is not its name."""

    def __init__(self, options: StageOptions) -> None:
        self.options = options
        self.started_from_cache: bool | None = None
        self._identity: Identity | None = None
        self._room: Room | None = None

    @abstractmethod
    def load(self, networks: NetworkLoader) -> Identity:
        """Loads what the stage needs, warm."""

    @abstractmethod
    def finish(self) -> None:
        """Waits for what runs; called once it takes nothing more, whether it has started or not."""

    def start(self, networks: NetworkLoader | None = None) -> None:
        """Loads and warms up; blocks, for seconds or minutes.

        Args:
            networks: Where its networks come from; by default a loader of its own.

        Raises:
            StartError: With a sentence that says what to do.
        """
        started = time.monotonic()
        networks = networks or NetworkLoader(self.options, self.name)
        self._identity = self.load(networks)
        self.started_from_cache = networks.all_from_cache
        if self.options.cache_bytes is not None:
            prune(self.options.cache_folder, self.options.cache_bytes)
        _log.info(
            "%s of %s: ready after %.1f s, %s, %s on %s",
            self.title or self.name,
            self._identity.model,
            time.monotonic() - started,
            "from compiled networks" if networks.all_from_cache else "networks compiled",
            networks.numerics.precision,
            networks.numerics.engine,
        )

    @property
    def memory(self) -> Memory | None:
        """What pictures cost here; None before it has started, and where that is not counted."""
        return None if self._room is None else self._room.memory

    @property
    def is_at_work(self) -> bool:
        """Whether it is closed and yet in the middle of a call that cannot be interrupted, for nobody."""
        return False

    def hand_back(self, *, all_at: float) -> None:
        """Ends what runs and somebody else can take over, at `all_at` of `time.monotonic()` the rest too; does not block."""

    def stop(self, *, hand_back_all_at: float) -> None:
        """Takes nothing more, and ends soon what runs; does not block. See `hand_back`."""
        self._identity = None
        self.hand_back(all_at=hand_back_all_at)

    def close(self) -> None:
        """Finishes what runs, and takes nothing more; blocks."""
        self._identity = None
        self.finish()

    async def identity(self) -> Identity:
        if self._identity is None:
            raise StageNotReady(f"the {self.name} stage is starting or stopping", stage=self.name)
        return self._identity


class CallingStage(LocalStage[Identity]):
    """A stage that answers each request with a call of its network: all but the diffusion stage, whose rows take many."""

    def __init__(self, options: StageOptions) -> None:
        super().__init__(options)
        self._worker = Worker(stage=self.name, queue_size=options.queue_size)

    @property
    def is_at_work(self) -> bool:
        return self._worker.is_at_work

    def hand_back(self, *, all_at: float) -> None:
        """Whoever is not answered in a while is refused, and asks elsewhere: a call leaves no state to go on from."""
        self._worker.stop()

    def finish(self) -> None:
        self._worker.close()
