"""A request in the step batcher: its rows, and the one who waits for them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from triptych.contract import Denoised, DenoiseEvent, DenoiseState, Float32, Priority, Progress, StageName, State
from triptych.errors import StageFailed, StageNotReady, StageTimeout, TriptychError
from triptych.stages.evaluation import Row, Shape

UNREAD = 16
"""Events of a kind that wait for a reader who is behind. A newer one takes the place of the oldest."""

SURE = 0.8
"""A deadline is missed for sure where less is left than this share of the time needed: what was measured is no promise."""

_RANKS = {priority: rank for rank, priority in enumerate(Priority)}


class Denoising:
    """The rows of one request, and the one who waits for them.

    Made by the waiter, in its event loop. `events` and `leave` are the waiter's, the rest is the batcher's thread's.

    Args:
        rows: All of one plan, one shape and one cache_interval; each can be resumed where it is.
        state_key: What goes with every state, so that nobody resumes it under another plan.
        deadline: Of `time.monotonic()`; past it nobody waits.
        progress_every: Evaluations between two states, which come as soon as all rows have got so far and can be resumed from
            somewhere; None asks for none.
        previews: Whether states carry the predicted original.
        priority: A `Priority`.
        finish_here: Whether nobody else can finish it: see `DenoiseRequest`.

    Attributes:
        last_turn: The batcher's turn in which it last took part.
        is_hurried: Whether it misses its deadline unless it comes before its equals.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        state_key: str,
        deadline: float | None = None,
        progress_every: int | None = None,
        previews: bool = False,
        priority: str = Priority.NORMAL,
        finish_here: bool = False,
    ) -> None:
        self.rows = list(rows)
        self.state_key = state_key
        self.deadline = deadline
        self.progress_every = progress_every
        self.previews = previews
        self.rank = _RANKS[Priority(priority)]
        self.finish_here = finish_here
        self.last_turn = -1
        self.is_hurried = False
        self._evaluations_at_first = self.evaluations_left
        self._told = self.position
        self._resumable = list(rows)
        self._has_new_state = False
        self._state_told = self._resumable_at
        self._left = False
        self._unread: list[DenoiseEvent | TriptychError] = []
        self._told_something = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def shape(self) -> Shape:
        return self.rows[0].shape

    @property
    def company(self) -> tuple[Shape, int]:
        """Denoisings of equal company share all calls that they can: they fall into step."""
        return self.shape, self.rows[0].cache_interval

    @property
    def due(self) -> float:
        """Its deadline; infinite without one."""
        return math.inf if self.deadline is None else self.deadline

    @property
    def position(self) -> int:
        """Evaluations that are done for all rows."""
        return min(row.position for row in self.rows)

    @property
    def num_evaluations(self) -> int:
        return self.rows[0].plan.num_evaluations

    @property
    def evaluations_left(self) -> int:
        """Rows of the network that are still to be evaluated."""
        return sum(row.halves_left for row in self.rows)

    @property
    def whole_evaluations_left(self) -> int:
        """Those of them that take the whole network."""
        return sum(row.whole_halves_left for row in self.rows)

    @property
    def turns_left(self) -> int:
        """Turns of all of its rows that are still to come."""
        return self.num_evaluations - self.position

    @property
    def halves(self) -> int:
        """Rows of the network that a turn of all of its rows takes."""
        return sum(row.halves for row in self.rows if not row.is_finished)

    @property
    def has_advanced(self) -> bool:
        """Whether anything has been evaluated here."""
        return self.evaluations_left < self._evaluations_at_first

    @property
    def _resumable_at(self) -> int:
        """Evaluations that need not be made again by whoever goes on from the newest state."""
        return min(row.position for row in self._resumable)

    def precedes(self, other: Denoising) -> bool:
        """Whether it would come first if both were in a hurry."""
        return (-self.rank, self.due) < (-other.rank, other.due)

    @property
    def is_wanted(self) -> bool:
        """Whether there is something left to do, and somebody who waits for it."""
        return not self._left and self.evaluations_left > 0

    # The waiter's

    async def events(self) -> AsyncGenerator[DenoiseEvent, None]:
        """Progress, states where they were asked for, and Denoised, the last. Raises what went wrong.

        Whoever falls behind by more than UNREAD of progress, or of states, misses the oldest.
        """
        if self.position == self.num_evaluations:  # resumed at the very end
            yield self._result()
            return
        while True:
            event = await self._next()
            if isinstance(event, TriptychError):
                raise event
            yield event
            if isinstance(event, Denoised):
                return

    async def _next(self) -> DenoiseEvent | TriptychError:
        while not self._unread:
            self._told_something.clear()
            await self._told_something.wait()
        return self._unread.pop(0)

    def _hear(self, event: DenoiseEvent | TriptychError) -> None:
        same = [place for place, unread in enumerate(self._unread) if type(unread) is type(event)]
        if len(same) == UNREAD:
            del self._unread[same[0]]
        self._unread.append(event)
        self._told_something.set()

    def leave(self) -> None:
        """Nobody waits any more: the rows are let go before the next evaluation."""
        self._left = True

    # The batcher's

    def refuse_if_too_late(self, seconds: float) -> None:
        """Raises StageTimeout where the deadline has passed, or is too near for what is left to do.

        Args:
            seconds: That it takes at the least.
        """
        left = self.due - time.monotonic()
        if left <= 0:
            raise StageTimeout("the deadline passed in the middle of the denoising", stage=StageName.DIFFUSION)
        if left < SURE * seconds:
            raise StageTimeout(
                f"the denoising cannot be done before the deadline: that is {left:.1f} s away, "
                f"and the {self.turns_left} evaluations that are left take {seconds:.1f} s at the present load",
                stage=StageName.DIFFUSION,
            )

    def fail_if_too_late(self, seconds: float) -> None:
        try:
            self.refuse_if_too_late(seconds)
        except StageTimeout as error:
            self.fail(error)

    def hand_back(self) -> None:
        """Ends with the newest state, if there is one that the waiter cannot have, so that another replica may go on from it."""
        if self._has_new_state:
            self._tell(self._state())
        self.fail(stopping())

    def replace(self, index: int, row: Row) -> None:
        """A row, one evaluation further."""
        self.rows[index] = row
        if row.is_resumable:
            self._resumable[index] = row
            self._has_new_state = True

    def report(self) -> None:
        """Tells the waiter how far all rows are, if that is further than before."""
        position = self.position
        if position == self._told:
            return
        self._told = position
        if not all(np.isfinite(row.latents).all() for row in self.rows):
            self.fail(StageFailed("the diffusion stage computed NaN or infinity", stage=StageName.DIFFUSION))
            return
        self._tell(Progress(position=position, num_evaluations=self.num_evaluations))
        if position == self.num_evaluations:
            self._tell(self._result())
        elif self.progress_every and self._resumable_at // self.progress_every > self._state_told // self.progress_every:
            self._state_told = self._resumable_at
            self._tell(self._state())

    def fail(self, error: TriptychError) -> None:
        self._left = True
        self._tell(error)

    def _result(self) -> Denoised:
        return Denoised(latents=np.stack([row.latents for row in self.rows]))

    def _state(self) -> State:
        """The newest: of each row as it last could be resumed."""
        state = DenoiseState(
            latents=np.stack([row.latents for row in self._resumable]),
            sampler_state=np.stack([row.sampler_state for row in self._resumable]),
            position=np.array([row.position for row in self._resumable], np.int32),
            state_key=self.state_key,
        )
        return State(state=state, predicted_original=self._predicted_original() if self.previews else None)

    def _predicted_original(self) -> Float32:
        # A row that was resumed and has not been evaluated since stands for itself.
        return np.stack([row.latents if row.predicted_original is None else row.predicted_original for row in self._resumable])

    def _tell(self, event: DenoiseEvent | TriptychError) -> None:
        try:
            self._loop.call_soon_threadsafe(self._hear, event)
        except RuntimeError:  # the loop is closed: whoever waited is gone
            self._left = True


def stopping() -> StageNotReady:
    """What to raise where a request comes, or is at work, when the stage has been told to stop."""
    return StageNotReady("the diffusion stage is stopping", stage=StageName.DIFFUSION)
