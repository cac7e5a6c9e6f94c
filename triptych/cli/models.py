"""`triptych models`: which models there are by name, and what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.cli.console import say, show_rows, warn
from triptych.errors import TriptychError

LOOPBACK = "127.0.0.1"
NOTHING = "-"


def stage_settings(model: str | None = None, **values: Any) -> Any:
    """What the environment tells a stage on this machine; its door is never opened here.

    Args:
        values: Settings that are given here, whatever the environment says.

    Raises:
        StartError: A setting is impossible.
    """
    from triptych.serving.settings import StageSettings, read_settings

    return read_settings(StageSettings, host=LOOPBACK, **values, **({} if model is None else {"model": model}))


def read_registry() -> Any:
    """All models by name.

    Raises:
        TriptychError: This machine has the base install only, or a file of names cannot be read.
    """
    try:
        from triptych.checkpoints.registry import Registry
    except ModuleNotFoundError as error:
        raise TriptychError(
            f"{error.name} is not installed: models are for machines with an engine, pip install 'triptych[openvino]'"
        ) from None
    settings = stage_settings()
    return Registry.read(settings.models_file, settings.models_folder)


def list_models() -> None:
    """Names, families, sizes, licences, and what is on this machine."""
    registry = read_registry()
    show_rows(
        ("name", "family", "size", "licence", "here"),
        [
            (name, entry.family or NOTHING, _size(entry), entry.licence or NOTHING, _here(registry, entry))
            for name, entry in sorted(registry.entries.items())
        ],
    )


def show_model(name: str) -> None:
    """All that is known of a model without downloading anything.

    Raises:
        TriptychError: There is no such model.
    """
    registry = read_registry()
    entry = registry.entry(name)
    facts: dict[str, Any] = {
        "name": entry.name,
        "source": entry.source,
        "mirrors": ", ".join(entry.mirrors),
        "revision": entry.revision,
        "variant": entry.variant,
        "family": entry.family,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        **{"latent_space": None, "text_space": None, **entry.spaces},
        "size": _size(entry),
        "sampler": entry.sampler,
        "num_steps": entry.num_steps,
        "guidance_scale": entry.guidance_scale,
        "prediction_type": entry.prediction_type,
        "tokenizer": entry.tokenizer,
        "here": _here(registry, entry),
    }
    show_rows(("fact", "value"), [(key, str(value)) for key, value in facts.items() if value not in (None, "", NOTHING)])


def add_model(name: str, source: str, *, replace: bool, **facts: Any) -> None:
    """Writes a model into the user's own file.

    Args:
        source: A path, which is kept as an absolute one, or what stands in the file.
        facts: Further keys of the entry; those that are None are left out.

    Raises:
        TriptychError: The name is taken, or a value is impossible.
    """
    read_registry()  # what is wrong in the file already is said first
    from triptych.checkpoints.entries import write_entry
    from triptych.stages.fit import check_sampler

    if facts["sampler"] is not None:
        check_sampler(facts["sampler"])
    if facts["size"] is not None:
        facts["size"] = _read_size(facts["size"])
    if facts["tokenizer"] is not None:
        facts["tokenizer"] = str(Path(facts["tokenizer"]).expanduser().resolve())
    path = Path(source).expanduser()
    file = stage_settings().models_file
    placed = str(path.resolve()) if path.exists() else source
    entry = write_entry(file, name, {"source": placed, **facts}, replace=replace)
    say(f"{entry.name} is {entry.source} from now on: {file}")
    if entry.source.is_gone:
        warn(f"there is no {entry.source} yet")


def _read_size(text: str) -> list[int]:
    width, cross, height = text.partition("x")
    if not (width.isdecimal() and cross and height.isdecimal()):
        raise TriptychError(f"a size is width x height in pixels, such as 512x512, not {text!r}")
    return [int(width), int(height)]


def _size(entry: Any) -> str:
    return NOTHING if entry.size is None else "{}x{}".format(*entry.size)


def _here(registry: Any, entry: Any) -> str:
    """Which stages' parts are on this machine."""
    from triptych.stages.fit import NETWORKS

    model = registry.model(entry)
    stages = [stage for stage, networks in NETWORKS.items() if model.is_here(networks)]
    return "all" if len(stages) == len(NETWORKS) else ", ".join(stages) or NOTHING
