from __future__ import annotations

import pytest

from triptych.errors import QueueFull
from triptych.serving.places import Places


def test_one_more_than_there_are_places_is_refused() -> None:
    places = Places(2)
    refused = pytest.raises(QueueFull, match="2 requests are here already; come back later")
    with places.take(), places.take(), refused, places.take():
        pytest.fail("took a third place")


def test_a_place_is_given_back_whatever_happens() -> None:
    places = Places(1)
    with pytest.raises(KeyError), places.take():
        raise KeyError
    with places.take():
        pass
