"""A request in the step batcher: its rows, and the one who waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from triptych.contract import Denoised, DenoiseEvent, DenoiseState, Float32, Progress, StageName, State
from triptych.errors import StageFailed, StageTimeout, TriptychError
from triptych.stages.evaluation import Row

UNREAD = 16
"""Events of a kind that wait for a reader who is behind. A newer one takes the place of the oldest."""


class Denoising:
    """The rows of one request, and the one who waits for them.

    Made by the waiter, in its event loop. `events` and `leave` are the waiter's, the rest is the batcher's thread's.

    Args:
        rows: All of one plan and one shape.
        state_key: What goes with every state, so that nobody resumes it under another plan.
        deadline: Of `time.monotonic()`; past it nobody waits.
        progress_every: Evaluations between two states; None asks for none.
        previews: Whether states carry the predicted original.

    Attributes:
        last_turn: The batcher's turn in which it last took part.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        state_key: str,
        deadline: float | None = None,
        progress_every: int | None = None,
        previews: bool = False,
    ) -> None:
        self.rows = list(rows)
        self.state_key = state_key
        self.deadline = deadline
        self.progress_every = progress_every
        self.previews = previews
        self.last_turn = -1
        self._told = self.position
        self._left = False
        self._unread: list[DenoiseEvent | TriptychError] = []
        self._told_something = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.rows[0].shape

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
        return sum((self.num_evaluations - row.position) * row.halves for row in self.rows)

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

    def fail_if_too_late(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.fail(StageTimeout("the deadline passed in the middle of the denoising", stage=StageName.DIFFUSION))

    def replace(self, index: int, row: Row) -> None:
        """A row, one evaluation further."""
        self.rows[index] = row

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
        elif self.progress_every and position % self.progress_every == 0:
            self._tell(self._state())

    def fail(self, error: TriptychError) -> None:
        self._left = True
        self._tell(error)

    def _result(self) -> Denoised:
        return Denoised(latents=np.stack([row.latents for row in self.rows]))

    def _state(self) -> State:
        state = DenoiseState(
            latents=np.stack([row.latents for row in self.rows]),
            sampler_state=np.stack([row.sampler_state for row in self.rows]),
            position=np.array([row.position for row in self.rows], np.int32),
            state_key=self.state_key,
        )
        return State(state=state, predicted_original=self._predicted_original() if self.previews else None)

    def _predicted_original(self) -> Float32:
        # A row that was resumed and has not been evaluated since stands for itself.
        return np.stack([row.latents if row.predicted_original is None else row.predicted_original for row in self.rows])

    def _tell(self, event: DenoiseEvent | TriptychError) -> None:
        try:
            self._loop.call_soon_threadsafe(self._hear, event)
        except RuntimeError:  # the loop is closed: whoever waited is gone
            self._left = True
