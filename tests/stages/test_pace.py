from __future__ import annotations

from triptych.checkpoints.checkpoint import UNetPart
from triptych.stages.pace import MEASURED_CALLS, Pace

SMALL, LARGE = (((2, 2, 4), (3, 5)), UNetPart.WHOLE), (((4, 4, 4), (3, 5)), UNetPart.WHOLE)


def test_a_row_takes_its_share_of_a_call_and_shapes_are_apart() -> None:
    pace = Pace()
    assert pace.seconds_per_row(SMALL, default=7.0) == 7.0
    pace.measure(SMALL, 4, 2.0)
    pace.measure(LARGE, 1, 3.0)
    assert pace.seconds_per_row(SMALL, default=7.0) == 0.5
    assert pace.seconds_per_row(LARGE, default=7.0) == 3.0


def test_one_call_that_took_long_does_not_count() -> None:
    pace = Pace()
    for seconds in (1.0, 1.0, 600.0):
        pace.measure(SMALL, 1, seconds)
    assert pace.seconds_per_row(SMALL, default=7.0) == 1.0


def test_only_the_last_calls_count() -> None:
    pace = Pace()
    for seconds in [5.0] * 1000 + [1.0] * MEASURED_CALLS:
        pace.measure(SMALL, 1, seconds)
    assert pace.seconds_per_row(SMALL, default=7.0) == 1.0
