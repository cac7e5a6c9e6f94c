"""`triptych pull`: has a model, or one stage's part of it, on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from triptych.cli.console import say, shown_download
from triptych.cli.models import read_registry
from triptych.errors import TriptychError

KERAS_CV = "keras-cv"
TEXT_ENCODER = "text_encoder"
SHOWN_LICENCES = "licences-shown.json"


def pull_model(name: str, *, stage: str | None, variant: str | None, revision: str | None, from_folder: Path | None) -> None:
    """Downloads what is missing, and says what is there then.

    Args:
        stage: Whose part is wanted; None is all three.
        from_folder: Files that keras-cv downloaded elsewhere.

    Raises:
        TriptychError: It cannot be had; nothing half-written is left where a service would look.
    """
    registry = read_registry()
    entry = _wanted(registry.entry(name), variant, revision, from_folder)
    model, networks = registry.model(entry), networks_of(stage)
    part = entry.name if stage is None else f"the {stage} of {entry.name}"
    if model.is_here(networks):
        say(f"{part} is on this machine already: {model.fetch(networks)}")
        return
    with _licence_told(entry, registry.models_folder / SHOWN_LICENCES):
        if entry.source.kind == KERAS_CV:
            model.convert(networks, source=from_folder)
        else:
            with shown_download(part) as show:
                model.fetch(networks, on_progress=show)
        _open(model, networks)
    say(f"{part} is on this machine: {model.fetch(networks)}")


def _wanted(entry: Any, variant: str | None, revision: str | None, from_folder: Path | None) -> Any:
    """The entry with what was asked for, where that means something for it."""
    if (variant or revision) and not entry.hub_ids:
        raise TriptychError(f"{entry.name} is not on the Hub: it has no revisions and no variants")
    if from_folder and entry.source.kind != KERAS_CV:
        raise TriptychError(f"--from is for what keras-cv downloaded, and {entry.name} comes from {entry.source}")
    return replace(entry, variant=variant or entry.variant, revision=revision or entry.revision)


def _open(model: Any, networks: tuple[Any, ...]) -> None:
    """What is missing or damaged is said here; a single file's vocabulary is fetched from elsewhere."""
    if TEXT_ENCODER in networks:
        model.tokenizer  # noqa: B018 - see above
    for network in networks:
        with model.tensors(network):
            pass


def networks_of(stage: str | None) -> tuple[Any, ...]:
    """What a stage runs; all networks where none is named."""
    from triptych.stages.fit import NETWORKS

    return tuple(network for name, networks in NETWORKS.items() if stage in (None, name) for network in networks)


@contextmanager
def _licence_told(entry: Any, path: Path) -> Iterator[None]:
    """Says under which licence a model is, and not again on this machine once the pull has succeeded.

    Args:
        path: Where it is kept what was said.
    """
    notice = f"{entry.licence}, to be read at {entry.licence_url}" if entry.licence_url else entry.licence
    if notice is None or _shown_notices(path).get(entry.name) == notice:
        yield
        return
    say(f"{entry.name} is under the licence {notice}; who uses it agrees to that. This is said once.")
    yield
    _write(path, json.dumps({**_shown_notices(path), entry.name: notice}, indent=1) + "\n")


def _shown_notices(path: Path) -> dict[str, str]:
    """What was said on this machine when models were pulled, by name; a file that is damaged counts as none."""
    try:
        shown = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return shown if isinstance(shown, dict) else {}


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise TriptychError(f"{path} cannot be written: {error.strerror}") from None
