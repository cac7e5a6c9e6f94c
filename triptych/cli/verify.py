"""`triptych verify`: makes a picture again from the parameters in its file, and compares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from triptych.cli.console import say, shown_progress
from triptych.cli.png import Png, read_png
from triptych.client import Client, Generation, Options
from triptych.errors import TriptychError

HANDED_ON = {"context": "text_encoder", "latents": "diffusion", "pixels": "decoder"}
"""What a receipt names, in the order in which it is made, and the stage that makes it."""


def is_the_same(path: Path, *, url: str, api_key: str | None, timeout_seconds: float, receipt: Path | None) -> bool:
    """Whether the picture in the file is what the gateway makes of its parameters today; says so in a sentence.

    Args:
        receipt: A file with the receipt of when the picture was made: `/generate`'s answer, or what `generate --receipt` wrote.

    Raises:
        TriptychError: It cannot be found out: no parameters in the file, or no gateway that takes them.
    """
    data = _read(path)
    png = _about(path, read_png, data)
    parameters = _parameters(path, png)
    kept = None if receipt is None else _kept_receipt(receipt, parameters["seed"])
    generation = _make_again(parameters, url=url, api_key=api_key, timeout_seconds=timeout_seconds)
    (picture,) = generation.pictures
    if picture.data == data:
        say(f"{path} is the same, byte for byte")
        return True
    before, now = _about(path, Png.pixels, png), read_png(picture.data).pixels()
    if np.array_equal(before, now):
        say(f"{path} is the same in all its pixels; the file around them was written anew")
        return True
    cause = "" if kept is None else f"; {_where_it_differs(kept, _of_one_picture(generation.receipt, 0))}"
    say(f"{path} is different: {_difference(before, now)}{cause}")
    return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TriptychError(f"{path} cannot be read: {error.strerror}") from None


def _about(path: Path, function: Any, argument: Any) -> Any:
    try:
        return function(argument)
    except TriptychError as error:
        raise TriptychError(f"{path} cannot be verified: {error.message}") from None


def _parameters(path: Path, png: Png) -> dict[str, Any]:
    """What makes the picture again. The gateway checks it like any request."""
    try:
        parameters = json.loads(png.text or "")
    except ValueError:
        parameters = None
    if not isinstance(parameters, dict) or not {"prompt", "seed"} <= parameters.keys():
        raise TriptychError(f"{path} has no parameters in it from which it could be made again")
    if "image_sha256" in parameters:
        raise TriptychError(f"{path} was made from another picture, which is not in it, so it cannot be made again from itself")
    if unknown := parameters.keys() - {"prompt", *Options.__annotations__}:
        raise TriptychError(f"{path} has the parameter {min(unknown)!r}, which this version does not know")
    return parameters


def _make_again(parameters: Mapping[str, Any], *, url: str, api_key: str | None, timeout_seconds: float) -> Generation:
    options = {name: value for name, value in parameters.items() if name != "prompt"}
    options |= {"num_images": 1, "output_format": "png"}
    with Client(url, api_key=api_key, timeout_seconds=timeout_seconds) as client, shown_progress() as show:
        return client.generate(parameters["prompt"], on_progress=show, **cast(Options, options))


def _kept_receipt(path: Path, seed: int) -> dict[str, Any]:
    try:
        answer = json.loads(_read(path))
        seeds = [image["seed"] for image in answer["images"]]
        return _of_one_picture(answer["receipt"], seeds.index(seed))
    except (ValueError, LookupError, TypeError):
        raise TriptychError(f"{path} has no receipt of this picture") from None


def _of_one_picture(receipt: Mapping[str, Any], index: int) -> dict[str, Any]:
    pixels = receipt["pixels"]
    return {
        "context": receipt["context"],
        "latents": receipt["latents"][index],
        "pixels": None if pixels is None else pixels[index],
        "stages": {
            stage: {"weights": receipt["stages"][stage]["weights_digest"], "numerics": receipt["stages"][stage]["numerics"]}
            for stage in HANDED_ON.values()
        },
    }


def _where_it_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first stage that hands on something else than it did, and what else is new about it."""
    told = [name for name in HANDED_ON if before[name] is not None and now[name] is not None]
    changed = next((name for name in told if before[name] != now[name]), None)
    if changed is None:
        unknown = "" if "pixels" in told else " or the decoder"
        return f"{', '.join(told)} are what the receipt says, so it is the file{unknown} that changed"
    stage = HANDED_ON[changed]
    news = [what for what, then in before["stages"][stage].items() if then != now["stages"][stage][what]]
    return f"the {stage} stage makes other {changed} now" + (f", and has other {' and other '.join(news)}" if news else "")


def _difference(before: Any, now: Any) -> str:
    if before.shape != now.shape:
        return f"it has {before.shape[1]}x{before.shape[0]} pixels, and is made with {now.shape[1]}x{now.shape[0]}"
    levels = np.abs(before.astype(np.int16) - now).max(axis=2)
    return f"{np.count_nonzero(levels)} of {levels.size} pixels, by up to {levels.max()} of 255 levels"
