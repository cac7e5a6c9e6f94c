"""The prompts of the benchmark are kept-out scenes in words that leave nothing open, and its tables count what they say."""

from __future__ import annotations

import pytest

from benchmarks.adherence import kept_out_prompts, summary, tables
from training.judge import MARKS
from training.world.scenes import Grammar, Scene, Thing, kept_out


def test_prompts_are_of_kept_out_scenes_and_leave_nothing_open() -> None:
    scenes, prompts = kept_out_prompts(100, Grammar.FULL, seed=4)
    assert [len(scene.things) for scene in scenes] == [1] * 60 + [2] * 40
    assert all(kept_out(scene) for scene in scenes)
    for scene, prompt in zip(scenes, prompts, strict=True):
        assert all(thing.shape in prompt for thing in scene.things)
    assert (scenes, prompts) == kept_out_prompts(100, Grammar.FULL, seed=4)
    assert prompts != kept_out_prompts(100, Grammar.FULL, seed=5)[1]


def test_first_light_is_asked_for_in_plain_words() -> None:
    scenes, prompts = kept_out_prompts(20, Grammar.FIRST_LIGHT, seed=4)
    first = scenes[0].things[0]
    assert prompts[0].split()[1:3] == [first.colour, first.shape] and "background" in prompts[0]


def test_the_tables_divide_the_prompts() -> None:
    seen = Scene(things=(Thing(colour="red", shape="heart"),), background="white")
    unseen = Scene(things=(Thing(colour="red", shape="ring"),), background="white")
    two = Scene(
        things=(Thing(colour="red", shape="ring", place="left"), Thing(colour="blue", shape="star", place="right")),
        background="sea",
    )
    good = dict.fromkeys(MARKS, True)
    marks = [good, {**good, "shape": False}, good, {**good, "colour": False, "size": False}]
    groups = tables([seen, seen, unseen, two], marks)
    assert groups["together"]["all"]["right"] == 2 and groups["together"]["all"]["count"] == 4
    assert (groups["one_thing"]["shape"]["right"], groups["one_thing"]["shape"]["count"]) == (2, 3)
    assert (groups["pairs_never_seen"]["all"]["right"], groups["pairs_never_seen"]["all"]["count"]) == (1, 1)
    assert groups["two_things"]["colour"] == {"share": 0.0, "right": 0, "count": 1, "interval": pytest.approx((0.0, 0.793))}


def test_the_summary_names_every_mark() -> None:
    scene = Scene(things=(Thing(colour="red", shape="heart"),), background="white")
    groups = tables([scene], [dict.fromkeys(MARKS, True)])
    told = {"command": "x", "machine": "y", "load_before": 0, "date": "z", "python": "3", "versions": {"numpy": "2"}}
    numbers = {"feature_distance": {"ratio": 1.0}, "reconstruction": {"psnr": 30.0}, "seconds_a_picture": 0.5}
    text = summary({**told, **numbers, "generated": groups, "drawn": groups, "prompts": 1})
    assert all(f"| {name} | 1.000 (0.21 to 1.00) |" in text for name in (*MARKS, "all"))
    assert "0.5 s a picture" in text
