"""What happened to the topology lately: in the log, and for `GET /models`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import structlog

KEPT_STEPS = 50

log = structlog.get_logger(__name__)


class StepKind(StrEnum):
    """What can happen to a model's stages while the gateway runs."""

    CHECKED = "checked"
    SWAPPED = "swapped"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    TAKEN_UP = "taken_up"
    NOT_TAKEN_UP = "not_taken_up"
    LET_GO = "let_go"


ALARMING = frozenset({StepKind.REFUSED, StepKind.NOT_TAKEN_UP})


@dataclass(frozen=True, kw_only=True)
class Step:
    """One of them.

    Attributes:
        time: When, in UTC.
        model: By the name that it had then; None where it is not about one.
        message: One sentence.
    """

    time: datetime
    kind: StepKind
    model: str | None
    message: str


class Steps:
    """The latest steps, the newest last; the log has them all."""

    def __init__(self) -> None:
        self._kept: deque[Step] = deque(maxlen=KEPT_STEPS)

    def __iter__(self) -> Iterator[Step]:
        return iter(tuple(self._kept))

    def note(self, kind: StepKind, message: str, *, model: str | None = None) -> None:
        self._kept.append(Step(time=datetime.now(UTC), kind=kind, model=model, message=message))
        tell = log.warning if kind in ALARMING else log.info
        tell(f"topology_{kind}", model=model, message=message)
