"""Where a picture is painted anew: rectangles, blobs and things; and what an inpainting network sees of the rest. No keras here.

What the product does with a caller's mask is done here by the same rules, and a test compares the two: the image encoder sees
grey under the mask's pixels, and a latent is painted anew where any of its pixels is.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from training.world.draw import SIDE, Drawing

KINDS = ("rectangle", "blob", "thing")
DOWNSAMPLING = 8
SMALLEST_EDGE, LARGEST_EDGE = 0.15, 0.85  # of a rectangle, as shares of the side
BRUSH = (6, 20)  # radius in pixels
GROWTH = (3, 14)  # pixels around a thing: its shadow reaches some ten beyond it


def random_mask(kind: str, drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """A mask of one of KINDS, 255 where to paint and 0 where to keep, uint8 (128, 128)."""
    match kind:
        case "rectangle":
            return _rectangle(rng)
        case "blob":
            return _blob(rng)
    growth = int(rng.integers(GROWTH[0], GROWTH[1] + 1))
    number = 1 + int(rng.integers(len(drawing.boxes)))
    return box_mask(drawing, number, growth) if rng.random() < 0.5 else outline_mask(drawing, number, growth)


def outline_mask(drawing: Drawing, number: int, growth: int) -> np.ndarray:
    """A thing (from 1) by its outline, so many pixels larger on all sides."""
    return _pixels(ndimage.distance_transform_edt(drawing.owner != number) <= growth)


def box_mask(drawing: Drawing, number: int, growth: int) -> np.ndarray:
    """A thing (from 1) by the box around it, so many pixels larger on all sides."""
    rows, columns = np.nonzero(drawing.owner == number)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[max(0, rows.min() - growth) : rows.max() + 1 + growth, max(0, columns.min() - growth) : columns.max() + 1 + growth] = (
        True
    )
    return _pixels(mask)


def _rectangle(rng: np.random.Generator) -> np.ndarray:
    height, width = np.rint(rng.uniform(SMALLEST_EDGE, LARGEST_EDGE, 2) * SIDE).astype(int)
    top, left = int(rng.integers(SIDE - height + 1)), int(rng.integers(SIDE - width + 1))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return _pixels(mask)


def _blob(rng: np.random.Generator) -> np.ndarray:
    """What a round brush leaves that wanders."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    y, x = rng.uniform(0.15 * SIDE, 0.85 * SIDE, 2)
    angle, mask = rng.uniform(0, 2 * np.pi), np.zeros((SIDE, SIDE), bool)
    for _ in range(int(rng.integers(3, 10))):
        radius = rng.uniform(*BRUSH)
        mask |= np.square(rows - y) + np.square(columns - x) <= radius * radius
        angle += rng.normal(0, 0.7)
        y, x = (float(np.clip(at + 0.8 * radius * turn, 0, SIDE)) for at, turn in ((y, np.sin(angle)), (x, np.cos(angle))))
    return _pixels(mask)


def _pixels(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, np.uint8(255), np.uint8(0))


def latent_mask(mask: np.ndarray) -> np.ndarray:
    """Of masks (..., 128, 128): 1 where any pixel of a latent is to be painted, else 0, uint8 (..., 16, 16, 1)."""
    *rest, height, width = mask.shape
    squares = mask.reshape(*rest, height // DOWNSAMPLING, DOWNSAMPLING, width // DOWNSAMPLING, DOWNSAMPLING)
    return (squares.max(axis=(-3, -1)) > 0).astype(np.uint8)[..., None]


def kept_pixels(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Pictures uint8 (..., H, W, 3) as the image encoder sees them, float32 in [-1, 1], and 0, which is grey, under the mask."""
    return np.where(masks[..., None] >= 128, np.float32(0), images.astype(np.float32) / np.float32(127.5) - 1)
