"""`triptych demo`: from nothing to a picture, by four real processes."""

from __future__ import annotations

import os
from pathlib import Path

from triptych.cli.console import say, show_timings, waiting_for
from triptych.cli.generate import write_pictures
from triptych.cli.processes import ServiceGroup
from triptych.cli.topology import four_services, ports_from_or_free
from triptych.cli.up import START_SECONDS, say_ready

PICTURE_SECONDS = 300.0


def show(prompt: str, port: int, output: Path) -> None:
    """Starts the services, has one picture made, says where the time went, and stops the services.

    Raises:
        TriptychError: One sentence that says what did not work.
    """
    services = four_services(ports_from_or_free(port))
    say("Starting the text encoder, the diffusion model, the decoder and the gateway, each as a process of its own.")
    with ServiceGroup(services, on_line=lambda name, line: None) as group:
        with waiting_for("waiting until all four are ready"):
            group.wait_until_ready(seconds=START_SECONDS, on_ready=say_ready)
        say(f"Asking {services[-1].url}/generate for: {prompt}")
        generation = write_pictures(prompt, output, url=services[-1].url, api_key=_own_key(), timeout_seconds=PICTURE_SECONDS)
        show_timings(generation.timings)


def _own_key() -> str | None:
    """What the gateway that was just started demands, if the environment told it to."""
    return os.environ.get("TRIPTYCH_API_KEYS", "").split(",")[0].strip() or None
