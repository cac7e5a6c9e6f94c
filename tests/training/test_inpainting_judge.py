"""Pictures to change and what the world draws in their masks: the judge's marks on them are right, and see what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.inpainting import MARGIN, Case, kept_out_cases, request_of, step_across, steps_of, summary, tables, triples
from training.judge import CELLS, Seen, by_cell, marks_within
from training.world.draw import SIDE
from training.world.scenes import SHAPES, Grammar, kept_out


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return kept_out_cases(60, Grammar.FULL, 6)


def seen_in_the_masks(cases: list[Case]) -> Seen:
    """What a perfect network says: the thing that was asked for, wherever the drawn truth differs from the picture before."""
    shapes = np.zeros((len(cases), CELLS, CELLS, 1 + len(SHAPES)), np.float32)
    for i, case in enumerate(cases):
        changed = np.abs(case.truth.astype(int) - case.before).max(axis=-1) > 24
        shapes[i, ..., 1 + SHAPES.index(case.thing.shape)] = by_cell(changed & (case.mask > 0))
    shapes[..., 0] = 1 - shapes.sum(axis=-1)
    return Seen(shapes=shapes, body=1 - shapes[..., 0], scenery=np.zeros(len(cases), int), features=np.zeros((len(cases), 1)))


def test_each_case_asks_for_another_thing_in_a_scene_that_was_kept_out(cases: list[Case]) -> None:
    assert all(kept_out(case.scene) and case.thing in case.scene.things for case in cases)
    assert {len(case.scene.things) for case in cases} == {1, 2}
    assert all(case.thing.shape in case.prompt for case in cases)
    again = kept_out_cases(60, Grammar.FULL, 6)
    assert all((a.truth == b.truth).all() and a.prompt == b.prompt for a, b in zip(cases, again, strict=True))


def test_the_truth_differs_from_the_picture_in_the_mask_alone_and_ends_before_its_border(cases: list[Case]) -> None:
    for case in cases:
        kept = case.mask == 0
        np.testing.assert_array_equal(case.truth[kept], case.before[kept])
        assert (case.truth[~kept] != case.before[~kept]).mean() > 0.1
        rows, columns = np.nonzero((case.truth != case.before).any(axis=-1))
        masked_rows, masked_columns = np.nonzero(case.mask)
        for changed, masked in ((rows, masked_rows), (columns, masked_columns)):
            assert changed.min() > masked.min() or masked.min() == 0
            assert changed.max() <= masked.max()
        assert MARGIN < (case.mask > 0).sum() ** 0.5 < SIDE


def test_the_judge_finds_what_was_drawn_and_nothing_else(cases: list[Case]) -> None:
    seen = seen_in_the_masks(cases)
    truths, befores = (np.stack([getattr(case, name) for case in cases]) for name in ("truth", "before"))
    windows = np.stack([by_cell(case.mask > 0) for case in cases])
    things = [case.thing for case in cases]
    drawn = tables(cases, marks_within(truths, seen, things, windows))["together"]
    assert drawn["thing"]["share"] == 1.0
    assert drawn["colour"]["share"] > 0.85  # the median of what changed, rims and all
    unchanged = tables(cases, marks_within(befores, seen, things, windows))["together"]
    assert unchanged["colour"]["share"] < 0.2
    others = [replace(thing, shape=SHAPES[SHAPES.index(thing.shape) - 1]) for thing in things]
    assert tables(cases, marks_within(truths, seen, others, windows))["together"]["thing_and_colour"]["right"] == 0


def test_a_thing_outside_the_window_is_not_found(cases: list[Case]) -> None:
    seen, images = seen_in_the_masks(cases), np.stack([case.truth for case in cases])
    nowhere = np.zeros((len(cases), CELLS, CELLS), np.float32)
    assert not any(any(marks.values()) for marks in marks_within(images, seen, [case.thing for case in cases], nowhere))


def test_the_step_is_that_of_the_pixels_on_both_sides_of_the_border() -> None:
    image, mask = np.full((SIDE, SIDE, 3), 100, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    mask[32:64, 40:80] = 255
    assert step_across(image, mask) == 0
    image[mask > 0] = (112, 100, 91)
    assert step_across(image, mask) == pytest.approx(7)
    image[40:50, 50:60] = 0  # within
    assert step_across(image, mask) == pytest.approx(7)


def test_steps_are_compared_picture_by_picture() -> None:
    told = steps_of(np.array([5.0, 9.0, 10.0]), np.array([1.0, 5.0, 9.0]))
    assert (told["painted"], told["drawn"], told["beyond_drawn"]) == (8.0, 5.0, 3.0)
    assert told["interval"] == pytest.approx((1.04, 4.96))


def test_tables_divide_the_scenes_by_their_things(cases: list[Case]) -> None:
    marks = [{"shape": len(case.scene.things) == 1, "colour": True} for case in cases]
    found = tables(cases, marks)
    assert found["one_thing"]["thing_and_colour"]["share"] == 1.0 and found["two_things"]["thing"]["share"] == 0.0
    assert found["together"]["thing"]["right"] == found["one_thing"]["thing"]["count"]
    assert found["together"]["colour"]["count"] == len(cases)


@pytest.mark.parametrize("sees_masks", [True, False])
def test_the_request_is_the_gateways(cases: list[Case], sees_masks: bool) -> None:
    settings = {"sampler": "ddim", "num_steps": 2, "guidance_scale": 2.0}
    request = request_of(cases[0], 3, settings, sees_masks=sees_masks)
    pictures = request.to_encode_images()
    assert pictures is not None and pictures.mask is not None
    np.testing.assert_array_equal(pictures.mask[0], cases[0].mask if sees_masks else 0)
    assert request.edit is not None and request.edit.strength == 1.0


def test_the_summary_and_the_sheet_tell_all(cases: list[Case]) -> None:
    groups = tables(cases, [{"shape": True, "colour": False}] * len(cases))
    told = {"command": "x", "machine": "y", "load_before": 0, "date": "z", "python": "3", "versions": {"numpy": "2"}}
    numbers = {"scenes": 60, "model": "m", "way": "nine channels", "seconds_a_picture": 0.5}
    step = steps_of(np.array([5.0, 9.0]), np.array([1.0, 5.0]))
    text = summary({**told, **numbers, "painted": groups, "drawn": groups, "colour_step": step})
    assert "| thing | 1.000 (0.94 to 1.00) |" in text and "| thing_and_colour | 0.000 (0.00 to 0.06) |" in text
    assert "7.0 of 255, drawn 3.0; beyond it 4.0" in text
    pictures = triples(cases, np.stack([case.truth for case in cases]))
    assert len(pictures) == 96
    assert (pictures[1][cases[0].mask > 0] == 128).all() and (pictures[2] == cases[0].truth).all()
