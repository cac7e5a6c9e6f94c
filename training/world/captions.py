"""Words for scenes: fresh and varied for every look at a picture."""

from __future__ import annotations

import re

import numpy as np

from training.world.scenes import COLOUR_NAMES, SCENES, SHAPES, Scene, Thing

_OPENINGS = (
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "a painting of ",
    "a photo of ",
    "a simple flat illustration of ",
    "draw ",
    "please draw ",
    "show me ",
    "there is ",
)
_SIZE_WORDS = {"small": ("small", "small", "small", "little", "tiny"), "large": ("large", "large", "large", "big", "huge")}
_PLACE_WORDS = {
    "left": ("on the left", "on the left", "to the left", "at the left", "on the left side"),
    "right": ("on the right", "on the right", "to the right", "at the right", "on the right side"),
    "top": ("at the top", "at the top", "on the top", "near the top"),
    "bottom": ("at the bottom", "at the bottom", "on the bottom", "near the bottom"),
    "middle": ("in the middle", "in the center", "in the centre"),
}
_GROUND_WORDS = (
    "on a {} background",
    "on a {} background",
    "on a {} background",
    "on {}",
    "against a {} background",
    "with a {} background",
    "in front of a {} background",
    "over a {} backdrop",
)
_SCENE_WORDS = {
    "sea": ("at sea", "on the sea", "by the sea", "at the sea", "in front of the sea", "over the sea"),
    "meadow": ("in a meadow", "on a meadow", "in the meadow", "over a meadow", "in front of a meadow"),
    "desert": ("in the desert", "in a desert", "over the desert", "in front of a desert"),
    "night sky": ("in the night sky", "under a night sky", "at night", "in a night sky", "under the night sky"),
    "snow": ("in the snow", "in snow", "on snow", "on the snow", "over the snow"),
    "sunset": ("at sunset", "in the sunset", "under a sunset", "in front of a sunset", "in front of the sunset"),
}
_SIDE_BY_SIDE = (
    "{0} left of {1}",
    "{0} left of {1}",
    "{0} to the left of {1}",
    "{1} right of {0}",
    "{1} right of {0}",
    "{1} to the right of {0}",
    "{0} on the left and {1} on the right",
    "{1} on the right and {0} on the left",
    "{0} and {1}",
    "{1} and {0}",
    "{0} next to {1}",
    "{1} beside {0}",
)
_ONE_ABOVE_THE_OTHER = (
    "{0} above {1}",
    "{0} above {1}",
    "{0} over {1}",
    "{1} below {0}",
    "{1} below {0}",
    "{1} under {0}",
    "{0} at the top and {1} at the bottom",
    "{1} at the bottom and {0} at the top",
    "{0} and {1}",
    "{1} and {0}",
)


def plain_caption(scene: Scene) -> str:
    """The one way to say it that everybody would choose: "a red circle left of a blue square on a green background"."""
    things = [_thing(thing, "a") for thing in scene.things]
    if len(things) == 1:
        place = scene.things[0].place
        words = things[0] if place == "middle" else f"{things[0]} {_PLACE_WORDS[place][0]}"
    else:
        words = f"{things[0]} {'left of' if scene.things[0].place == 'left' else 'above'} {things[1]}"
    return f"{words} {_background_words(scene.background)[0].format(scene.background)}"


_OPEN = ("{0} and {1}", "{1} and {0}", "{0} next to {1}", "{1} beside {0}")


def caption(scene: Scene, rng: np.random.Generator, *, ordered: bool = False) -> str:
    """One of the many ways to say it; `ordered` leaves out those that do not tell which of two things is where."""
    if rng.random() < 0.3:
        return _dressed(plain_caption(scene), rng)
    ground = _one_of(rng, _background_words(scene.background)).format(_spelt(scene.background, rng))
    first = _one_of(rng, ("", "", "", "", *_OPENINGS))
    if len(scene.things) == 1:
        return _dressed(_opened(first, _one_thing(scene.things[0], ground, rng)), rng)
    things = [_thing(thing, _article(rng), rng) for thing in scene.things]
    patterns: tuple[str, ...] = _SIDE_BY_SIDE if scene.things[0].place == "left" else _ONE_ABOVE_THE_OTHER
    if ordered:
        patterns = tuple(pattern for pattern in patterns if pattern not in _OPEN)
    pair = _one_of(rng, patterns).format(*things)
    return _dressed(_opened(first, _joined(pair, ground, rng)), rng)


def all_words() -> tuple[str, ...]:
    """Every word of the grammar, in lower case, sorted: what the model can be said to know."""
    rows = [*_OPENINGS, *_GROUND_WORDS, *_SIDE_BY_SIDE, *_ONE_ABOVE_THE_OTHER, *COLOUR_NAMES, *SCENES, "grey", "a an the one"]
    for table in (_SIZE_WORDS, _PLACE_WORDS, _SCENE_WORDS):
        rows += [phrase for phrases in table.values() for phrase in phrases]
    return tuple(sorted(set(re.findall("[a-z]+", " ".join([*rows, *SHAPES])))))


def _one_thing(thing: Thing, ground: str, rng: np.random.Generator) -> str:
    words = _thing(thing, _article(rng), rng)
    if thing.place == "middle" and rng.random() < 0.85:
        return _joined(words, ground, rng)
    place = _one_of(rng, _PLACE_WORDS[thing.place])
    match int(rng.integers(5)):
        case 0 | 1:
            return _joined(f"{words} {place}", ground, rng)
        case 2:
            return _joined(words, ground, rng) + _one_of(rng, (" ", ", ")) + place
        case 3:
            return f"{place}{_one_of(rng, (', ', ' '))}{words} {ground}"
        case _:
            return f"{ground}{_one_of(rng, (', ', ' '))}{place} {words}"


def _opened(opening: str, words: str) -> str:
    """ "Draw" goes before a thing, not before a place."""
    return words if re.match("(on|in|at|against|with|over|by|under|near|to) ", words) else opening + words


def _joined(words: str, ground: str, rng: np.random.Generator) -> str:
    chance = rng.random()
    if chance < 0.65:
        return f"{words} {ground}"
    if chance < 0.8:
        return f"{words}, {_bare(ground) if rng.random() < 0.5 else ground}"
    return f"{ground}{_one_of(rng, (', ', ' ', ': '))}{words}"


def _bare(ground: str) -> str:
    """`pink background` out of `on a pink background`."""
    return re.sub(r"^(on|against|with|in front of|over|in|at|by|under) (a |the )?", "", ground)


def _thing(thing: Thing, article: str, rng: np.random.Generator | None = None) -> str:
    if rng is None:
        words = [] if thing.size == "medium" else [thing.size]
        words += [thing.colour, thing.shape]
    else:
        words = [] if thing.size == "medium" else [_one_of(rng, _SIZE_WORDS[thing.size])]
        words += [_spelt(thing.colour, rng), thing.shape]
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join([article, *words] if article else words)


def _article(rng: np.random.Generator) -> str:
    return _one_of(rng, ("a", "a", "a", "a", "the", "one", ""))


def _spelt(word: str, rng: np.random.Generator) -> str:
    return "grey" if word == "gray" and rng.random() < 0.4 else word


def _background_words(background: str) -> tuple[str, ...]:
    return _SCENE_WORDS.get(background, _GROUND_WORDS)


def _dressed(words: str, rng: np.random.Generator) -> str:
    """An article mended, and a mark at the end now and then; case is the tokenizer's business."""
    words = re.sub(r"\ba (?=[aeiou])", "an ", words)
    return words + _one_of(rng, ("", "", "", "", "", ".", "!"))


def _one_of(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
