from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from triptych.engines.memory import PassingMemory, bytes_left, resident_bytes

MEBIBYTE = 2**20
MEMINFO = "MemTotal:  8000000 kB\nMemFree:  1000 kB\nMemAvailable:    4096000 kB\n"


def test_what_is_written_to_is_resident() -> None:
    before = resident_bytes()
    array = np.ones(64 * MEBIBYTE, np.uint8)
    assert resident_bytes() - before > 48 * MEBIBYTE
    assert array[-1] == 1


def test_what_was_needed_only_meanwhile_is_measured() -> None:
    kept = []
    with PassingMemory() as passing:
        array = np.ones(96 * MEBIBYTE, np.uint8)
        wait_until_seen(passing, resident_bytes() - 8 * MEBIBYTE)
        kept.append(array[: 32 * MEBIBYTE].copy())
        del array
    assert 64 * MEBIBYTE - 24 * MEBIBYTE < passing.bytes < 160 * MEBIBYTE
    assert kept[0][0] == 1


def wait_until_seen(passing: PassingMemory, size: int) -> None:
    deadline = time.monotonic() + 20
    while passing.peak < size:
        assert time.monotonic() < deadline, "nobody looked"
        time.sleep(0.001)


def test_nothing_is_needed_for_nothing() -> None:
    with PassingMemory() as passing:
        pass
    assert passing.bytes < 16 * MEBIBYTE


class TestWhatIsLeft:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        self.write(tmp_path / "proc/meminfo", MEMINFO)
        return tmp_path

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def write_group(self, folder: Path, *, limit: int | str, in_use: int, inactive_file: int = 0) -> None:
        """Of version 2."""
        self.write(folder / "memory.max", f"{limit}\n")
        self.write(folder / "memory.current", f"{in_use}\n")
        self.write(folder / "memory.stat", f"anon 3\nfile 70000\ninactive_file {inactive_file}\nactive_file 60000\n")

    def test_is_what_the_machine_can_give(self, root) -> None:
        assert bytes_left(root) == 4096000 * 1024

    def test_is_less_where_a_cgroup_has_less(self, root) -> None:
        self.write(root / "proc/self/cgroup", "0::/system.slice/triptych.service\n")
        self.write_group(root / "sys/fs/cgroup/system.slice/triptych.service", limit="max", in_use=4000)
        self.write_group(root / "sys/fs/cgroup/system.slice", limit=9000, in_use=4300, inactive_file=200)
        assert bytes_left(root) == 4900

    def test_each_group_on_the_way_has_a_count_of_its_own(self, root) -> None:
        """The inner one has more room in its limit than its neighbours have left of the outer one's, or less."""
        self.write(root / "proc/self/cgroup", "0::/outer/inner\n")
        inner, outer = root / "sys/fs/cgroup/outer/inner", root / "sys/fs/cgroup/outer"
        self.write_group(inner, limit=5000, in_use=1000)
        self.write_group(outer, limit=8000, in_use=7500)
        assert bytes_left(root) == 500
        self.write_group(outer, limit=8000, in_use=3000)
        assert bytes_left(root) == 4000

    def test_a_group_that_counts_nothing_has_its_limit_left(self, root) -> None:
        self.write(root / "proc/self/cgroup", "0::/\n")
        self.write(root / "sys/fs/cgroup/memory.max", "5000\n")
        assert bytes_left(root) == 5000

    def test_a_container_sees_its_group_as_the_outermost(self, root) -> None:
        self.write(root / "proc/self/cgroup", "0::/../../somewhere/else\n")
        self.write_group(root / "sys/fs/cgroup", limit=6000, in_use=100)
        assert bytes_left(root) == 5900

    def test_the_first_version_of_cgroups_is_read_too(self, root) -> None:
        self.write(root / "proc/self/cgroup", "4:cpu,memory:/docker/1\n3:cpuset:/\n0::/\n")
        folder = root / "sys/fs/cgroup/memory"
        self.write(folder / "memory.limit_in_bytes", "7000\n")
        self.write(folder / "memory.usage_in_bytes", "400\n")
        self.write(folder / "memory.stat", "inactive_file 7\ntotal_cache 350\ntotal_inactive_file 300\n")
        assert bytes_left(root) == 6900

    def test_is_never_less_than_nothing(self, root) -> None:
        self.write(root / "proc/self/cgroup", "0::/\n")
        self.write_group(root / "sys/fs/cgroup", limit=50, in_use=60)
        assert bytes_left(root) == 0


def test_this_machine_has_something_left() -> None:
    assert bytes_left() > 0
