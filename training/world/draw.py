"""Scenes to pictures: two-tone shading, a darker rim, a soft shadow, gentle gradients, layered grounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.world.scenes import (
    CENTRE_VARIATION,
    CENTRE_VARIATION_OF_TWO,
    CENTRES,
    COLOURS,
    LARGE_OF_TWO,
    RADII,
    Scene,
    Thing,
)
from training.world.shapes import PARTS, TWO_FACED, Field, Part

SIDE = 128
_ROWS = (np.arange(SIDE, dtype=np.float32) + 0.5)[:, None]
_COLUMNS = (np.arange(SIDE, dtype=np.float32) + 0.5)[None, :]
_X = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
_LIGHT = np.array([-0.55, -0.83], np.float32)  # towards the light: from above, a little from the left


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture and where its things are.

    Attributes:
        image: uint8 (128, 128, 3), sRGB.
        boxes: Left, top, right, bottom of each thing as shares of the side, float32 (n, 4), cut at the picture's edge.
        owner: What a pixel belongs to, int8 (128, 128): 0 is the ground, 1 the first thing, 2 the second.
        body: Whether it has the colour that the thing is called by, bool (128, 128): no rim, door, trunk or eye.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    owner: NDArray[np.int8]
    body: NDArray[np.bool_]


def draw(scene: Scene, rng: np.random.Generator) -> Drawing:
    """A picture of the scene; whatever the scene leaves open is drawn from `rng`."""
    canvas = _SCENES[scene.background](rng) if scene.background in _SCENES else _ground(scene.background, rng)
    owner, body = np.zeros((SIDE, SIDE), np.int8), np.zeros((SIDE, SIDE), bool)
    boxes = []
    for number, thing in enumerate(scene.things, 1):
        box, area, covered, coloured = _draw_thing(canvas, thing, rng, alone=len(scene.things) == 1)
        boxes.append(box)
        owner[area][covered], body[area][covered] = number, coloured[covered]
    image = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Drawing(image=image, boxes=np.array(boxes, np.float32).reshape(-1, 4), owner=owner, body=body)


# Colours


def _varied(colour: str, rng: np.random.Generator) -> Field:
    """The colour's anchor, a little lighter or darker and a little off in hue; sRGB in 0..1."""
    hue = 0.012 if colour not in ("black", "white", "gray") else 0.005
    shift = rng.normal(0, hue, 3).clip(-2 * hue, 2 * hue) + rng.uniform(-0.025, 0.025)
    return np.clip(_anchor(colour) + shift.astype(np.float32), np.float32(0.02), np.float32(0.985))


def _anchor(colour: str) -> Field:
    return np.array(COLOURS[colour], np.float32) / np.float32(255)


def _rgb(text: str) -> Field:
    return np.array([int(text[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


# Things


Window = tuple[slice, slice]
Mask = NDArray[np.bool_]


def _draw_thing(
    canvas: Field, thing: Thing, rng: np.random.Generator, *, alone: bool
) -> tuple[tuple[float, ...], Window, Mask, Mask]:
    """Draws the thing; returns its box, a window around it, and what it covers and colours there."""
    low, high = RADII[thing.size] if alone or thing.size != "large" else LARGE_OF_TWO
    radius = float(rng.uniform(low, high)) * SIDE
    variation = CENTRE_VARIATION if alone else CENTRE_VARIATION_OF_TWO
    cx, cy = (_centre(at, variation, radius / SIDE, rng) * SIDE for at in CENTRES[thing.place])
    reach = radius * 1.06 + 2
    top, bottom = max(0, int(cy - reach)), min(SIDE, int(cy + reach + 12))
    left, right = max(0, int(cx - reach - 4)), min(SIDE, int(cx + reach + 8))
    x, y = (
        (_COLUMNS[:, left:right] - np.float32(cx)) / np.float32(radius),
        (_ROWS[top:bottom] - np.float32(cy)) / np.float32(radius),
    )
    angle = float(rng.uniform(-0.07, 0.07))
    facing = -1.0 if rng.random() < 0.5 and thing.shape in TWO_FACED else 1.0  # every thing takes as many chances
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    parts = PARTS[thing.shape]((x * cos + y * sin) * np.float32(facing), y * cos - x * sin)
    window = (slice(top, bottom), slice(left, right))
    area = canvas[window]
    _shadow(area, parts, radius)
    colour = _varied(thing.colour, rng)
    covered, coloured = np.zeros((2, *area.shape[:2]), bool)
    for part in parts:
        _paint(area, part, colour, x, y, radius)
        inside = part.distance < 0
        covered |= inside
        coloured[inside] = (part.distance[inside] * radius < -_rim_width(radius)) & (part.paint is None)
    cut = tuple(float(np.clip(v / SIDE, 0, 1)) for v in (cx - radius, cy - radius, cx + radius, cy + radius))
    return cut, window, covered, coloured


def _centre(at: float, variation: float, radius: float, rng: np.random.Generator) -> float:
    """A centre near `at` along one axis; large things lean inwards, so that the edge cuts as little as can be."""
    low, high = at - variation, at + variation
    if radius > 0.24:
        low, high = (at, high) if at < 0.5 else (low, at) if at > 0.5 else (low, high)
    return float(rng.uniform(low, high))


def _shadow(area: Field, parts: list[Part], radius: float) -> None:
    outline = parts[0].distance
    for part in parts[1:]:
        outline = np.minimum(outline, part.distance)
    down, aside = round(0.10 * radius) + 2, round(0.04 * radius) + 1
    spread = np.float32(0.10 * radius + 2.5)
    depth = np.clip(0.5 - outline[:-down, :-aside] * np.float32(radius) / (2 * spread), 0, 1)
    area[down:, aside:] *= 1 - np.float32(0.34) * (depth * depth * (3 - 2 * depth))[..., None]


def _rim_width(radius: float) -> float:
    return max(1.4, 0.055 * radius)


def _paint(area: Field, part: Part, colour: Field, x: Field, y: Field, radius: float) -> None:
    distance = part.distance * np.float32(radius)
    cover = np.clip(0.5 - distance, 0, 1)
    base = np.array(part.paint, np.float32) if part.paint is not None else colour * np.float32(part.tone)
    # Dark colours show their form by light, light ones by shade.
    lightness = float(base.mean())
    glow = np.float32(0.045 * (1 - lightness))
    lit = base * np.float32(1.035) + glow
    shade = base * np.float32(0.84 if lightness > 0.2 else 0.62)
    rim = base * np.float32(0.60 if lightness > 0.2 else 0.18)
    across = x * _LIGHT[0] + y * _LIGHT[1]
    if not part.rim:
        area += cover[..., None] * (base - area)
        return
    # Two tones: what a copy of the outline, moved towards the light, leaves uncovered is in shade.
    down, aside = max(1, round(0.17 * radius)), max(1, round(0.11 * radius))
    moved = np.full_like(distance, 4.0)
    moved[:-down, :-aside] = distance[down:, aside:]
    in_shade = np.clip(0.5 + moved / 1.5, 0, 1)
    slope = np.clip(0.5 + 0.45 * across, 0, 1)
    colours = base + (lit - base) * slope[..., None]
    colours += in_shade[..., None] * (shade - colours)
    edge = np.clip(0.5 + distance + np.float32(_rim_width(radius)), 0, 1)
    colours += edge[..., None] * (rim - colours)
    area += cover[..., None] * (colours - area)


# Grounds of one colour


def _ground(colour: str, rng: np.random.Generator) -> Field:
    """A wall in the colour with soft light on it, and now and then a floor."""
    base = _varied(colour, rng)
    dark = float(base.mean()) < 0.2
    across = np.float32(rng.uniform(-0.25, 0.25))
    slope = (_ROWS / SIDE - 0.5) + across * (_COLUMNS / SIDE - 0.5)
    light_x, light_y = rng.uniform(0.3, 0.7) * SIDE, rng.uniform(0.25, 0.5) * SIDE
    apart = (np.square(_COLUMNS - np.float32(light_x)) + np.square(_ROWS - np.float32(light_y))) / np.float32((0.55 * SIDE) ** 2)
    tone = np.float32(0.05) / (1 + apart) - np.float32(0.02) - np.float32(0.055) * slope
    canvas = base + (tone * np.float32(0.7 if dark else 1.0))[..., None]
    if rng.random() < 0.4:
        floor = base * np.float32(0.93) if not dark else base + np.float32(0.02)
        _hill(canvas, rng, height=rng.uniform(0.70, 0.80), swing=0.02, near=floor, far=floor)
    return canvas


# Scenes


def _sky(*stops: tuple[float, str]) -> Field:
    """A vertical gradient through colours at heights in 0..1, (128, 128, 3)."""
    heights = np.array([height for height, _ in stops], np.float32)
    colours = np.stack([_rgb(text) for _, text in stops])
    column = np.stack([np.interp(_X, heights, colours[:, c]) for c in range(3)], axis=1).astype(np.float32)
    return np.repeat(column[:, None, :], SIDE, axis=1)


def _hill(
    canvas: Field,
    rng: np.random.Generator,
    *,
    height: float,
    swing: float,
    near: Field,
    far: Field,
    waves: float = 1.0,
) -> None:
    """A layer that fills everything below a wavy line: `far` along the line, `near` at the picture's foot."""
    phases = rng.uniform(0, 2 * np.pi, 2)
    line = np.sin(_X * np.float32(2 * np.pi * waves) + phases[0]) + 0.45 * np.sin(
        _X * np.float32(5.3 * np.pi * waves) + phases[1]
    )
    line = np.float32(height * SIDE) + line.astype(np.float32) * np.float32(swing * SIDE)
    top = max(0, int(line.min()) - 2)
    area = canvas[top:]
    rows = _ROWS[top:]
    cover = np.clip(rows - line[None, :] + 0.5, 0, 1)
    depth = np.clip((rows - line[None, :]) / np.float32(SIDE * (1.02 - height)), 0, 1)
    area += cover[..., None] * (far + depth[..., None] * (near - far) - area)


def _dots(
    canvas: Field, rng: np.random.Generator, *, count: int, low: float, high: float, size: tuple[float, float], colour: Field
) -> None:
    """Small round spots between two heights."""
    for _ in range(count):
        cx, cy, radius = rng.uniform(2, SIDE - 2), rng.uniform(low, high) * SIDE, rng.uniform(*size)
        left, top = max(0, int(cx) - 3), max(0, int(cy) - 3)
        x, y = _COLUMNS[:, left : int(cx) + 4] - np.float32(cx), _ROWS[top : int(cy) + 4] - np.float32(cy)
        cover = np.clip(np.float32(radius) + 0.5 - np.sqrt(x * x + y * y), 0, 1)[..., None]
        area = canvas[top : int(cy) + 4, left : int(cx) + 4]
        area += cover * (colour - area)


def _glow(canvas: Field, cx: float, cy: float, radius: float, colour: Field, strength: float) -> None:
    apart = (np.square(_COLUMNS - np.float32(cx * SIDE)) + np.square(_ROWS - np.float32(cy * SIDE))) / np.float32(
        (radius * SIDE) ** 2
    )
    canvas += (np.float32(strength) / (1 + apart * apart))[..., None] * (colour - canvas)


def _wander(rng: np.random.Generator, text: str) -> Field:
    return _rgb(text) + rng.uniform(-0.02, 0.02, 3).astype(np.float32)


def _sea(rng: np.random.Generator) -> Field:
    canvas = _sky((0.0, "8fd0ee"), (0.5, "e4f5f4"))
    _glow(canvas, rng.uniform(0.2, 0.8), 0.40, 0.35, _rgb("fffbe6"), 0.5)
    horizon = rng.uniform(0.46, 0.52)
    _hill(canvas, rng, height=horizon, swing=0.0, near=_wander(rng, "2c8fb8"), far=_wander(rng, "6cc3d6"))
    _hill(canvas, rng, height=horizon + 0.16, swing=0.010, near=_wander(rng, "1f76a8"), far=_wander(rng, "4aa9cc"), waves=2.4)
    _hill(canvas, rng, height=horizon + 0.31, swing=0.014, near=_wander(rng, "165a8c"), far=_wander(rng, "3389b8"), waves=2.0)
    return canvas


def _meadow(rng: np.random.Generator) -> Field:
    canvas = _sky((0.0, "a9dcf2"), (0.6, "f6f7dd"))
    horizon = rng.uniform(0.50, 0.56)
    _hill(canvas, rng, height=horizon, swing=0.028, near=_wander(rng, "9ccb78"), far=_wander(rng, "bfdf9a"))
    _hill(canvas, rng, height=horizon + 0.13, swing=0.026, near=_wander(rng, "78b85a"), far=_wander(rng, "93cc6c"))
    _hill(canvas, rng, height=horizon + 0.28, swing=0.020, near=_wander(rng, "4e9646"), far=_wander(rng, "6cb455"))
    _dots(canvas, rng, count=7, low=0.86, high=0.98, size=(0.9, 1.5), colour=_rgb("fff6d8"))
    return canvas


def _desert(rng: np.random.Generator) -> Field:
    canvas = _sky((0.0, "f7d9a8"), (0.6, "fff3d6"))
    _glow(canvas, rng.uniform(0.2, 0.8), 0.30, 0.35, _rgb("fffdf0"), 0.6)
    horizon = rng.uniform(0.52, 0.58)
    _hill(canvas, rng, height=horizon, swing=0.030, near=_wander(rng, "e0b47c"), far=_wander(rng, "efcf9c"), waves=0.8)
    _hill(canvas, rng, height=horizon + 0.14, swing=0.034, near=_wander(rng, "d2995c"), far=_wander(rng, "e6b877"), waves=0.7)
    _hill(canvas, rng, height=horizon + 0.29, swing=0.028, near=_wander(rng, "b97a42"), far=_wander(rng, "d49c5e"), waves=0.9)
    return canvas


def _night(rng: np.random.Generator) -> Field:
    canvas = _sky((0.0, "10163a"), (0.55, "2a2f6b"), (1.0, "4d4488"))
    _glow(canvas, rng.uniform(0.2, 0.8), 0.85, 0.40, _rgb("6a5aa8"), 0.5)
    _dots(canvas, rng, count=22, low=0.02, high=0.80, size=(0.5, 1.3), colour=_rgb("f4f1da"))
    _hill(canvas, rng, height=rng.uniform(0.84, 0.88), swing=0.022, near=_rgb("161a3c"), far=_rgb("232857"), waves=0.9)
    return canvas


def _snow(rng: np.random.Generator) -> Field:
    canvas = _sky((0.0, "a9c3dc"), (0.6, "e3ecf3"))
    horizon = rng.uniform(0.54, 0.60)
    _hill(canvas, rng, height=horizon, swing=0.026, near=_wander(rng, "dbe6f0"), far=_wander(rng, "cfdeec"))
    _hill(canvas, rng, height=horizon + 0.13, swing=0.026, near=_rgb("e6eef5"), far=_rgb("eef4f9"))
    _hill(canvas, rng, height=horizon + 0.27, swing=0.020, near=_rgb("f2f6fa"), far=_rgb("fbfdff"))
    _dots(canvas, rng, count=20, low=0.02, high=0.72, size=(0.8, 1.7), colour=_rgb("ffffff"))
    return canvas


def _sunset(rng: np.random.Generator) -> Field:
    canvas = _sky((0.0, "5d4a8f"), (0.3, "c4628f"), (0.5, "f2855e"), (0.68, "fbc46a"))
    horizon = rng.uniform(0.62, 0.68)
    _glow(canvas, rng.uniform(0.3, 0.7), horizon, 0.26, _rgb("fff0b0"), 0.75)
    _hill(canvas, rng, height=horizon, swing=0.018, near=_wander(rng, "8f4a70"), far=_wander(rng, "a85a72"))
    _hill(canvas, rng, height=horizon + 0.11, swing=0.022, near=_wander(rng, "5f3564"), far=_wander(rng, "7a4268"))
    _hill(canvas, rng, height=horizon + 0.22, swing=0.018, near=_wander(rng, "33204a"), far=_wander(rng, "4a2b58"))
    return canvas


_SCENES = {"sea": _sea, "meadow": _meadow, "desert": _desert, "night sky": _night, "snow": _snow, "sunset": _sunset}
