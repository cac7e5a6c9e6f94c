"""What a picture shows, measured on its pixels; by someone who never saw a generated one.

For the grammar of first light: a medium thing in the middle of a ground of one colour.
"""

from __future__ import annotations

import numpy as np

from training.world.draw import SIDE
from training.world.scenes import Scene, kept_out, nearest_colour
from training.world.shapes import PARTS

BORDER = 8


def thing_colour(image: np.ndarray, shape: str) -> str:
    """The colour of a medium thing in the middle of a picture, uint8 (128, 128, 3)."""
    return nearest_colour(np.median(image[_inside(shape)], axis=0))


def background_colour(image: np.ndarray) -> str:
    """The colour of the border."""
    border = np.ones(image.shape[:2], bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    return nearest_colour(np.median(image[border], axis=0))


def _inside(shape: str) -> np.ndarray:
    """Where a thing of this shape in the middle of the picture surely has its colour: its inner half, wherever it may stand."""
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5 - SIDE / 2) / (0.205 * SIDE)
    distance = PARTS[shape](axis[None, :] + 0 * axis[:, None], axis[:, None] + 0 * axis[None, :])[0].distance
    return distance < np.quantile(distance[distance < 0], 0.4)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return round(float(middle - half), 3), round(float(middle + half), 3)


def judge(images: np.ndarray, scenes: list[Scene]) -> dict[str, dict[str, object]]:
    """Shares of pictures whose thing, background, and both have the colour that was asked for."""
    thing = [thing_colour(image, s.things[0].shape) == s.things[0].colour for image, s in zip(images, scenes, strict=True)]
    ground = [background_colour(image) == s.background for image, s in zip(images, scenes, strict=True)]
    both = [a and b for a, b in zip(thing, ground, strict=True)]
    rows = {"thing_colour": thing, "background": ground, "both": both}
    table: dict[str, dict[str, object]] = {}
    table |= {name: {"share": round(float(np.mean(r)), 3), "interval": wilson(sum(r), len(r))} for name, r in rows.items()}
    unseen = [right for right, scene in zip(both, scenes, strict=True) if kept_out(scene)]
    if unseen:
        table["both_where_kept_out"] = {"share": round(float(np.mean(unseen)), 3), "count": len(unseen)}
    return table
