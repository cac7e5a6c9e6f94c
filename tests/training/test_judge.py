"""The judge is right about what the world drew, and sees what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from training.judge import background_colour, judge, thing_colour, wilson
from training.world.draw import draw
from training.world.scenes import FIRST_LIGHT_SHAPES, Grammar, Scene, Thing, random_scene


def test_the_judge_is_right_about_drawn_pictures() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, Grammar.FIRST_LIGHT) for _ in range(300)]
    table = judge(np.stack([draw(scene, rng).image for scene in scenes]), scenes)
    assert table["background"]["share"] == 1.0
    assert float(str(table["thing_colour"]["share"])) > 0.95  # rings that stand off the middle


@pytest.mark.parametrize("shape", FIRST_LIGHT_SHAPES)
def test_the_judge_names_what_is_there_and_not_what_was_asked(shape: str) -> None:
    asked = Scene(things=(Thing(colour="red", shape=shape),), background="white")
    other = Scene(things=(Thing(colour="blue", shape=shape),), background="green")
    image = draw(other, np.random.default_rng(1)).image
    assert (thing_colour(image, shape), background_colour(image)) == ("blue", "green")
    table = judge(image[None], [asked])
    assert table["thing_colour"]["share"] == table["background"]["share"] == table["both"]["share"] == 0


def test_the_interval_is_wilsons() -> None:
    assert wilson(8, 10) == (0.49, 0.943)
    assert wilson(200, 200) == (0.981, 1.0)
