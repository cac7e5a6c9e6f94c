"""Memory of this process and what is left of it, as Linux tells it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_SECONDS_BETWEEN = 0.002

_ROOT = Path("/")


def resident_bytes() -> int:
    """What this process has of the machine's memory, now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def bytes_left(root: Path = _ROOT) -> int:
    """What the machine can still give; less where a cgroup of this process has less left.

    Args:
        root: Of the file system; a test brings its own.
    """
    left = [_available_bytes(root), *(room for files, group in _cgroups(root) for room in files.left(group))]
    return max(0, min(left))


class PassingMemory:
    """Watches this process in a `with` block, from a thread of its own. What other threads do meanwhile is counted too.

    Attributes:
        bytes: The most that was resident in the block, beyond what was left of it at its end.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    @property
    def peak(self) -> int:
        """The most that was resident so far."""
        return self._peak

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(0, self._peak - resident_bytes())

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN):
            self._look()

    def _look(self) -> None:
        self._peak = max(self._peak, resident_bytes())


def _available_bytes(root: Path) -> int:
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


@dataclass(frozen=True)
class _GroupFiles:
    """What a version of cgroups calls a group's limit, what all of its processes have, and of that the pages of files that it
    drops before it runs short, in `memory.stat`."""

    limit: str
    in_use: str
    droppable: str

    def left(self, group: Path) -> Iterator[int]:
        """What the group may still have, by its own count; nothing where it has no limit."""
        for limit in filter(str.isdecimal, _lines(group / self.limit)):
            statistics = dict(line.split() for line in _lines(group / "memory.stat"))
            in_use = sum(map(int, _lines(group / self.in_use)))
            yield int(limit) - in_use + int(statistics.get(self.droppable, 0))


_FIRST = _GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_SECOND = _GroupFiles("memory.max", "memory.current", "inactive_file")


def _cgroups(root: Path) -> Iterator[tuple[_GroupFiles, Path]]:
    """Those of this process and those around them, each with how its version is read."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, files = root / "sys/fs/cgroup", _SECOND
        elif "memory" in controllers.split(","):
            folder, files = root / "sys/fs/cgroup/memory", _FIRST
        else:
            continue
        inner = Path(path.lstrip("/"))
        for group in (inner, *inner.parents):  # in a container the path may be the host's; its own group is the folder itself
            yield files, folder / group


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
