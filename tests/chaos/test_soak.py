"""The short form of `soak.py`: some seconds of everything at once. What grows shows in an hour only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.cluster import cluster
from tests.chaos.soak import MOST_BYTES, Look, judge, soak

MIB = 2**20


@pytest.mark.timeout(500)
def test_everything_at_once_for_some_seconds(tmp_path: Path) -> None:
    jobs = {"TRIPTYCH_JOBS_DATABASE": str(tmp_path / "jobs.sqlite3"), "TRIPTYCH_JOBS_STORE": str(tmp_path / "store")}
    with cluster(tmp_path, replicas=1, environment=jobs) as running:
        answers, looks = soak(running, seconds=10, callers=3, seed=0)
    assert answers.failures == []
    assert {"as a job", "cancelled", "given up", "refused", "with previews", "masked"} <= answers.done.keys()
    assert looks.keys() == {"text_encoder", "diffusion", "decoder", "central"}
    assert all(each.memory > MIB for all_ in looks.values() for each in all_)


def looks(memory: Callable[[int], int], *, files: int = 20, threads: int = 9) -> list[Look]:
    return [Look(memory=memory(number), files=files, threads=threads) for number in range(40)]


def test_what_stays_as_it_is_is_right() -> None:
    assert judge({"central": looks(lambda number: 100 * MIB + number % 7 * MIB)}) == []


def test_what_is_there_after_the_first_quarter_may_be() -> None:
    assert judge({"central": looks(lambda number: 300 * MIB if number >= 10 else MIB)}) == []


def test_what_grows_is_told() -> None:
    (sentence,) = judge({"central": looks(lambda number: 100 * MIB + number * MOST_BYTES // 10)})
    assert sentence == "central had 112 MiB and then 128"


def test_files_and_threads_that_are_left_open_are_told() -> None:
    grown = looks(lambda number: MIB)[:30] + looks(lambda number: MIB, files=40, threads=20)[:10]
    assert judge({"decoder": grown}) == ["decoder had 20 open files and then 40", "decoder had 9 threads and then 20"]
