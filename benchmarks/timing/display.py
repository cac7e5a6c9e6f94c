"""How far a run is: a bar on a terminal, elsewhere a line for each unit; on standard error."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from triptych.cli.console import err


class ProgressDisplay:
    """See the top.

    Args:
        total: Of the units that a run has at most.
        done: Of those that were measured before it was interrupted.
    """

    def __init__(self, total: int, done: int) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=done)
        self._began = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.stop()

    def begins(self, unit: str) -> None:
        self._began = time.monotonic()
        self._bar.update(self._task, description=escape(unit))

    def ended(self, unit: str, note: str) -> None:
        self._bar.advance(self._task)
        if note or not err.is_terminal:
            err.print(escape(f"{unit}: {time.monotonic() - self._began:.1f} s{f'; {note}' if note else ''}"))

    def log(self, name: str, line: str) -> None:
        err.print(f"[dim]{escape(name)}: {escape(line)}[/]")
