from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from triptych.serving.lifespan import run_stages, stopped_by_signals


class Stage:
    """A stage that waits for the test before it has started."""

    def __init__(self, journal: list[str], name: str) -> None:
        self.journal = journal
        self.name = name
        self.is_at_work = False
        self.may_start = threading.Event()

    def start(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.journal.append(f"{self.name} starts")
        assert self.may_start.wait(timeout=60)
        self.journal.append(f"{self.name} started")

    def stop(self, *, hand_back_all_at: float) -> None:
        self.journal.append(f"{self.name} stops")

    def close(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.journal.append(f"{self.name} closed")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.001)


async def test_stages_start_side_by_side_and_close_in_reverse(logged) -> None:
    journal: list[str] = []
    first, second = Stage(journal, "first"), Stage(journal, "second")
    async with run_stages(first, second):
        await until(lambda: len(journal) == 2)
        assert sorted(journal) == ["first starts", "second starts"], "the app goes on while they start"
        second.may_start.set()
        await until(lambda: "second started" in journal)
        assert logged == []
        first.may_start.set()
        await until(lambda: [entry["event"] for entry in logged] == ["ready"])
    assert journal[2:] == ["second started", "first started", "first closed", "second closed"]


async def test_only_what_was_started_is_closed() -> None:
    journal: list[str] = []
    first, second = Stage(journal, "first"), Stage(journal, "second")
    async with run_stages(first, second):
        await until(lambda: len(journal) == 2)
        threads = threading.active_count()
        first.may_start.set()
        await until(lambda: threading.active_count() < threads)  # that of the first is done
    second.may_start.set()
    assert journal[2:] == ["first started", "first closed"]


@pytest.fixture
def signalled() -> Iterator[list[int]]:
    """The signals that reached the handler which was there before."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


async def test_a_signal_stops_the_stages_and_goes_on_to_the_server(signalled: list[int]) -> None:
    journal: list[str] = []
    handler = signal.getsignal(signal.SIGTERM)
    async with stopped_by_signals(Stage(journal, "first"), Stage(journal, "second"), seconds=30):
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: len(journal) == 2)
    assert journal == ["first stops", "second stops"]
    assert signalled == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


async def test_a_signal_that_nobody_handles_is_left_alone() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        async with stopped_by_signals(Stage([], "first"), seconds=30):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
