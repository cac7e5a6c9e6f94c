"""Masks are of three kinds, cover what they are about, and mean to the networks what the product makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from training.masks import GROWTH, KINDS, box_mask, kept_pixels, latent_mask, outline_mask, random_mask
from training.pictures import masked_scenes
from training.world.draw import SIDE, Drawing, draw
from training.world.scenes import Grammar, Scene, Thing, from_code, kept_out
from triptych.gateway import pictures
from triptych.stages import image_encoder

PAIR = Scene(
    things=(Thing(colour="red", shape="star", place="left"), Thing(colour="blue", shape="moon", place="right")),
    background="meadow",
)


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    return draw(PAIR, np.random.default_rng(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_paints_something_and_keeps_something(kind: str, drawing: Drawing) -> None:
    rng = np.random.default_rng(2)
    masks = np.stack([random_mask(kind, drawing, rng) for _ in range(200)])
    assert masks.shape == (200, SIDE, SIDE) and masks.dtype == np.uint8 and set(np.unique(masks)) == {0, 255}
    shares = (masks > 0).mean(axis=(1, 2))
    assert shares.min() > 0.005 and shares.max() < 0.75
    assert shares.std() > 0.02
    assert len({mask.tobytes() for mask in masks}) > (20 if kind == "thing" else 190)


def test_rectangles_are_rectangles_and_blobs_are_not(drawing: Drawing) -> None:
    rng = np.random.default_rng(3)

    def fills_its_box(mask: np.ndarray) -> bool:
        rows, columns = np.nonzero(mask)
        return bool(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all())

    assert all(fills_its_box(random_mask("rectangle", drawing, rng)) for _ in range(50))
    assert not any(fills_its_box(random_mask("blob", drawing, rng)) for _ in range(50))


@pytest.mark.parametrize("number", [1, 2])
def test_a_thing_is_covered_whole_and_the_other_left_alone(drawing: Drawing, number: int) -> None:
    thing, other = drawing.owner == number, drawing.owner == 3 - number
    outline, box = outline_mask(drawing, number, 4), box_mask(drawing, number, 4)
    assert outline[thing].all() and box[thing].all() and (box >= outline).all()
    assert not outline[other].any()
    assert thing.sum() < (outline > 0).sum() < (box > 0).sum() < 0.5 * SIDE * SIDE
    rows, columns = np.nonzero(thing)
    grown_rows, grown_columns = np.nonzero(box)
    assert (rows.min() - grown_rows.min(), grown_columns.max() - columns.max()) == (4, 4)


def test_a_random_thing_is_either_of_them_by_outline_or_by_box(drawing: Drawing) -> None:
    rng = np.random.default_rng(4)
    masks = [random_mask("thing", drawing, rng) for _ in range(60)]
    every = {
        make(drawing, number, growth).tobytes(): (make, number)
        for make in (outline_mask, box_mask)
        for number in (1, 2)
        for growth in range(GROWTH[0], GROWTH[1] + 1)
    }
    assert {every[mask.tobytes()] for mask in masks} == {(make, n) for make in (outline_mask, box_mask) for n in (1, 2)}


def test_masks_of_latents_and_masked_pictures_are_those_of_the_product(drawing: Drawing) -> None:
    rng = np.random.default_rng(5)
    masks = np.stack([random_mask(kind, drawing, rng) for kind in KINDS * 5])
    expected = np.stack([pictures.latent_mask(mask, 8) for mask in masks])
    np.testing.assert_array_equal(latent_mask(masks), expected)
    images = rng.integers(0, 256, (len(masks), SIDE, SIDE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(kept_pixels(images, masks), image_encoder._from_pixels(images, masks))


def test_scenes_come_with_masks_of_all_kinds_in_turn_and_none_is_kept_out() -> None:
    scenes = masked_scenes(Grammar.FULL, 31, (23, 0))
    assert {name: array.shape for name, array in scenes.items()} == {
        "images": (31, SIDE, SIDE, 3),
        "masks": (31, SIDE, SIDE),
        "codes": (31, 9),
        "boxes": (31, 2, 4),
    }
    assert not any(kept_out(from_code(code)) for code in scenes["codes"])
    for i in range(0, 31, 3):
        rows, columns = np.nonzero(scenes["masks"][i])
        assert scenes["masks"][i][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    again = masked_scenes(Grammar.FULL, 31, (23, 0))
    assert all(np.array_equal(again[name], scenes[name]) for name in scenes)
    assert not np.array_equal(masked_scenes(Grammar.FULL, 31, (23, 1))["masks"], scenes["masks"])
