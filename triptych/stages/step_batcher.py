"""The step batcher: one thread that takes the rows of all running requests through their denoising together.

The unit of work is one evaluation of the network, not one request (for language models the idea is known as iteration-level
scheduling: Yu et al. 2022, "Orca", OSDI). At every turn the batcher takes in who has come, lets go whom nobody waits for, chooses
as many rows as fit in a call, evaluates them, and puts each one position on. The rows of a call may be at different positions of
different plans of different samplers: a row knows how to advance, the batcher only brings rows and network together. They are of
one shape, and all take the whole network or all the shallow one (`evaluation.Kind`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType

from triptych.checkpoints.checkpoint import UNetPart
from triptych.contract import StageName
from triptych.errors import QueueFull, StageFailed
from triptych.stages.denoising import Denoising, stopping
from triptych.stages.evaluation import Network, Row, Shape, evaluate
from triptych.stages.pace import Pace
from triptych.stages.worker import SECONDS_FOR_A_CALL

MOST_ROUNDS_WAITED = 4
"""Who has waited for so many turns times the number of requests comes first, whoever else is there."""

_SECONDS_PER_ROW_BEFORE_THE_FIRST_EVALUATION = 0.1
_SHORTEST_RETRY_SECONDS = 0.1

_log = logging.getLogger(__name__)


class StepBatcher:
    """Evaluates networks for the rows of all denoisings that have joined, until each is done or nobody waits for it.

    Args:
        networks: By the shapes of a row's latents and context.
        shallow: The same where features are reused: the shallow networks, beside whole ones that give features.
        capacity: Rows of the network in one call. A guided picture takes two of them.
        queue_size: Pictures that may be on their way at once; one more is refused.
        patience: Seconds that an evaluation may still take when its rows are to be handed back; then they are handed back as
            they were before it.
    """

    def __init__(
        self,
        networks: Mapping[Shape, Network],
        *,
        shallow: Mapping[Shape, Network] = MappingProxyType({}),
        capacity: int,
        queue_size: int,
        patience: float = SECONDS_FOR_A_CALL,
    ) -> None:
        self.capacity = capacity
        self.queue_size = queue_size
        self.turn = 0
        self._networks = networks
        self._shallow = shallow
        self._running: list[Denoising] = []
        self._joining: list[Denoising] = []
        self._changed = threading.Condition()
        self._closing = False
        self._evaluating = False
        self._hand_back_all_at: float | None = None
        self._patience = patience
        self._done = threading.Event()
        self._pace = Pace()
        self._thread = threading.Thread(target=self._work, name="step-batcher", daemon=True)
        self._thread.start()

    def join(self, denoising: Denoising) -> None:
        """Takes a denoising in, from the next turn on. It ends when it is done, when it fails, or when it is left.

        Raises:
            QueueFull: There are as many pictures on their way as there may be.
            StageTimeout: With those that come before it, it cannot be done before its deadline.
            StageNotReady: The stage is stopping.
        """
        with self._changed:
            if self._closing:
                raise stopping()
            present = self._present()
            self._refuse_if_full(present)
            if present:  # on an idle machine old measurements say nothing
                denoising.refuse_if_too_late(self._seconds_to_the_end(denoising, present))
            denoising.last_turn = self.turn - 1  # behind whoever has waited for longer than one turn
            self._joining.append(denoising)
            self._changed.notify()

    def stop(self, *, hand_back_all_at: float = math.inf) -> None:
        """Takes nothing new, and hands back what runs, after the evaluation that is at work or when patience ends; blocks not.

        Args:
            hand_back_all_at: Of `time.monotonic()`: until then those that ask to be finished here go on.
        """
        with self._changed:
            self._closing = True
            self._hand_back_all_at = hand_back_all_at
            self._changed.notify()
        now = time.monotonic()
        for wait in (0.0, hand_back_all_at - now):
            if wait + self._patience < threading.TIMEOUT_MAX:
                timer = threading.Timer(max(0.0, wait) + self._patience, self._leave_behind)
                timer.daemon = True
                timer.start()

    def close(self) -> None:
        """Finishes what runs and was not handed back, and takes nothing new; blocks."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._done.wait()

    @property
    def is_at_work(self) -> bool:
        """Whether it is closed and yet in the middle of an evaluation, for nobody: such a call cannot be interrupted."""
        return self._done.is_set() and self._evaluating

    def seconds_to_a_free_place(self) -> float:
        """When the first of those that are on their way should be done."""
        with self._changed:
            return self._seconds_to_a_free_place(self._present())

    @property
    def evaluations_left(self) -> int:
        """Rows of the network that are still to be evaluated, of all denoisings."""
        with self._changed:
            return sum(denoising.evaluations_left for denoising in self._present())

    def _present(self) -> list[Denoising]:
        return [denoising for denoising in (*self._running, *self._joining) if denoising.is_wanted]

    def _refuse_if_full(self, present: Sequence[Denoising]) -> None:
        if sum(len(denoising.rows) for denoising in present) >= self.queue_size:
            raise QueueFull(
                f"the diffusion stage has {self.queue_size} pictures on their way, which is all it takes; come back later",
                retry_after_seconds=self._seconds_to_a_free_place(present),
            )

    def _seconds_to_a_free_place(self, present: Sequence[Denoising]) -> float:
        """When the shortest of these will be done: until then all of them advance by as much, if they have as much left."""
        least = min((denoising.evaluations_left for denoising in present), default=0)
        seconds = sum(min(denoising.evaluations_left, least) * self._seconds_per_row(denoising) for denoising in present)
        return max(_SHORTEST_RETRY_SECONDS, seconds)

    def _seconds_to_the_end(self, denoising: Denoising, present: Sequence[Denoising]) -> float:
        """Of a newcomer that takes turns with those alone that precede it, in calls that all share who can."""
        mates = [denoising, *(other for other in present if other.company == denoising.company)]
        call = min(self.capacity, sum(other.halves for other in mates)) * self._seconds_per_row(denoising, default=0.0)
        round_ = self._seconds_of_a_round([denoising, *(other for other in present if other.precedes(denoising))])
        return denoising.turns_left * max(call, round_)

    def _seconds_of_a_round(self, denoisings: Sequence[Denoising]) -> float:
        """Until all rows of all of these are one evaluation further."""
        return sum(denoising.halves * self._seconds_per_row(denoising, default=0.0) for denoising in denoisings)

    def _seconds_per_row(self, denoising: Denoising, *, default: float = _SECONDS_PER_ROW_BEFORE_THE_FIRST_EVALUATION) -> float:
        """On the average of the evaluations that it has left, of which some may be shallow.

        Args:
            default: Where none of a kind has been measured.
        """
        whole, shallow = (self._pace.seconds_per_row((denoising.shape, part), default=default) for part in UNetPart)
        left, whole_left = denoising.evaluations_left, denoising.whole_evaluations_left
        return (whole_left * whole + (left - whole_left) * shallow) / max(1, left)

    # The thread

    def _work(self) -> None:
        try:
            while chosen := self._take_in():
                self._advance(chosen)
        finally:
            self._done.set()

    def _advance(self, chosen: Sequence[Place]) -> None:
        """Puts rows one position on, and tells those who wait."""
        owners = {id(place.denoising): place.denoising for place in chosen}.values()
        try:
            rows = self._evaluate(chosen)
        except Exception:  # noqa: BLE001  # whatever it is, those who wait are told and the others go on
            _log.exception("the network failed on %d rows", len(chosen))
            error = StageFailed("the diffusion network failed, and the log says why", stage=StageName.DIFFUSION)
            with self._changed:
                self._evaluating = False
                for denoising in owners:
                    denoising.fail(error)
            return
        with self._changed:
            self._evaluating = False
            for place, row in zip(chosen, rows, strict=True):
                place.denoising.replace(place.index, row)
            for denoising in owners:
                denoising.last_turn = self.turn
                denoising.report()

    def _take_in(self) -> list[Place]:
        """Waits until there is work, and chooses of it; nothing when there will be none any more."""
        with self._changed:
            while True:
                self._running = self._present()
                self._joining = []
                self._hand_back()
                self._heed_deadlines()
                self._running = self._present()
                if self._running:
                    self.turn += 1
                    self._evaluating = True
                    return choose_rows(self._running, self.capacity, turn=self.turn)
                if self._closing:
                    return []
                self._changed.wait()

    def _leave_behind(self) -> None:
        """Hands back what is to be handed back, though an evaluation is at it."""
        with self._changed:
            self._hand_back()
            if not self._present():
                self._done.set()

    def _hand_back(self) -> None:
        """Where the stage was told to stop: those that others can finish, and at last all."""
        if self._hand_back_all_at is None:
            return
        for denoising in self._present():
            if not denoising.finish_here or time.monotonic() >= self._hand_back_all_at:
                denoising.hand_back()

    def _heed_deadlines(self) -> None:
        """Fails whoever cannot make it even with a place in every call, and notes who would not with a fair share of them."""
        mates: Counter[object] = Counter()
        for denoising in self._running:
            mates[denoising.company] += denoising.halves
        round_, now = self._seconds_of_a_round(self._running), time.monotonic()
        for denoising in self._running:
            denoising.is_hurried = now + denoising.turns_left * round_ > denoising.due
            call = min(self.capacity, mates[denoising.company]) * self._seconds_per_row(denoising, default=0.0)
            # Before its first evaluation it is judged by the clock alone: what was measured may be long ago.
            denoising.fail_if_too_late(denoising.turns_left * call if denoising.has_advanced else 0.0)

    def _evaluate(self, chosen: Sequence[Place]) -> list[Row]:
        """One call of the network: each row, one position on."""
        started = time.monotonic()
        rows = [place.row for place in chosen]
        shape, part = rows[0].kind
        networks = self._shallow if part is UNetPart.SHALLOW else self._networks
        evaluated = evaluate(networks[shape], rows)
        self._pace.measure((shape, part), sum(row.halves for row in rows), time.monotonic() - started)
        return evaluated


@dataclass(frozen=True)
class Place:
    """Where a row lives: the how manieth of which denoising."""

    denoising: Denoising
    index: int

    @property
    def row(self) -> Row:
        return self.denoising.rows[self.index]


def choose_rows(denoisings: Sequence[Denoising], capacity: int, *, turn: int) -> list[Place]:
    """The rows for one call of the network: equals take turns row by row, and who has waited longest comes first.

    A short request among long ones takes part in every call that has room for all, else in every second or third: it is done
    after as many turns as it has evaluations, however long the others are. So do sizes take turns, and the whole network and the
    shallow one: a call has one kind, that of the request that comes first, of its row that is behind. Requests of one
    `cache_interval` fall into step: whoever is ahead meets the others where they have waited.

    Higher priorities come before lower ones; of equals those that are in a hurry, the earliest deadline first. Nothing starves:
    who has waited for `MOST_ROUNDS_WAITED` turns for each request that is there comes before all others. Where there are never
    more than n requests, each takes part at least once in `(MOST_ROUNDS_WAITED + 1) * n` turns.

    Args:
        denoisings: At least one, in the order in which they came; each has something left to do.
        capacity: Rows of the network. At least one picture is chosen, whatever it is.
        turn: The number of this turn.
    """

    def class_of(denoising: Denoising) -> tuple[int, int]:
        has_waited_enough = turn - denoising.last_turn >= MOST_ROUNDS_WAITED * len(denoisings)
        return (0, denoising.last_turn) if has_waited_enough else (1, -denoising.rank)

    def standing(denoising: Denoising) -> tuple[tuple[int, int], float, int, float]:
        hurry = denoising.due if denoising.is_hurried else math.inf
        return class_of(denoising), hurry, denoising.last_turn, denoising.due

    waiting = sorted(denoisings, key=standing)
    kind = _unfinished(waiting[0])[0].row.kind
    places = [
        (class_of(denoising), nth, place)
        for denoising in waiting
        if denoising.shape == waiting[0].shape
        for nth, place in enumerate(place for place in _unfinished(denoising) if place.row.kind == kind)
    ]
    chosen: list[Place] = []
    free = capacity
    for _, _, place in sorted(places, key=itemgetter(0, 1)):
        if not chosen or place.row.halves <= free:
            chosen.append(place)
            free -= place.row.halves
    return chosen


def _unfinished(denoising: Denoising) -> list[Place]:
    """The rows of one request that have something left to do, those first that are behind."""
    places = [Place(denoising, index) for index, row in enumerate(denoising.rows) if not row.is_finished]
    return sorted(places, key=lambda place: place.row.position)
