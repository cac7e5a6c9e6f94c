"""Pictures show what the scene says: colours, places, sizes, boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from training.world.draw import SIDE, draw
from training.world.scenes import (
    CENTRES,
    COLOUR_NAMES,
    PLACES,
    SCENES,
    SHAPES,
    Scene,
    Thing,
    nearest_colour,
    random_scene,
)


def scene(
    colour: str = "red", shape: str = "circle", background: str = "white", size: str = "medium", place: str = "middle"
) -> Scene:
    return Scene(things=(Thing(colour=colour, shape=shape, size=size, place=place),), background=background)


def named(pixels: np.ndarray) -> str:
    return nearest_colour(np.median(pixels.reshape(-1, 3), axis=0))


@pytest.mark.parametrize("colour", COLOUR_NAMES)
def test_things_and_grounds_stay_nearest_to_their_colour(colour: str) -> None:
    rng = np.random.default_rng(3)
    for other in COLOUR_NAMES * 3:
        image = draw(scene(colour, background=other), rng).image
        assert named(image[56:72, 56:72]) == colour
        assert named(image[:10]) == other and named(image[-10:]) == other


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_fills_its_box_and_nothing_outside_it(shape: str) -> None:
    rng = np.random.default_rng(4)
    for _ in range(10):
        drawing = draw(scene("red", shape, "blue"), rng)
        left, top, right, bottom = drawing.boxes[0] * SIDE
        red = (drawing.image[..., 0] > 150) & (drawing.image[..., 2] < 120)
        rows, columns = np.nonzero(red)
        assert columns.min() >= left - 3 and columns.max() <= right + 3
        assert rows.min() >= top - 3 and rows.max() <= bottom + 3
        assert max(np.ptp(columns) / (right - left), np.ptp(rows) / (bottom - top)) > 0.7


@pytest.mark.parametrize("place", PLACES)
def test_a_thing_stands_where_the_prompt_says(place: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        (box,) = draw(scene(place=place), rng).boxes
        centre = (box[:2] + box[2:]) / 2
        assert np.abs(centre - CENTRES[place]).max() <= 0.06 + 1e-6


def test_sizes_do_not_overlap() -> None:
    rng = np.random.default_rng(6)
    widths = {
        size: [np.ptp(draw(scene(size=size), rng).boxes[0][::2]) for _ in range(50)] for size in ("small", "medium", "large")
    }
    assert max(widths["small"]) < min(widths["medium"]) and max(widths["medium"]) < min(widths["large"])


def test_two_things_do_not_touch() -> None:
    rng = np.random.default_rng(7)
    pairs = [s for s in (random_scene(rng) for _ in range(300)) if len(s.things) == 2]
    for pair in pairs:
        first, second = draw(pair, rng).boxes
        apart = max(second[0] - first[2], second[1] - first[3])
        assert apart > -0.08, pair  # boxes may share a sliver, round things in them do not


@pytest.mark.parametrize("colour", COLOUR_NAMES)
def test_a_thing_can_be_seen_on_its_own_colour(colour: str) -> None:
    image = draw(scene(colour, "circle", colour), np.random.default_rng(8)).image.astype(float)
    along = image[64].mean(axis=1)
    assert np.abs(np.diff(along)).max() > (6 if colour == "black" else 20)


@pytest.mark.parametrize("background", SCENES)
def test_scenes_differ_from_picture_to_picture_but_not_from_themselves(background: str) -> None:
    pictures = [draw(scene(background=background), np.random.default_rng(seed)).image for seed in (1, 1, 2)]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    assert pictures[0].shape == (SIDE, SIDE, 3) and pictures[0].dtype == np.uint8


def test_scenes_are_unlike_one_another() -> None:
    means = [mean_of(draw(scene(background=b), np.random.default_rng(9)).image) for b in SCENES]
    distances = [np.abs(np.subtract(a, b)).max() for i, a in enumerate(means) for b in means[:i]]
    assert min(distances) > 12


def mean_of(image: np.ndarray) -> Sequence[float]:
    """Mean colours of the upper and of the lower quarter, which things in the middle leave free."""
    return [*image[:32].mean(axis=(0, 1)), *image[-32:].mean(axis=(0, 1))]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_has_the_things_colour_is_known(shape: str) -> None:
    drawing = draw(scene("purple", shape, "white"), np.random.default_rng(10))
    owned = drawing.owner == 1
    assert drawing.body.any() and not (drawing.body & ~owned).any()
    assert named(drawing.image[drawing.body]) == "purple"
    purple = np.array([nearest_colour(pixel) == "purple" for pixel in drawing.image[drawing.body]])
    assert purple.mean() > 0.98
    left, top, right, bottom = (drawing.boxes[0] * SIDE).round().astype(int)
    inside = np.zeros_like(owned)
    inside[top - 2 : bottom + 2, left - 2 : right + 2] = True
    assert owned.sum() > 0.2 * inside.sum() and not (owned & ~inside).any()


def test_of_two_things_each_has_its_own_pixels() -> None:
    things = (Thing(colour="red", shape="circle", place="left"), Thing(colour="blue", shape="square", place="right"))
    owner = draw(Scene(things=things, background="white"), np.random.default_rng(11)).owner
    assert np.nonzero(owner == 1)[1].max() < 64 <= np.nonzero(owner == 2)[1].min()
