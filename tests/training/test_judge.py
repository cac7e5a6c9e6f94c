"""The judge measures rightly where it finds things where they are, and sees what is wrong. What its network finds is measured
in `benchmarks/adherence.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.judge import CELLS, MARKS, SCENERIES, Seen, build_judge, by_cell, frechet_distance, look, marks_of, table, wilson
from training.world.draw import Drawing, draw
from training.world.scenes import COLOUR_NAMES, SCENES, SHAPES, SIZES, Scene, Thing, random_scene

ROOT = Path(__file__).resolve().parents[2]

ONE_STEP = """
import keras, numpy as np
keras.mixed_precision.set_global_policy("mixed_bfloat16")
from training.judge import JudgeBatches, JudgeTraining
from training.loop import Schedule, compile_for_training

network = JudgeTraining()
compile_for_training(network, Schedule(steps=10, rate=1e-3))
loss = float(network.train_on_batch(JudgeBatches(2)(0, np.random.default_rng(0)), np.zeros(2)))
assert 0 < loss < 20, loss
"""


def seen_by_a_perfect_network(drawings: list[Drawing], scenes: list[Scene]) -> Seen:
    shapes = np.zeros((len(scenes), CELLS, CELLS, 1 + len(SHAPES)), np.float32)
    for i, (drawing, scene) in enumerate(zip(drawings, scenes, strict=True)):
        for number, thing in enumerate(scene.things, 1):
            shapes[i, ..., 1 + SHAPES.index(thing.shape)] += by_cell(drawing.owner == number)
        shapes[i, ..., 0] = 1 - shapes[i].sum(axis=-1)
    return Seen(
        shapes=shapes,
        body=np.stack([by_cell(drawing.body) for drawing in drawings]),
        scenery=np.array([SCENERIES.index(scene.background) if scene.background in SCENES else 0 for scene in scenes]),
        features=np.zeros((len(scenes), 1), np.float32),
    )


def marks(drawn: list[Scene], asked: list[Scene]) -> list[dict[str, bool]]:
    rng = np.random.default_rng(7)
    drawings = [draw(scene, rng) for scene in drawn]
    return marks_of(np.stack([drawing.image for drawing in drawings]), seen_by_a_perfect_network(drawings, drawn), asked)


def test_what_was_drawn_as_asked_is_right() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(400)]
    shares = {name: row["share"] for name, row in table(marks(scenes, scenes)).items()}
    assert min(shares.values()) > 0.97, shares


RED_STAR = Thing(colour="red", shape="star", place="left")
OTHERWISE = {
    "colour": replace(RED_STAR, colour="blue"),
    "shape": replace(RED_STAR, shape="house"),
    "size": replace(RED_STAR, size="large"),
    "place": replace(RED_STAR, place="top"),
}


@pytest.mark.parametrize("attribute", OTHERWISE)
def test_what_was_drawn_otherwise_is_wrong_in_that_alone(attribute: str) -> None:
    drawn, asked = (Scene(things=(thing,), background="snow") for thing in (OTHERWISE[attribute], RED_STAR))
    (mark,) = marks([drawn], [asked])
    # The size is read off the area that the asked shape would have.
    assert {name for name, right in mark.items() if not right} - {"size"} == {attribute} - {"size"}
    assert not mark[attribute]


def test_backgrounds_are_told_apart() -> None:
    drawn = [Scene(things=(RED_STAR,), background=background) for background in ("green", "gray", "sea", "sunset")]
    asked = [Scene(things=(RED_STAR,), background=background) for background in ("blue", "snow", "blue", "desert")]
    assert [mark["background"] for mark in marks(drawn, asked)] == [False] * 4


def test_an_attribute_of_two_things_is_right_where_it_is_of_both() -> None:
    right = Thing(colour="green", shape="circle", place="right")
    drawn = Scene(things=(RED_STAR, right), background="white")
    swapped = Scene(things=(replace(RED_STAR, colour="green"), replace(right, colour="red")), background="white")
    half = Scene(things=(RED_STAR, replace(right, shape="square")), background="white")
    first, second, third = marks([drawn] * 3, [drawn, swapped, half])
    assert all(first.values())
    assert [name for name, good in second.items() if not good] == ["colour"]
    assert [name for name, good in third.items() if not good] == ["shape"]


def test_one_thing_is_not_two_and_nothing_is_nothing() -> None:
    two = Scene(things=(RED_STAR, replace(RED_STAR, place="right")), background="white")
    one = Scene(things=(RED_STAR,), background="white")
    assert not marks([two], [one])[0]["number"]
    empty = seen_by_a_perfect_network([draw(Scene(things=(), background="white"), np.random.default_rng(0))], [two])
    image = draw(Scene(things=(), background="white"), np.random.default_rng(0)).image
    nothing = replace(empty, shapes=np.eye(17, dtype=np.float32)[np.zeros((1, CELLS, CELLS), int)])
    assert not any(marks_of(image[None], nothing, [one])[0][name] for name in MARKS[1:])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_its_colour_and_size_at_every_size(shape: str, size: str) -> None:
    scenes = [Scene(things=(Thing(colour=colour, shape=shape, size=size),), background="meadow") for colour in COLOUR_NAMES]
    found = marks(scenes, scenes)
    assert sum(mark["colour"] for mark in found) >= 10
    assert sum(mark["size"] for mark in found) >= 10


def test_the_network_looks_at_any_number_of_pictures() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    seen = look(build_judge(), images, rows=2)
    assert seen.shapes.shape == (3, CELLS, CELLS, 17) and seen.body.shape == (3, CELLS, CELLS) and seen.features.shape == (3, 96)
    np.testing.assert_allclose(seen.shapes.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.timeout(300)
def test_it_learns_in_the_precision_that_processors_with_bfloat16_choose() -> None:
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_STEP], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_interval_is_wilsons() -> None:
    assert wilson(8, 10) == (0.49, 0.943)
    assert wilson(200, 200) == (0.981, 1.0)


def test_the_distance_of_normal_distributions_is_frechets() -> None:
    features = np.random.default_rng(0).standard_normal((5000, 3))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + np.array([3, 0, 4])) == pytest.approx(25, abs=1e-9)
    assert frechet_distance(features, 2 * features - features.mean(axis=0)) == pytest.approx(3, rel=0.05)
