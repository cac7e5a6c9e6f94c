"""Captions name what is there, in many ways, with words that the grammar lists."""

from __future__ import annotations

import re

import numpy as np

from training.world.captions import all_words, caption, plain_caption
from training.world.scenes import BACKGROUNDS, Scene, Thing, random_scene

RNG_SEED = 11


def test_the_plain_caption_is_what_anybody_would_say() -> None:
    circle = Thing(colour="red", shape="circle", place="left")
    square = Thing(colour="blue", shape="square", place="right", size="large")
    assert plain_caption(Scene(things=(circle, square), background="green")) == (
        "a red circle left of a large blue square on a green background"
    )
    assert plain_caption(Scene(things=(Thing(colour="orange", shape="fish"),), background="sea")) == "an orange fish at sea"


def test_every_caption_names_every_thing_and_the_background() -> None:
    rng = np.random.default_rng(RNG_SEED)
    for scene in (random_scene(rng) for _ in range(2000)):
        words = set(re.findall("[a-z]+", caption(scene, rng).replace("grey", "gray")))
        assert all({thing.colour, thing.shape} <= words for thing in scene.things)
        assert words & set(scene.background.split()), scene


def test_sides_are_told_apart() -> None:
    rng = np.random.default_rng(RNG_SEED)
    left, right = Thing(colour="red", shape="star", place="left"), Thing(colour="blue", shape="moon", place="right")
    for _ in range(500):
        words = caption(Scene(things=(left, right), background="snow"), rng)
        star_first = words.index("star") < words.index("moon")
        if re.search(r"star (to the )?left of", words):
            assert star_first
        if re.search(r"(to the )?right of", words):
            assert not star_first


def test_one_scene_is_said_in_many_ways() -> None:
    rng = np.random.default_rng(RNG_SEED)
    scene = Scene(things=(Thing(colour="green", shape="tree", size="large", place="left"),), background="snow")
    assert len({caption(scene, rng) for _ in range(500)}) > 200


def test_the_grammar_lists_all_its_words() -> None:
    rng = np.random.default_rng(RNG_SEED)
    said = {word for _ in range(5000) for word in re.findall("[a-z]+", caption(random_scene(rng), rng))}
    assert said <= set(all_words())
    assert {word for name in BACKGROUNDS for word in name.split()} <= set(all_words())


def test_ordered_captions_tell_which_is_where() -> None:
    rng = np.random.default_rng(RNG_SEED)
    left, right = Thing(colour="red", shape="star", place="left"), Thing(colour="blue", shape="moon", place="right")
    pair = Scene(things=(left, right), background="snow")
    said = [caption(pair, rng, ordered=True) for _ in range(300)]
    assert all("left" in words or "right" in words for words in said)
    assert any("left" not in words and "right" not in words for words in (caption(pair, rng) for _ in range(300)))
