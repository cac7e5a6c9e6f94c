"""The step batcher: one thread that takes the rows of all running requests through their denoising together.

The unit of work is one evaluation of the network, not one request (for language models the idea is known as iteration-level
scheduling: Yu et al. 2022, "Orca", OSDI). At every turn the batcher takes in who has come, lets go whom nobody waits for, chooses
as many rows as fit in a call, evaluates them, and puts each one position on. The rows of a call may be at different positions of
different plans of different samplers: a row knows how to advance, the batcher only brings rows and network together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triptych.contract import StageName
from triptych.errors import QueueFull, StageFailed, StageNotReady
from triptych.stages.denoising import Denoising
from triptych.stages.evaluation import Network, evaluate

Shape = tuple[tuple[int, ...], tuple[int, ...]]

# How much the newest measurement counts against all earlier ones.
_WEIGHT_OF_THE_NEWEST = 0.1
_SECONDS_BEFORE_THE_FIRST_EVALUATION = 0.1
_SHORTEST_RETRY_SECONDS = 0.1

_log = logging.getLogger(__name__)


class StepBatcher:
    """Evaluates networks for the rows of all denoisings that have joined, until each is done or nobody waits for it.

    Args:
        networks: By the shapes of a row's latents and context.
        capacity: Rows of the network in one call. A guided picture takes two of them.
        queue_size: Pictures that may be on their way at once; one more is refused.
    """

    def __init__(self, networks: Mapping[Shape, Network], *, capacity: int, queue_size: int) -> None:
        self.capacity = capacity
        self.queue_size = queue_size
        self.turn = 0
        self._networks = networks
        self._running: list[Denoising] = []
        self._joining: list[Denoising] = []
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_row: float | None = None
        self._thread = threading.Thread(target=self._work, name="step-batcher", daemon=True)
        self._thread.start()

    def join(self, denoising: Denoising) -> None:
        """Takes a denoising in, from the next turn on. It ends when it is done, when it fails, or when it is left.

        Raises:
            QueueFull: There are as many pictures on their way as there may be.
            StageNotReady: The stage is stopping.
        """
        with self._changed:
            if self._closing:
                raise StageNotReady("the diffusion stage is stopping", stage=StageName.DIFFUSION)
            self._refuse_if_full()
            self._joining.append(denoising)
            self._changed.notify()

    def close(self) -> None:
        """Finishes what runs, and takes nothing new; blocks."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _refuse_if_full(self) -> None:
        present = self._present()
        if sum(len(denoising.rows) for denoising in present) >= self.queue_size:
            raise QueueFull(
                f"the diffusion stage has {self.queue_size} pictures on their way, which is all it takes; come back later",
                retry_after_seconds=self._seconds_to_a_free_place(present),
            )

    def _present(self) -> list[Denoising]:
        return [denoising for denoising in (*self._running, *self._joining) if denoising.is_wanted]

    def _seconds_to_a_free_place(self, present: Sequence[Denoising]) -> float:
        """When the shortest of these will be done: until then all of them advance by as much, if they have as much left."""
        lefts = [denoising.evaluations_left for denoising in present]
        rows = sum(min(left, min(lefts)) for left in lefts)
        return max(_SHORTEST_RETRY_SECONDS, rows * (self._seconds_per_row or _SECONDS_BEFORE_THE_FIRST_EVALUATION))

    # The thread

    def _work(self) -> None:
        while self._take_in():
            self.turn += 1
            chosen = choose_rows(self._running, self.capacity)
            owners = {id(place.denoising): place.denoising for place in chosen}.values()
            try:
                self._evaluate(chosen)
            except Exception:  # noqa: BLE001  # whatever it is, those who wait are told and the others go on
                _log.exception("the network failed on %d rows", len(chosen))
                error = StageFailed("the diffusion network failed, and the log says why", stage=StageName.DIFFUSION)
                for denoising in owners:
                    denoising.fail(error)
                continue
            for denoising in owners:
                denoising.last_turn = self.turn
                denoising.report()

    def _take_in(self) -> bool:
        """Waits until there is work; False when there will be none any more."""
        with self._changed:
            while True:
                self._running = self._present()
                self._joining = []
                for denoising in self._running:
                    denoising.fail_if_too_late()
                self._running = self._present()
                if self._running:
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _evaluate(self, chosen: Sequence[Place]) -> None:
        """One call of the network, and one position on for every row."""
        started = time.monotonic()
        rows = [place.denoising.rows[place.index] for place in chosen]
        for place, row in zip(chosen, evaluate(self._networks[rows[0].shape], rows), strict=True):
            place.denoising.replace(place.index, row)
        self._measure((time.monotonic() - started) / sum(row.halves for row in rows))

    def _measure(self, seconds: float) -> None:
        before = seconds if self._seconds_per_row is None else self._seconds_per_row
        self._seconds_per_row = before + _WEIGHT_OF_THE_NEWEST * (seconds - before)


@dataclass(frozen=True)
class Place:
    """Where a row lives: the how manieth of which denoising."""

    denoising: Denoising
    index: int


def choose_rows(denoisings: Sequence[Denoising], capacity: int) -> list[Place]:
    """The rows for one call of the network: requests take turns row by row, and who has waited longest comes first.

    A short request among long ones takes part in every call that has room for all, else in every second or third: it is done
    after as many turns as it has evaluations, however long the others are. So do sizes take turns: a call has one shape, that of
    the request that has waited longest.

    Args:
        denoisings: At least one, in the order in which they came; each has something left to do.
        capacity: Rows of the network. At least one picture is chosen, whatever it is.
    """
    waiting = sorted(denoisings, key=lambda denoising: denoising.last_turn)
    queues = deque(_unfinished(denoising) for denoising in waiting if denoising.shape == waiting[0].shape)
    chosen: list[Place] = []
    free = capacity
    while queues:
        queue = queues.popleft()
        halves = queue[0].denoising.rows[queue[0].index].halves
        if chosen and halves > free:
            continue
        chosen.append(queue.popleft())
        free -= halves
        if queue:
            queues.append(queue)
    return chosen


def _unfinished(denoising: Denoising) -> deque[Place]:
    """The rows of one request that have something left to do, those first that are behind."""
    places = (Place(denoising, index) for index, row in enumerate(denoising.rows) if not row.is_finished)
    return deque(sorted(places, key=lambda place: denoising.rows[place.index].position))
