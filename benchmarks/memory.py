"""Memory of a process at its peak, split as Linux splits it: what is its own, and what is pages of files."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_SECONDS_BETWEEN = 0.01


@dataclass(frozen=True, kw_only=True)
class Resident:
    """Resident memory in bytes: of the process's own, and of files mapped into it (which the system can drop)."""

    anonymous: int
    file: int

    @property
    def total(self) -> int:
        return self.anonymous + self.file


def resident_memory(pid: int | str = "self") -> Resident:
    """Of a process, now.

    Raises:
        OSError: There is no such process any more.
    """
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    anonymous, file, shared = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
    return Resident(anonymous=anonymous + shared, file=file)


class PeakMemory:
    """Watches a process while in a `with` block: best another process, whose Python code cannot keep this one from looking.

    Attributes:
        anonymous: The most that it had of its own at any look.
        file_then: The pages of files that it had at that look.
        file: The most pages of files.
        total: The most of both together.
    """

    def __init__(self, pid: int | str) -> None:
        self.anonymous = self.file_then = self.file = self.total = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN):
            self._look()

    def _look(self) -> None:
        try:
            now = resident_memory(self._pid)
        except (OSError, KeyError):  # it has ended; a process that is ending has no such fields
            return
        if now.anonymous > self.anonymous:
            self.anonymous, self.file_then = now.anonymous, now.file
        self.file = max(self.file, now.file)
        self.total = max(self.total, now.total)
