"""What a plan asks for, and in which order its units come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from benchmarks.timing import parts
from benchmarks.timing.plan import AGAIN, WARM_UP_STEPS, Plan, quick, real_size
from benchmarks.timing.scenarios import ALL_IN_ONE, THREE_ENDPOINTS
from benchmarks.timing.session import Session


class Units:
    """A session that measures nothing and keeps what it was asked for."""

    def __init__(self, plan: Plan, *, unavailable: str) -> None:
        self.plan, self.keys, self._unavailable = plan, list[str](), f"peer/{unavailable}"

    def unit(
        self, key: str, part: str, measure: Callable[[], Any], *, prepare: Callable[[], object] = lambda: None
    ) -> Mapping[str, Any]:
        if key not in self.keys:
            self.keys.append(key)
        return {"measured": {"unavailable": "it is not installed"} if key == self._unavailable else {}}


def test_peers_are_met_on_their_turn_and_only_in_the_first_rounds() -> None:
    plan = replace(real_size(2), scenarios=(ALL_IN_ONE, THREE_ENDPOINTS), peers=("keras-cv", "diffusers-float32"), rounds=3)
    units = Units(replace(plan, fewer_rounds=1), unavailable="keras-cv")
    parts.sequential(cast(Session, units))
    assert units.keys == [
        "sequential/all-in-one/0",
        f"sequential/all-in-one{AGAIN}/0",
        "sequential/three-endpoints/0",
        "peer/keras-cv",
        "peer/diffusers-float32",
        "sequential/diffusers-float32/0",
        "sequential/three-endpoints/1",
        "sequential/all-in-one/1",
        f"sequential/all-in-one{AGAIN}/1",
        "sequential/all-in-one/2",
        f"sequential/all-in-one{AGAIN}/2",
        "sequential/three-endpoints/2",
    ]


def test_no_more_rounds_of_anything_than_of_the_scenarios() -> None:
    assert replace(real_size(2), rounds=1).rounds_of_others == 1
    assert quick(2).rounds_of_others == quick(2).rounds


def test_what_comes_before_has_every_size_once_and_few_steps() -> None:
    """Also of a batch: the sequential part asks for four pictures at once, the open loop for one."""
    asked = [(picture.width, picture.num_images, picture.num_steps) for picture in quick(2).first_pictures("sequential")]
    assert asked == [(128, 4, WARM_UP_STEPS), (128, 1, WARM_UP_STEPS), (192, 1, WARM_UP_STEPS)]
    asked = [(picture.width, picture.num_images, picture.num_steps) for picture in real_size(2).first_pictures("open-loop")]
    assert asked == [(512, 1, WARM_UP_STEPS), (256, 1, WARM_UP_STEPS)]
    assert [(picture.width, picture.num_images) for picture in real_size(2).first_pictures("sequential")] == [(512, 1)]


def test_what_is_started_anew_is_ready_for_what_its_part_asks_for() -> None:
    assert real_size(2).sizes_of("sequential") == ((512, 512),)
    assert real_size(2).sizes_of("service-times") == real_size(2).sizes_of("open-loop") == ((512, 512), (256, 256))
    assert quick(2).sizes_of("sequential") == quick(2).sizes_of("open-loop") == ((128, 128), (192, 128))
