from __future__ import annotations

import time

import pytest

from triptych.errors import MalformedRequest
from triptych.wire.deadlines import read_deadline, write_deadline
from triptych.wire.headers import TIMEOUT_HEADER


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)


def test_what_is_left_travels() -> None:
    headers = write_deadline(1002.5)
    assert headers == {TIMEOUT_HEADER: "2.500"}
    assert read_deadline(headers, longest_seconds=10) == 1002.5


def test_no_deadline_is_the_longest() -> None:
    assert write_deadline(None) == {}
    assert read_deadline({}, longest_seconds=10) == 1010


def test_a_deadline_that_has_passed_leaves_nothing() -> None:
    assert write_deadline(990) == {TIMEOUT_HEADER: "0.000"}


@pytest.mark.parametrize("text", ["3600", "inf"])
def test_nobody_gets_more_than_the_longest(text: str) -> None:
    assert read_deadline({TIMEOUT_HEADER: text}, longest_seconds=10) == 1010


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan"])
def test_what_is_no_number_of_seconds_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest, match="must be a number of seconds"):
        read_deadline({TIMEOUT_HEADER: text}, longest_seconds=10)
