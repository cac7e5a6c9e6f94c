from __future__ import annotations

import pytest

from tests.fuzz.codec import SEEDS, Message, check, read, try_messages
from triptych.errors import CallerError


@pytest.mark.parametrize("message", SEEDS, ids=lambda message: message.kind)
def test_what_is_changed_was_right(message: Message) -> None:
    read(message)


def test_messages_with_mistakes_are_read_or_refused() -> None:
    try_messages(600)


def test_another_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.codec.decode_response", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        try_messages(200)


def test_a_refusal_must_be_the_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(message: Message) -> int:
        raise CallerError("a\nb")

    monkeypatch.setattr("tests.fuzz.codec.read", refuse)
    with pytest.raises(AssertionError):
        check(SEEDS[0])
