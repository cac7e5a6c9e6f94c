"""A control group with a limit of memory, of version 1 or 2: a machine of a given size within this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ControlGroup:
    folder: Path
    is_first_version: bool

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a command in the group: `sh` enters it and becomes the command."""
        return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"))

    @property
    def peak_bytes(self) -> int:
        """The most that was charged to the group, cached pages of files included; those are dropped where memory is short."""
        return int((self.folder / ("memory.max_usage_in_bytes" if self.is_first_version else "memory.peak")).read_text())


@contextmanager
def limited_memory(limit_bytes: int) -> Iterator[ControlGroup]:
    """A group that has so much memory and nothing to swap to; a test that may not make one is skipped."""
    is_first_version = (_ROOT / "memory").is_dir()
    folder = (_ROOT / "memory" if is_first_version else _ROOT) / f"triptych-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (folder / ("memory.limit_in_bytes" if is_first_version else "memory.max")).write_text(str(limit_bytes))
        yield ControlGroup(folder, is_first_version)
    finally:
        folder.rmdir()
