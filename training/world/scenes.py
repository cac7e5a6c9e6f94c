"""What can be in a picture, which combinations are kept out of training, and how scenes are drawn at random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

# sRGB anchors. A thing's or a ground's colour varies around its anchor, and its nearest anchor stays the right one.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (0xD9, 0x30, 0x30),
    "orange": (0xF0, 0x8A, 0x24),
    "yellow": (0xF2, 0xD1, 0x3C),
    "green": (0x3F, 0xA3, 0x4D),
    "blue": (0x2F, 0x6F, 0xD6),
    "purple": (0x8A, 0x4F, 0xC7),
    "pink": (0xF2, 0x9A, 0xC0),
    "brown": (0x8A, 0x5A, 0x33),
    "black": (0x1E, 0x1E, 0x22),
    "white": (0xF5, 0xF5, 0xF2),
    "gray": (0x8F, 0x8F, 0x94),
}
COLOUR_NAMES = tuple(COLOURS)
ANCHORS = np.array(list(COLOURS.values()), np.float32)

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "ring",
    "cross",
    "diamond",
    "moon",
    "house",
    "tree",
    "boat",
    "fish",
    "flower",
    "sun",
    "cloud",
)
FIRST_LIGHT_SHAPES = SHAPES[:6]
SCENES = ("sea", "meadow", "desert", "night sky", "snow", "sunset")
BACKGROUNDS = COLOUR_NAMES + SCENES
SIZES = ("medium", "small", "large")
PLACES = ("middle", "left", "right", "top", "bottom")

# Radius as a share of the picture's side, from and to. Two things that share a picture keep large within their half.
RADII = {"small": (0.115, 0.140), "medium": (0.190, 0.220), "large": (0.270, 0.310)}
LARGE_OF_TWO = (0.245, 0.260)
CENTRES = {"middle": (0.5, 0.5), "left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75)}
CENTRE_VARIATION = 0.06
CENTRE_VARIATION_OF_TWO = 0.03  # closer, lest they touch


class Grammar(StrEnum):
    """How much of the world is spoken of."""

    FIRST_LIGHT = "first_light"  # eleven colours, six shapes, colour backgrounds, medium, in the middle
    ONE_THING = "one_thing"
    FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing, named as a prompt names it."""

    colour: str
    shape: str
    size: str = "medium"
    place: str = "middle"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two things and what is behind them; two things stand left and right, or top and bottom, of the middle."""

    things: tuple[Thing, ...]
    background: str


# The kept-out rules are sums over positions in the lists above, so that every colour, shape and background loses its fair
# share and no more. The factors were chosen so that what people ask for first (a red heart, a green tree ...) stays in.
def pair_kept_out(colour: str, shape: str) -> bool:
    """Whether this colour of this shape is never shown in training: one pair in ten."""
    return (3 * COLOUR_NAMES.index(colour) + 7 * SHAPES.index(shape)) % 10 == 5


def triple_kept_out(colour: str, shape: str, background: str) -> bool:
    """Whether this thing is never shown on this background in training: one triple in ten."""
    position = 7 * COLOUR_NAMES.index(colour) + 3 * SHAPES.index(shape) + 9 * BACKGROUNDS.index(background)
    return position % 10 == 4


def kept_out(scene: Scene) -> bool:
    """Whether any thing of the scene is kept out of training, by its pair or by its triple."""
    return any(
        pair_kept_out(thing.colour, thing.shape) or triple_kept_out(thing.colour, thing.shape, scene.background)
        for thing in scene.things
    )


def random_scene(rng: np.random.Generator, grammar: Grammar = Grammar.FULL) -> Scene:
    """Any scene of the grammar, kept-out ones too."""
    if grammar is Grammar.FIRST_LIGHT:
        thing = Thing(colour=_one_of(rng, COLOUR_NAMES), shape=_one_of(rng, FIRST_LIGHT_SHAPES))
        return Scene(things=(thing,), background=_one_of(rng, COLOUR_NAMES))
    background = _one_of(rng, COLOUR_NAMES) if rng.random() < 0.6 else _one_of(rng, SCENES)
    if grammar is Grammar.ONE_THING or rng.random() < 0.45:
        place = _one_of(rng, PLACES) if rng.random() < 0.6 else "middle"
        return Scene(things=(_random_thing(rng, place),), background=background)
    places = ("left", "right") if rng.random() < 0.6 else ("top", "bottom")
    return Scene(things=tuple(_random_thing(rng, place) for place in places), background=background)


def training_scene(rng: np.random.Generator, grammar: Grammar = Grammar.FULL) -> Scene:
    """A scene of the grammar that is not kept out."""
    while kept_out(scene := random_scene(rng, grammar)):
        pass
    return scene


def twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene of two things with their colours, their shapes or both swapped: the same words, bound otherwise."""
    first, second = scene.things
    swapped = int(rng.integers(3))
    colours = (second.colour, first.colour) if swapped != 1 else (first.colour, second.colour)
    shapes = (second.shape, first.shape) if swapped != 0 else (first.shape, second.shape)
    things = (replace(first, colour=colours[0], shape=shapes[0]), replace(second, colour=colours[1], shape=shapes[1]))
    return replace(scene, things=things)


NO_THING = -1
CODE_LENGTH = 9


def to_code(scene: Scene) -> np.ndarray:
    """The scene as numbers, int8 (9,): background, then colour, shape, size and place of each thing, -1 where there is none."""
    code = np.full(CODE_LENGTH, NO_THING, np.int8)
    code[0] = BACKGROUNDS.index(scene.background)
    for i, thing in enumerate(scene.things):
        code[1 + 4 * i : 5 + 4 * i] = (
            COLOUR_NAMES.index(thing.colour),
            SHAPES.index(thing.shape),
            SIZES.index(thing.size),
            PLACES.index(thing.place),
        )
    return code


def from_code(code: np.ndarray) -> Scene:
    """The scene that `to_code` made these numbers of."""
    things = []
    for colour, shape, size, place in np.asarray(code)[1:].reshape(2, 4):
        if colour != NO_THING:
            things.append(Thing(colour=COLOUR_NAMES[colour], shape=SHAPES[shape], size=SIZES[size], place=PLACES[place]))
    return Scene(things=tuple(things), background=BACKGROUNDS[code[0]])


def nearest_colour(rgb: np.ndarray) -> str:
    """The name of the anchor nearest to an sRGB colour, (3,) in 0..255."""
    distances = np.square(ANCHORS - np.asarray(rgb, np.float32)).sum(axis=1)
    return COLOUR_NAMES[int(distances.argmin())]


def _random_thing(rng: np.random.Generator, place: str) -> Thing:
    size = _one_of(rng, SIZES) if rng.random() < 0.6 else "medium"
    return Thing(colour=_one_of(rng, COLOUR_NAMES), shape=_one_of(rng, SHAPES), size=size, place=place)


def _one_of(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]
