"""The journal of the timing benchmark, and what a session makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.timing import session as sessions
from benchmarks.timing.busy import Busy, Meter
from benchmarks.timing.folders import choose_folder, slug
from benchmarks.timing.journal import Journal
from benchmarks.timing.plan import quick
from benchmarks.timing.processes import Served
from benchmarks.timing.session import Session
from triptych.errors import StartError

HEADER: dict[str, Any] = {"machine": "A CPU (R), 2 cores, 24 GiB", "options": {"profile": "quick", "rounds": 3, "sizes": (1, 2)}}


class Silent:
    """A display that nobody watches."""

    def begins(self, unit: str) -> None:
        pass

    def ended(self, unit: str, note: str) -> None:
        pass

    def log(self, name: str, line: str) -> None:
        pass


def record(unit: str, share: float = 0.0, **measured: Any) -> dict[str, Any]:
    return {"unit": unit, "busy": {"others_share": share}, "is_flagged": share > 0.1, "measured": measured}


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal.jsonl"
    journal = Journal(path)
    journal.begin(HEADER)
    journal.add(record("a", wall=1.5))
    again = Journal(path)
    again.begin(HEADER)
    assert again.calmest("a")["measured"] == {"wall": 1.5}
    assert (again.attempts("a"), again.attempts("b")) == (1, 0)
    assert len(path.read_text().splitlines()) == 2


def test_a_line_that_was_being_written_is_as_if_it_had_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.begin(HEADER)
    journal.add(record("a"))
    with path.open("a") as file:
        file.write('{"unit": "b", "meas')
    again = Journal(path)
    again.add(record("c"))
    assert [each["unit"] for each in Journal(path).records] == ["a", "c"]


def test_other_options_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).begin(HEADER)
    with pytest.raises(StartError, match="another rounds"):
        Journal(path).begin({**HEADER, "options": {**HEADER["options"], "rounds": 4}})


def test_the_calmest_attempt_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.begin(HEADER)
    for share in (0.5, 0.2, 0.3):
        journal.add(record("a", share, told=share))
    assert journal.calmest("a")["measured"] == {"told": 0.2}


def test_an_unfinished_folder_of_the_same_options_is_gone_on_with(tmp_path: Path) -> None:
    first = choose_folder(None, HEADER, results=tmp_path)
    Journal(first / "journal.jsonl").begin(HEADER)
    assert first.name.endswith("-a-cpu-r-2-cores-quick")
    assert choose_folder(None, HEADER, results=tmp_path) == first
    other = {**HEADER, "options": {**HEADER["options"], "rounds": 4}}
    assert choose_folder(None, other, results=tmp_path) == first.with_name(f"{first.name}-2")
    (first / "results.json").write_text("{}")
    assert choose_folder(None, HEADER, results=tmp_path) == first.with_name(f"{first.name}-2")
    assert choose_folder(tmp_path / "wanted", HEADER, results=tmp_path) == tmp_path / "wanted"


def test_a_slug_is_a_name_for_folders() -> None:
    assert slug("AMD EPYC (Zen 4), 2 cores") == "amd-epyc-zen-4-2-cores"


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What others take, one measurement after the other."""
    told: list[float] = []

    class Told:
        def read(self) -> Busy:
            return Busy(seconds=1.0, own_cpu_seconds=0.0, others_cpu_seconds=0.0, others_share=told.pop(0))

    monkeypatch.setattr(sessions, "Meter", Told)
    return told


def make_session(folder: Path, repeat_busy: int) -> Session:
    from dataclasses import replace

    plan = replace(quick(2), repeat_busy=repeat_busy)
    journal = Journal(folder / "journal.jsonl")
    journal.begin({"options": {}})
    return Session(plan, journal, Silent(), served=Served(model="vignette", threads=2), model_folder=None)


def test_a_unit_is_measured_once_in_all_runs(tmp_path: Path, shares: list[float]) -> None:
    shares += [0.0, 0.0]
    measured = iter(({"n": 1}, {"n": 2}))
    for _ in range(2):
        told = make_session(tmp_path, 0).unit("a", "part", lambda: next(measured))
        assert told["measured"] == {"n": 1}


def test_a_busy_unit_is_flagged_and_repeated_where_that_is_wished(tmp_path: Path, shares: list[float]) -> None:
    shares += [0.5, 0.3, 0.05, 0.4]
    numbers = iter(range(9))
    session = make_session(tmp_path, 2)
    told = session.unit("a", "part", lambda: {"n": next(numbers)})
    assert (told["measured"], told["is_flagged"], session.journal.attempts("a")) == ({"n": 2}, False, 3)
    assert make_session(tmp_path / "once", 0).unit("b", "part", lambda: {"n": next(numbers)})["is_flagged"]


def test_a_busy_unit_is_not_repeated_for_ever(tmp_path: Path, shares: list[float]) -> None:
    shares += [0.9] * 9
    session = make_session(tmp_path, 2)
    session.unit("a", "part", dict)
    session.unit("a", "part", dict)
    assert session.journal.attempts("a") == 3


def test_a_meter_tells_own_work_from_others() -> None:
    """Of a second's work here, this process is told nearly all."""
    import time

    meter, began = Meter(), time.process_time()
    while time.process_time() - began < 0.3:
        sum(range(1000))
    busy = meter.read()
    assert 0.25 <= busy.own_cpu_seconds < 0.6
    assert 0 <= busy.others_share <= 1
    assert busy.others_share <= busy.others_cpu_seconds / busy.seconds
