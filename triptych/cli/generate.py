"""`triptych generate`: from a prompt to files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from triptych.cli.console import say, shown_progress, warn
from triptych.client import Client, Generation, Options, Picture
from triptych.errors import InvalidValue, TriptychError

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def write_pictures(
    prompt: str,
    output: Path,
    *,
    url: str,
    api_key: str | None,
    timeout_seconds: float,
    receipt: Path | None = None,
    **options: Any,
) -> Generation:
    """Has pictures made and writes them; several are numbered from 0.

    Args:
        receipt: A file for the receipt, with what `triptych verify` needs besides.
        options: Those of `client.Options`; None stands for the model's own default.

    Raises:
        TriptychError: The gateway refused, or a file cannot be written.
    """
    given = given_options(options, output)
    if receipt is not None:
        _expect_folder(receipt, param="receipt")
    with Client(url, api_key=api_key, timeout_seconds=timeout_seconds) as client, shown_progress() as show:
        generation = client.generate(prompt, on_progress=show, **given)
    save(generation.pictures, output)
    if receipt is not None:
        _write(receipt, json.dumps(_receipt(generation), indent=1).encode())
    for warning in generation.warnings:
        warn(warning)
    return generation


def given_options(options: Mapping[str, Any], output: Path) -> Options:
    """What is sent of a command's options: pictures to change are read, and the file to write says its format.

    Raises:
        InvalidValue: A picture cannot be read, or the file cannot be one.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given["output_format"] = format_of(output)
    given |= {name: _read(given[name], param=name) for name in ("image", "mask") if name in given}
    return cast(Options, given)


def save(pictures: Sequence[Picture], output: Path, *, silently: bool = False) -> None:
    """Writes pictures, and unless silently says where; several are numbered from 0."""
    for picture, path in zip(pictures, _paths(output, len(pictures)), strict=True):
        _write(path, picture.data)
        if not silently:
            say(f"{path} (seed {picture.seed})")


def _read(path: Path, *, param: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read: {error.strerror}", param=param) from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise TriptychError(f"{path} cannot be written: {error.strerror}") from None


def _receipt(generation: Generation) -> dict[str, Any]:
    """As in the gateway's own answer, without the pictures."""
    return {
        "id": generation.id,
        "images": [{"seed": picture.seed} for picture in generation.pictures],
        "parameters": generation.parameters,
        "receipt": generation.receipt,
    }


def format_of(output: Path) -> str:
    """By the file's ending, and before anything is asked for: a folder that is missing should not cost a picture."""
    if output.suffix.lower() not in FORMATS:
        raise InvalidValue(f"{output} must end in {', '.join(FORMATS)}", param="output")
    _expect_folder(output, param="output")
    return FORMATS[output.suffix.lower()]


def _expect_folder(path: Path, *, param: str) -> None:
    if not path.parent.is_dir():
        raise InvalidValue(f"the folder {path.parent} does not exist", param=param)


def _paths(output: Path, number: int) -> list[Path]:
    if number == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{index}") for index in range(number)]
