"""Memory as it is counted before pictures are let in: what they will hold, against what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from triptych.contract import MOST_PICTURES, Memory
from triptych.engines.memory import bytes_left
from triptych.errors import QueueFull, StartError, TooLarge

Size = tuple[int, int]

SHARE_OF_WHAT_IS_LEFT = 4
"""A stage takes a quarter: the three of one machine, and the image encoder beside them, can fill what they have at once."""


def plan_memory(stage: str, picture_bytes: Mapping[Size, int], *, call_bytes: int, budget: int | None) -> Memory:
    """What a stage that has just warmed up may take for pictures.

    Args:
        stage: Whom the error names.
        picture_bytes, call_bytes: See `Memory`. The first size is the stage's default.
        budget: For pictures and a call together; None is a share of what the machine, or the cgroup, has left, with room for
            whatever a gateway's request may ask for in any case: who set no budget refuses none for good.

    Raises:
        StartError: The budget has no room for one.
    """
    first, one = next(iter(picture_bytes.items()))
    if budget is None:
        most = max(MOST_PICTURES * max(picture_bytes.values()), bytes_left() // SHARE_OF_WHAT_IS_LEFT - call_bytes)
    elif budget >= call_bytes + one:
        most = budget - call_bytes
    else:
        raise StartError(
            f"TRIPTYCH_MEMORY_BYTES: one picture of {first[0]}x{first[1]} takes {call_bytes + one} bytes at the {stage} stage, "
            f"{call_bytes} of them for the network; {budget} are too few"
        )
    return Memory(most_bytes=most, picture_bytes=dict(picture_bytes), call_bytes=call_bytes)


class Room:
    """The memory that a stage has for pictures. For one event loop.

    Args:
        stage: Whom errors name.
        memory: How much there is, and what a picture takes.
    """

    def __init__(self, stage: str, memory: Memory) -> None:
        self.memory = memory
        self.held_bytes = 0
        self._stage = stage

    @contextmanager
    def take(self, pictures: int, size: Size, *, retry_after: Callable[[], float]) -> Iterator[None]:
        """Room for so many pictures of a size, for the length of the block.

        Args:
            retry_after: When the next of those that are here should be done, in seconds.

        Raises:
            TooLarge: There would not be as much if nothing else were here.
            QueueFull: There is not as much at the moment.
        """
        needed, most = pictures * self.memory.picture_bytes[size], self.memory.most_bytes
        these = f"{pictures} {'picture' if pictures == 1 else 'pictures'} of {size[0]}x{size[1]}"
        if needed > most:
            raise TooLarge(
                f"{these} would take {needed} bytes of memory at the {self._stage} stage, which has {most} for all; "
                "ask for fewer or smaller ones"
            )
        if self.held_bytes + needed > most:
            raise QueueFull(
                f"the memory of the {self._stage} stage is taken: {self.held_bytes} of {most} bytes are, and {these} would take "
                f"{needed}; come back later",
                retry_after_seconds=retry_after(),
            )
        self.held_bytes += needed
        try:
            yield
        finally:
            self.held_bytes -= needed
