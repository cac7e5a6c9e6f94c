"""What measures the memory of the other tests here measures it."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.memory import PeakMemory, resident_memory

SIZE = 200_000_000


def test_a_peak_that_is_over_is_told() -> None:
    before = resident_memory()
    with PeakMemory("self") as peak:
        content = b"x" * SIZE
        wait_until(lambda: peak.anonymous >= before.anonymous + SIZE)
        del content
    assert SIZE <= peak.anonymous - before.anonymous < 1.2 * SIZE
    assert resident_memory().anonymous - before.anonymous < 0.2 * SIZE


def test_pages_of_a_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * SIZE)
    before = resident_memory()
    with PeakMemory("self") as peak, path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[place] == ord("x") for place in range(0, SIZE, mmap.PAGESIZE)) == -(-SIZE // mmap.PAGESIZE)
        wait_until(lambda: peak.file >= before.file + SIZE)
    assert SIZE <= peak.file - before.file < 1.2 * SIZE
    assert peak.anonymous - before.anonymous < 0.2 * SIZE


def wait_until(seen: Callable[[], bool]) -> None:
    """Or give up: what is asserted afterwards tells."""
    deadline = time.monotonic() + 5
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.01)
