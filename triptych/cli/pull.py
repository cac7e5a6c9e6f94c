"""`triptych pull`: has a model, or one stage's part of it, on this machine."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from triptych.cli.console import say, shown_download
from triptych.cli.models import read_registry
from triptych.errors import TriptychError

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
    from triptych.checkpoints.entries import SourceKind

    entry = registry.entry(name)
    if (variant or revision) and not entry.hub_ids:
        raise TriptychError(f"{entry.name} is not on the Hub: it has no revisions and no variants")
    if from_folder and entry.source.kind is not SourceKind.KERAS_CV:
        raise TriptychError(f"--from is for what keras-cv downloaded, and {entry.name} comes from {entry.source}")
    entry = replace(entry, variant=variant or entry.variant, revision=revision or entry.revision)
    model, networks = registry.model(entry), networks_of(stage)
    part = entry.name if stage is None else f"the {stage} of {entry.name}"
    if model.is_here(networks):
        say(f"{part} is on this machine already: {model.fetch(networks)}")
        return
    _show_licence(entry, registry.models_folder)
    if entry.source.kind is SourceKind.KERAS_CV:
        model.convert(networks, source=from_folder)
    else:
        with shown_download(part) as show:
            model.fetch(networks, on_progress=show)
        if TEXT_ENCODER in networks:
            model.tokenizer  # noqa: B018 - of a single file it is fetched from elsewhere
    for network in networks:
        with model.tensors(network):
            pass  # what is missing or damaged is said here
    say(f"{part} is on this machine: {model.fetch(networks)}")


def networks_of(stage: str | None) -> tuple[Any, ...]:
    """What a stage runs; all networks where none is named."""
    from triptych.stages.fit import NETWORKS

    return tuple(network for name, networks in NETWORKS.items() if stage in (None, name) for network in networks)


def _show_licence(entry: Any, folder: Path) -> None:
    """Says once on this machine under which licence a model is; again where the registry has learnt of another one."""
    if entry.licence is None:
        return
    path = folder / SHOWN_LICENCES
    try:
        shown = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        shown = {}
    if not isinstance(shown, dict):
        shown = {}
    notice = f"{entry.licence}" + (f", to be read at {entry.licence_url}" if entry.licence_url else "")
    if shown.get(entry.name) == notice:
        return
    say(f"{entry.name} is under the licence {notice}; who uses it agrees to that. This is said once.")
    shown[entry.name] = notice
    _write(path, json.dumps(shown, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise TriptychError(f"{path} cannot be written: {error.strerror}") from None
