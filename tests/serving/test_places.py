from __future__ import annotations

import pytest

from triptych.errors import QueueFull
from triptych.serving.places import Places, announced_bytes


def test_one_more_than_there_are_places_is_refused() -> None:
    places = Places(2, most_bytes=1)
    refused = pytest.raises(QueueFull, match="2 requests are here already; come back later")
    with places.take(), places.take(), refused, places.take():
        pytest.fail("took a third place")


def test_a_place_is_given_back_whatever_happens() -> None:
    places = Places(1, most_bytes=1)
    with pytest.raises(KeyError), places.take():
        raise KeyError
    with places.take():
        pass


def test_bodies_have_so_many_bytes_together() -> None:
    places = Places(9, most_bytes=100)
    refused = pytest.raises(QueueFull, match="requests of 100 bytes are here already, and with 1 more")
    with places.take(60), places.take(40), refused, places.take(1):
        pytest.fail("took a byte more")
    with places.take(60), places.take(40):
        pass


def test_one_alone_may_have_more() -> None:
    places = Places(9, most_bytes=100)
    with places.take(1000):
        pass


def test_any_number_may_come_where_bytes_alone_count() -> None:
    places = Places(None, most_bytes=100)
    refused = pytest.raises(QueueFull, match="requests of 100 bytes are here already")
    with places.take(), places.take(), places.take(100), refused, places.take(1):
        pytest.fail("took a byte more")


@pytest.mark.parametrize(
    ("headers", "size"),
    [({"Content-Length": "7"}, 7), ({"Content-Length": "2000"}, 1000), ({"Content-Length": "9" * 5000}, 1000), ({}, 1000)],
)
def test_a_body_has_what_its_headers_say_or_as_much_as_is_read(headers: dict[str, str], size: int) -> None:
    assert announced_bytes(headers, limit=1000) == size
