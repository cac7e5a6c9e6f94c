from __future__ import annotations

import pytest

from triptych.gateway.negotiation import choose_media_type

JSON, PNG, JPEG, WEBP, EVENTS = "application/json", "image/png", "image/jpeg", "image/webp", "text/event-stream"
OFFERED = (JSON, PNG, JPEG, WEBP, EVENTS)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("image/webp", WEBP),
        ("text/event-stream", EVENTS),
        ("text/*", EVENTS),
        # A weight decides first,
        ("image/png;q=0.5, image/jpeg", JPEG),
        ("application/json;q=0.1, image/*;q=0.2", PNG),
        ("image/png; q=0.2 , image/jpeg;q=0.3", JPEG),
        # then how precisely a type was named,
        ("image/png, */*", PNG),
        ("*/*, image/webp", WEBP),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", WEBP),
        # then the order in which the caller wrote them.
        ("text/event-stream, application/json", EVENTS),
        ("application/json, text/event-stream", JSON),
        # The most specific range gives a type its weight.
        ("image/*;q=0.9, image/png;q=0.1", JPEG),
        ("*/*, application/json;q=0", PNG),
        ("image/*, image/png;q=0", JPEG),
        # Parameters other than q say nothing about what we make.
        ("application/json; charset=utf-8", JSON),
        ("application/json; charset=utf-8; q=0.1, image/png", PNG),
        # None of ours.
        ("text/html", None),
        ("image/gif, video/*", None),
        ("application/json;q=0", None),
        ("*/*;q=0", None),
        # What cannot be understood says nothing.
        ("", None),
        ("png", None),
        ("image/", None),
        ("application/json;q=2", None),
        ("application/json;q=nan", None),
        ("application/json;q=much, image/png;q=0.1", PNG),
    ],
)
def test_the_caller_gets_what_it_likes_best(accept: str, chosen: str | None) -> None:
    assert choose_media_type(accept, OFFERED) == chosen


def test_among_equals_the_one_offered_first_is_taken() -> None:
    assert choose_media_type("image/*", (JPEG, PNG)) == JPEG
    assert choose_media_type("*/*", (PNG, JSON)) == PNG
