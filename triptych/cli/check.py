"""`triptych check`: loads a model's networks, one after the other, and sees whether they fit."""

from __future__ import annotations

from typing import Any

from triptych.cli.console import say, show_rows, waiting_for
from triptych.cli.models import read_registry, stage_settings
from triptych.errors import TriptychError


def check_model(name: str, *, stage: str | None) -> None:
    """Prints what was found of each network, and that all fit.

    Args:
        stage: Whose networks are looked at; None is all three.

    Raises:
        TriptychError: A network cannot be loaded, or does not fit; one sentence.
    """
    registry = read_registry()
    from triptych.stages.fit import NETWORKS, check_fit, load_alone

    entry = registry.entry(name)
    model = registry.model(entry)
    stages = [each for each in NETWORKS if stage in (None, each)]
    networks = [network for each in stages for network in NETWORKS[each]]
    if entry.hub_ids and not model.is_here(networks):
        raise TriptychError(f"{name} is not on this machine, or not all of it: `triptych pull {name}` comes first")
    check_fit(model, stages)
    backend = stage_settings().engine
    found = []
    for network in networks:
        with waiting_for(f"loading the {network} of {name}"):
            found.append(load_alone(model, network, backend=backend))
    show_rows(("network", "parameters", "on disk", "dtype", "sha256"), list(map(_row, found)))
    facts = model.facts
    say(
        f"{name} is {'sound' if stage is None else 'sound in what its ' + stage + ' needs'}: latent_space {facts.latent_space}, "
        f"text_space {facts.text_space}, {facts.sampler}, {facts.num_steps} steps"
    )


def _row(found: Any) -> tuple[str, ...]:
    size = f"{found.weights_bytes / 1e6:.1f} MB"
    return found.network.value, f"{found.parameters:,}", size, ", ".join(found.dtypes), found.digest
