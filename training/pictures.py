"""Batches of drawn pictures. No keras here: drawing can be spread over processes that never load it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.masks import KINDS, random_mask
from training.world.draw import SIDE, draw
from training.world.scenes import Grammar, kept_out, random_scene, to_code, training_scene, twin

CROP = 64
Batch = dict[str, np.ndarray]
Batches = Callable[[int, np.random.Generator], Batch]


def batch_of_step(batches: Batches, seed: int, step: int) -> Batch:
    """The batch of a step is a function of its number, so that a run that was interrupted sees what it would have seen."""
    return batches(step, np.random.default_rng([seed, step]))


class CropsAndFrames:
    """Batches of crops, and every so often one of full frames: normalization and attention see another share of ground there."""

    def __init__(self, *, rows: int, frame_rows: int, every: int) -> None:
        """
        Args:
            rows: Crops of a batch.
            frame_rows: Full frames of a batch.
            every: One batch in so many has full frames; 1 is all.
        """
        self.rows = rows
        self.frame_rows = frame_rows
        self.every = every

    def __call__(self, step: int, rng: np.random.Generator) -> Batch:
        return with_noise(frames(self.frame_rows, rng) if step % self.every == self.every - 1 else crops(self.rows, rng), rng)


def crops(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Crops, each of a scene of its own, every other one about a thing; uint8 (rows, 64, 64, 3).

    Many scenes in a batch, because colours are what is hard at first.
    """
    images = np.empty((rows, CROP, CROP, 3), np.uint8)
    for i in range(rows):
        drawing = draw(random_scene(rng), rng)
        left, top = rng.uniform(0, SIDE - CROP, 2)
        if i % 2:
            box = drawing.boxes[rng.integers(len(drawing.boxes))]
            left, top = (box[:2] + box[2:]) / 2 * SIDE - CROP / 2 + rng.uniform(-16, 16, 2)
        left, top = int(np.clip(left, 0, SIDE - CROP)), int(np.clip(top, 0, SIDE - CROP))
        images[i] = drawing.image[top : top + CROP, left : left + CROP]
    return images


def frames(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Full pictures, uint8 (rows, 128, 128, 3)."""
    return np.stack([draw(random_scene(rng), rng).image for _ in range(rows)])


def with_noise(images: np.ndarray, rng: np.random.Generator) -> Batch:
    """Pictures in [-1, 1], and standard normal noise of the shape of their latents."""
    rows, height, width, _ = images.shape
    noise = rng.standard_normal((rows, height // 8, width // 8, 4), dtype=np.float32)
    return {"images": images.astype(np.float32) / 127.5 - 1, "noise": noise}


def drawn_scenes(grammar: Grammar, count: int, seed: tuple[int, int]) -> Batch:
    """Scenes of the training part of a grammar: `images` uint8, `codes` int8 (n, 9), `boxes` float32 (n, 2, 4), `twins` int32.

    Where there are two things, their twin comes next, drawn with the same chances: the same places, the same ground.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    codes, boxes = [], np.zeros((count, 2, 4), np.float32)
    twins = np.full(count, -1, np.int32)
    i = 0
    while i < count:
        scene = training_scene(rng, grammar)
        pair = [scene]
        if len(scene.things) == 2 and i + 1 < count and not kept_out(other := twin(scene, rng)):
            pair.append(other)
        chances = int(rng.integers(2**63))
        for j, one in enumerate(pair):
            drawing = draw(one, np.random.default_rng(chances))
            images[i + j] = drawing.image
            boxes[i + j, : len(drawing.boxes)] = drawing.boxes
            codes.append(to_code(one))
        if len(pair) == 2:
            twins[i : i + 2] = i + 1, i
        i += len(pair)
    return {"images": images, "codes": np.stack(codes), "boxes": boxes, "twins": twins}


def masked_scenes(grammar: Grammar, count: int, seed: tuple[int, int]) -> Batch:
    """Scenes of the training part of a grammar, each under a mask; the kinds of masks take turns.

    `images` uint8, `masks` uint8 (n, 128, 128), `codes` int8 (n, 9), `boxes` float32 (n, 2, 4).
    """
    rng = np.random.default_rng(seed)
    images, masks = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty((count, SIDE, SIDE), np.uint8)
    codes, boxes = [], np.zeros((count, 2, 4), np.float32)
    for i in range(count):
        scene = training_scene(rng, grammar)
        drawing = draw(scene, rng)
        images[i], masks[i] = drawing.image, random_mask(KINDS[i % len(KINDS)], drawing, rng)
        boxes[i, : len(drawing.boxes)] = drawing.boxes
        codes.append(to_code(scene))
    return {"images": images, "masks": masks, "codes": np.stack(codes), "boxes": boxes}
