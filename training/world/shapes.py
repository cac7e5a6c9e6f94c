"""Shapes as signed distances: negative inside, in units of the shape's radius, y down, everything within -1.05..1.05.

The formulas are the standard ones for two-dimensional distance functions (symmetry folds, then the distance to an edge).
Where a union or an intersection makes them inexact, they are so far from the outline only, where nothing is drawn by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]  # float32 in truth; what numpy's stubs make of a Python factor is float64


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a thing, painted over the pieces before it.

    Attributes:
        distance: Signed distance, (h, w), in radii.
        tone: Factor on the thing's colour.
        paint: An sRGB colour of its own in 0..1 instead of the thing's.
        rim: Whether it has an outline.
    """

    distance: Field
    tone: float = 1.0
    paint: tuple[float, float, float] | None = None
    rim: bool = True


WOOD = (0.45, 0.30, 0.19)
DARK = (0.13, 0.13, 0.16)
PALE = (0.99, 0.97, 0.90)
WINDOW = (1.0, 0.90, 0.58)
POLLEN = (0.98, 0.76, 0.22)


def circle(x: Field, y: Field, radius: float) -> Field:
    """A disc around the origin."""
    return np.sqrt(x * x + y * y) - np.float32(radius)


def box(x: Field, y: Field, half_width: float, half_height: float, corner: float = 0.0) -> Field:
    """A box around the origin with rounded corners."""
    ax = np.abs(x) - np.float32(half_width - corner)
    ay = np.abs(y) - np.float32(half_height - corner)
    outside = np.sqrt(np.square(np.maximum(ax, 0)) + np.square(np.maximum(ay, 0)))
    return outside + np.minimum(np.maximum(ax, ay), 0) - np.float32(corner)


def wedge(x: Field, y: Field, half_width: float, top: float, bottom: float) -> Field:
    """An isosceles triangle, symmetric in x: apex at `top`, base at `bottom`."""
    height = bottom - top
    length = float(np.hypot(height, half_width))
    side = (np.abs(x) * np.float32(height) - (y - np.float32(top)) * np.float32(half_width)) / np.float32(length)
    return np.maximum(side, y - np.float32(bottom))


def _triangle(x: Field, y: Field) -> Field:
    k = np.float32(np.sqrt(3.0))
    radius = np.float32(0.86)
    ax = np.abs(x) - radius
    ay = radius / k - y + np.float32(0.17)
    beyond = ax + k * ay > 0
    fx = np.where(beyond, (ax - k * ay) / 2, ax)
    fy = np.where(beyond, (-k * ax - ay) / 2, ay)
    fx = fx - np.clip(fx, -2 * radius, 0)
    return -np.sqrt(fx * fx + fy * fy) * np.sign(fy) - np.float32(0.09)


def _star(x: Field, y: Field) -> Field:
    radius, inner = np.float32(0.97), np.float32(0.50)
    k1 = np.array([0.809016994375, -0.587785252292], np.float32)
    px, py = np.abs(x), np.float32(0.05) - y
    fold = 2 * np.maximum(k1[0] * px + k1[1] * py, 0)
    px, py = px - fold * k1[0], py - fold * k1[1]
    fold = 2 * np.maximum(-k1[0] * px + k1[1] * py, 0)
    px, py = px + fold * k1[0], py - fold * k1[1]
    px, py = np.abs(px), py - radius
    bx, by = inner * -k1[1], inner * k1[0] - 1
    along = np.clip((px * bx + py * by) / (bx * bx + by * by), 0, radius)
    qx, qy = px - bx * along, py - by * along
    return np.sqrt(qx * qx + qy * qy) * np.sign(py * bx - px * by) - np.float32(0.05)


def _heart(x: Field, y: Field) -> Field:
    scale = np.float32(1.62)
    px, py = np.abs(x) / scale, (np.float32(0.90) - y) / scale
    lobe = np.sqrt(np.square(px - 0.25) + np.square(py - 0.75)) - np.float32(np.sqrt(2) / 4)
    half = np.maximum(px + py, 0) / 2
    tip = np.minimum(px * px + np.square(py - 1), np.square(px - half) + np.square(py - half))
    return np.where(py + px > 1, lobe, np.sqrt(tip) * np.sign(px - py)) * scale - np.float32(0.03)


def _cloud(x: Field, y: Field) -> Field:
    puffs = (circle(x + 0.52, y - 0.22, 0.40), circle(x + 0.08, y + 0.16, 0.52), circle(x - 0.50, y - 0.14, 0.46))
    base = box(x, y - 0.38, 0.92, 0.26, 0.25)
    return np.minimum(np.minimum(puffs[0], puffs[1]), np.minimum(puffs[2], base))


def _sun_rays(x: Field, y: Field) -> Field:
    count = 12
    sector = np.float32(2 * np.pi / count)
    angle = np.arctan2(y, x)
    angle = np.abs(angle - np.round(angle / sector) * sector)
    radius = np.sqrt(x * x + y * y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    tip, half, start = 1.02, 0.20, 0.56
    length = float(np.hypot(tip - start, half))
    return ((along - np.float32(tip)) * np.float32(half) + across * np.float32(tip - start)) / np.float32(length)


def _house(x: Field, y: Field) -> list[Part]:
    return [
        Part(distance=box(x - 0.38, y + 0.62, 0.11, 0.26), tone=0.78),
        Part(distance=box(x, y - 0.36, 0.66, 0.54, 0.04)),
        Part(distance=wedge(x, y, 0.98, -0.98, -0.08), tone=0.86),
        Part(distance=box(x + 0.24, y - 0.60, 0.15, 0.29, 0.04), paint=WOOD, rim=False),
        Part(distance=box(x - 0.27, y - 0.38, 0.17, 0.17, 0.03), paint=WINDOW, rim=False),
    ]


def _tree(x: Field, y: Field) -> list[Part]:
    crown = np.minimum(circle(x, y + 0.46, 0.50), np.minimum(circle(x + 0.38, y + 0.02, 0.45), circle(x - 0.38, y + 0.02, 0.45)))
    return [Part(distance=box(x, y - 0.60, 0.13, 0.38, 0.03), paint=WOOD), Part(distance=crown)]


def _boat(x: Field, y: Field) -> list[Part]:
    hull = np.maximum(wedge(x, -y, 1.0, -1.72, -0.34), y - 0.88)
    main_sail = np.maximum(wedge(x - 0.08, y, 0.84, -1.02, 0.24), 0.08 - x)
    jib = np.maximum(wedge(x + 0.06, y, 0.72, -0.74, 0.24), x + 0.06)
    return [
        Part(distance=box(x, y + 0.26, 0.05, 0.70), paint=WOOD, rim=False),
        Part(distance=main_sail),
        Part(distance=jib, tone=0.93),
        Part(distance=hull, tone=0.90),
    ]


def _fish(x: Field, y: Field) -> list[Part]:
    body = np.maximum(circle(x + 0.14, y - 0.62, 1.10), circle(x + 0.14, y + 0.62, 1.10))
    tail = np.maximum(wedge(y, x - 0.42, 0.62, 0.0, 0.56), -circle(x - 1.18, y, 0.34))
    return [
        Part(distance=tail, tone=0.88),
        Part(distance=wedge(x + 0.02, y, 0.34, -0.74, -0.30), tone=0.88),
        Part(distance=body),
        Part(distance=circle(x + 0.62, y + 0.10, 0.155), paint=PALE, rim=False),
        Part(distance=circle(x + 0.65, y + 0.10, 0.085), paint=DARK, rim=False),
    ]


def _flower(x: Field, y: Field) -> list[Part]:
    ax, ay = np.abs(x), np.abs(y)
    petals = np.minimum(circle(ax, ay - 0.60, 0.36), circle(ax - 0.52, ay - 0.30, 0.36))
    return [Part(distance=petals), Part(distance=circle(x, y, 0.30), paint=POLLEN)]


def _sun(x: Field, y: Field) -> list[Part]:
    return [Part(distance=np.maximum(_sun_rays(x, y), circle(x, y, 0.99)), tone=0.95), Part(distance=circle(x, y, 0.62))]


def _moon(x: Field, y: Field) -> Field:
    return np.maximum(circle(x, y, 0.95), -circle(x - 0.46, y + 0.12, 0.78))


def _cross(x: Field, y: Field) -> Field:
    return np.minimum(box(x, y, 0.95, 0.34, 0.07), box(x, y, 0.34, 0.95, 0.07))


def _diamond(x: Field, y: Field) -> Field:
    return (np.abs(x) / np.float32(0.72) + np.abs(y) - 1) * np.float32(0.72 / np.hypot(0.72, 1))


def _whole(distance: Callable[[Field, Field], Field]) -> Callable[[Field, Field], list[Part]]:
    return lambda x, y: [Part(distance=distance(x, y))]


PARTS: dict[str, Callable[[Field, Field], list[Part]]] = {
    "circle": _whole(lambda x, y: circle(x, y, 0.95)),
    "square": _whole(lambda x, y: box(x, y, 0.82, 0.82, 0.10)),
    "triangle": _whole(_triangle),
    "star": _whole(_star),
    "heart": _whole(_heart),
    "ring": _whole(lambda x, y: np.abs(circle(x, y, 0.69)) - np.float32(0.26)),
    "cross": _whole(_cross),
    "diamond": _whole(_diamond),
    "moon": _whole(_moon),
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "fish": _fish,
    "flower": _flower,
    "sun": _sun,
    "cloud": _whole(_cloud),
}
# Shapes that may look either way; the others are their own mirror image, or nearly so.
TWO_FACED = frozenset({"fish", "moon", "boat", "house", "cloud"})
