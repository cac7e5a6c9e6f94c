"""What a picture shows, by someone who never saw a generated one.

A small network, taught on drawn pictures alone, finds the things: for each cell of 4x4 pixels which shape it belongs to, if any,
and whether it has the colour that the thing is called by; and for the whole picture what scenery it is. Colour, size and place
are then plain measurements on those pixels. The same marks on drawn pictures are the judge's own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from scipy import ndimage

from training.ahead import drawing_workers
from training.cache import cache_folder, report
from training.loop import Schedule, train, use_averages
from training.pictures import Batch
from training.world.draw import SIDE, draw
from training.world.scenes import (
    CENTRES,
    LARGE_OF_TWO,
    PLACES,
    RADII,
    SCENES,
    SHAPES,
    Scene,
    Thing,
    nearest_colour,
    random_scene,
)
from training.world.shapes import PARTS

CELLS = 32
CELL = SIDE // CELLS
SCENERIES = ("plain", *SCENES)
BORDER = 12
WEIGHTS = "judge.weights.h5"
MARKS = ("background", "colour", "place", "size", "shape", "number")
NOISE = 0.08  # the strongest that the network is taught to look through, in [-1, 1]
SMALLEST = 6  # cells of a thing


def build_judge() -> keras.Model:
    """Pictures (B, 128, 128, 3) in [-1, 1] to `cells` (B, 32, 32, 18), `scenery` (B, 7), all logits, and `features` (B, 96).

    Of the 18, the first is the ground, 16 are shapes, and the last says "in the thing's colour".
    """

    def conv(x: Any, filters: int, size: int = 3, strides: int = 1) -> Any:
        options = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
        return layers.Conv2D(filters, size, strides=strides, **options)(x)

    images = keras.Input((SIDE, SIDE, 3), name="images")
    full = conv(layers.AveragePooling2D(2)(images), 16)
    half = conv(conv(full, 32, strides=2), 32)
    quarter = conv(conv(half, 64, strides=2), 64)
    eighth = conv(conv(quarter, 96, strides=2), 96)
    features = layers.Dense(96, activation="relu")(layers.GlobalAveragePooling2D()(eighth))
    wide = layers.Reshape((1, 1, 96))(features) + conv(eighth, 96, 1)
    up = conv(conv(layers.Concatenate()([_twice(wide), quarter]), 48, 1), 48)
    up = conv(conv(layers.Concatenate()([_twice(up), half]), 32, 1), 32)
    cells = layers.Conv2D(2 + len(SHAPES), 1, dtype="float32")(up)
    scenery = layers.Dense(len(SCENERIES), dtype="float32")(features)
    return keras.Model(images, {"cells": cells, "scenery": scenery, "features": features}, name="judge")


def _twice(x: Any) -> Any:
    return ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)


class JudgeTraining(keras.Model):
    """The judge, and the loss of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = build_judge()

    def call(self, batch: Any) -> Any:
        seen = self.judge(batch["images"])
        shapes, body = seen["cells"][..., :-1], seen["cells"][..., -1]
        loss = ops.mean(ops.sparse_categorical_crossentropy(batch["shapes"], shapes, from_logits=True), axis=(1, 2))
        loss = loss + ops.mean(ops.softplus(body) - ops.cast(batch["body"], "float32") * body, axis=(1, 2))
        return loss + 0.2 * ops.sparse_categorical_crossentropy(batch["scenery"], seen["scenery"], from_logits=True)


class JudgeBatches:
    """Drawn pictures of the whole grammar with a little noise, and what is where in them."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, step: int, rng: np.random.Generator) -> Batch:
        images = np.empty((self.rows, SIDE, SIDE, 3), np.float32)
        shapes = np.zeros((self.rows, CELLS, CELLS), np.int32)
        body = np.zeros((self.rows, CELLS, CELLS), np.float32)
        scenery = np.zeros(self.rows, np.int32)
        for i in range(self.rows):
            scene = random_scene(rng)
            drawing = draw(scene, rng)
            noise = rng.standard_normal(drawing.image.shape, dtype=np.float32) * np.float32(rng.uniform(0, NOISE))
            images[i] = drawing.image.astype(np.float32) / 127.5 - 1 + noise
            for number, thing in enumerate(scene.things, 1):
                shapes[i][by_cell(drawing.owner == number) > 0.5] = 1 + SHAPES.index(thing.shape)
            body[i] = by_cell(drawing.body)
            scenery[i] = SCENERIES.index(scene.background) if scene.background in SCENES else 0
        return {"images": images, "shapes": shapes, "body": body, "scenery": scenery}


def by_cell(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(CELLS, CELL, CELLS, CELL).mean(axis=(1, 3), dtype=np.float32)


def train_judge(*, steps: int = 2_000, rows: int = 16, rate: float = 2e-3, minutes: float | None = None) -> None:
    """Trains the judge on drawn pictures and reports its own error."""
    network = JudgeTraining()
    schedule = Schedule(steps=steps, rate=rate, minutes=minutes, decay=0.4, ema=0.99, weight_decay=1e-4, seed=51, report_every=50)
    train(network, JudgeBatches(rows), schedule, "judge", workers=drawing_workers())
    use_averages(network)
    network.judge.save_weights(cache_folder("judge") / WEIGHTS)
    rng = np.random.default_rng(5151)
    scenes = [random_scene(rng) for _ in range(500)]
    images = np.stack([draw(scene, rng).image for scene in scenes])
    seen = look(load_judge(), images)
    report("judge", **{name: row["share"] for name, row in table(marks_of(images, seen, scenes)).items()})


def load_judge() -> keras.Model:
    """The judge that `train_judge` taught."""
    judge = build_judge()
    judge.load_weights(cache_folder("judge") / WEIGHTS)
    return judge


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the network makes of pictures.

    Attributes:
        shapes: Shares of each cell, the ground first, float32 (n, 32, 32, 17).
        body: How surely a cell is in the thing's colour, float32 (n, 32, 32).
        scenery: Index into SCENERIES, (n,).
        features: Penultimate layer, float32 (n, 96).
    """

    shapes: np.ndarray
    body: np.ndarray
    scenery: np.ndarray
    features: np.ndarray


def look(judge: keras.Model, images: np.ndarray, *, rows: int = 50) -> Seen:
    """Runs the network over pictures, uint8 (n, 128, 128, 3)."""
    parts: list[dict[str, Any]] = []
    for start in range(0, len(images), rows):
        part = judge.predict_on_batch(images[start : start + rows].astype(np.float32) / 127.5 - 1)
        parts.append({name: np.asarray(value, np.float32) for name, value in part.items()})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    logits = whole["cells"][..., :-1]
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return Seen(
        shapes=shares / shares.sum(axis=-1, keepdims=True),
        body=1 / (1 + np.exp(-whole["cells"][..., -1])),
        scenery=whole["scenery"].argmax(axis=-1),
        features=whole["features"],
    )


def marks_of(images: np.ndarray, seen: Seen, scenes: Sequence[Scene]) -> list[dict[str, bool]]:
    """Whether each picture shows what was asked for, by attribute; of two things, an attribute is right where it is of both."""
    return [
        _marks(image, seen.shapes[i], seen.body[i], SCENERIES[seen.scenery[i]], scene)
        for i, (image, scene) in enumerate(zip(images, scenes, strict=True))
    ]


def marks_within(images: np.ndarray, seen: Seen, things: Sequence[Thing], windows: np.ndarray) -> list[dict[str, bool]]:
    """Whether each picture shows a thing as it was asked for in a part of it; without `background`.

    Args:
        things: One a picture.
        windows: Of cells, 1 where the thing is looked for, float32 (n, 32, 32).
    """
    return [
        _marks_of_thing(image, seen.shapes[i] * windows[i, ..., None], seen.body[i], thing)
        for i, (image, thing) in enumerate(zip(images, things, strict=True))
    ]


def _marks(image: np.ndarray, shapes: np.ndarray, body: np.ndarray, scenery: str, scene: Scene) -> dict[str, bool]:
    of_things = [
        _marks_of_thing(image, shapes * window[..., None], body, thing)
        for thing, window in zip(scene.things, _windows(scene), strict=True)
    ]
    marks = {name: all(marks[name] for marks in of_things) for name in MARKS[1:]}
    return {"background": _background(image, shapes, scenery) == scene.background, **marks}


def _windows(scene: Scene) -> list[np.ndarray]:
    """The cells in which each thing is looked for: everywhere, or one half of the picture for each of two."""
    if len(scene.things) == 1:
        return [np.ones((CELLS, CELLS), np.float32)]
    first = np.zeros((CELLS, CELLS), np.float32)
    if scene.things[0].place == "left":
        first[:, : CELLS // 2] = 1
    else:
        first[: CELLS // 2] = 1
    return [first, 1 - first]


def _marks_of_thing(image: np.ndarray, shapes: np.ndarray, body: np.ndarray, thing: Thing) -> dict[str, bool]:
    labels, _ = ndimage.label(shapes[..., 1:].sum(axis=-1) > 0.5, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    if not len(areas) or areas.max() < SMALLEST:
        return dict.fromkeys(MARKS[1:], False)
    found = labels == 1 + areas.argmax()
    others = np.sort(areas)[:-1]
    rows, columns = np.nonzero(found)
    centre = ((columns.min() + columns.max() + 1) / 2 / CELLS, (rows.min() + rows.max() + 1) / 2 / CELLS)
    radius = float(np.sqrt(shapes[..., 1:].sum(axis=-1)[found].sum() / _area(thing.shape)) / CELLS)
    return {
        "colour": _colour(image, body * found) == thing.colour,
        "place": _nearest_place(centre) == thing.place,
        "size": _nearest_size(radius) == thing.size,
        "shape": SHAPES[int(shapes[found][:, 1:].sum(axis=0).argmax())] == thing.shape,
        "number": not len(others) or others[-1] < max(SMALLEST, 0.25 * areas.max()),
    }


def _colour(image: np.ndarray, body: np.ndarray) -> str:
    """The median of the pixels that are most surely in the thing's colour."""
    sure = ndimage.zoom(body, CELL, order=1, grid_mode=True, mode="nearest")
    return nearest_colour(np.median(image[sure >= min(0.8, 0.8 * float(sure.max()))], axis=0))


def _background(image: np.ndarray, shapes: np.ndarray, scenery: str) -> str:
    """The scene, or the median colour of the border where no thing is near."""
    if scenery != "plain":
        return scenery
    away = ~ndimage.binary_dilation(shapes[..., 0] < 0.5, iterations=2)
    border = np.ones((SIDE, SIDE), bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    chosen = border & np.kron(away, np.ones((CELL, CELL), bool))
    return nearest_colour(np.median(image[chosen if chosen.any() else border], axis=0))


def _nearest_place(centre: tuple[float, float]) -> str:
    places = {place: float(np.hypot(centre[0] - x, centre[1] - y)) for place, (x, y) in CENTRES.items()}
    return min(PLACES, key=places.__getitem__)


def _nearest_size(radius: float) -> str:
    """By what lies halfway between a size's largest and the next one's smallest."""
    if radius < (RADII["small"][1] + RADII["medium"][0]) / 2:
        return "small"
    return "medium" if radius < (RADII["medium"][1] + LARGE_OF_TWO[0]) / 2 else "large"


@cache
def _area(shape: str) -> float:
    """Of a thing of radius 1."""
    axis = (np.arange(256, dtype=np.float32) + 0.5) / 128 - 1
    parts = PARTS[shape](axis[None, :] * 1.06 + 0 * axis[:, None], axis[:, None] * 1.06 + 0 * axis[None, :])
    return float(np.any([part.distance < 0 for part in parts], axis=0).mean()) * (2 * 1.06) ** 2


def table(marks: Sequence[dict[str, bool]]) -> dict[str, dict[str, Any]]:
    """Shares with their intervals, by attribute and of pictures that are right in all of them."""
    rows = {name: [mark[name] for mark in marks] for name in MARKS} | {"all": [all(mark.values()) for mark in marks]}
    return {name: share(row) for name, row in rows.items()}


def share(row: Sequence[bool]) -> dict[str, Any]:
    """How many are right, of how many, and the 95 % interval."""
    if not len(row):
        return {"share": None, "right": 0, "count": 0}
    right = int(sum(row))
    return {"share": round(right / len(row), 3), "right": right, "count": len(row), "interval": wilson(right, len(row))}


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, part = 1.96, right / count
    middle = (part + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(part * (1 - part) / count + z * z / (4 * count * count))
    return round(float(max(0.0, middle - half)), 3), round(float(min(1.0, middle + half)), 3)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Between the normal distributions that fit two sets of features, (n, d) each (Heusel et al. 2017, arXiv:1706.08500)."""
    first, second = np.cov(one.T.astype(np.float64)), np.cov(other.T.astype(np.float64))
    spread, axes = np.linalg.eigh(first)
    root = (axes * np.sqrt(np.maximum(spread, 0))) @ axes.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    apart = np.square(one.mean(axis=0, dtype=np.float64) - other.mean(axis=0, dtype=np.float64)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * cross)
