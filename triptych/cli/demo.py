"""`triptych demo`: from nothing to a picture, by four real processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from triptych.cli.console import say, show_timings, waiting_for
from triptych.cli.generate import write_pictures
from triptych.cli.processes import Service, ServiceGroup
from triptych.cli.topology import four_services, ports_from_or_free
from triptych.cli.up import START_SECONDS, say_ready

PICTURE_SECONDS = 300.0


def show(prompt: str, port: int, output: Path) -> None:
    """Starts the services, has one picture made, says where the time went, and stops the services.

    Raises:
        TriptychError: One sentence that says what did not work.
    """
    *stages, gateway = four_services(ports_from_or_free(port))
    say("Starting the text encoder, the diffusion model, the decoder and the gateway, each as a process of its own.")
    with TemporaryDirectory() as folder, ServiceGroup([*stages, _without_jobs(gateway, folder)], on_line=_ignore) as group:
        with waiting_for("waiting until all four are ready"):
            group.wait_until_ready(seconds=START_SECONDS, on_ready=say_ready)
        say(f"Asking {gateway.url}/generate for: {prompt}")
        generation = write_pictures(prompt, output, url=gateway.url, api_key=_own_key(), timeout_seconds=PICTURE_SECONDS)
        show_timings(generation.timings)


def _without_jobs(gateway: Service, folder: str) -> Service:
    """Those that another gateway of this user has left are none of the demo's."""
    return replace(gateway, environment={**gateway.environment, "TRIPTYCH_JOBS_DATABASE": os.path.join(folder, "jobs.sqlite3")})


def _ignore(_name: str, _line: str) -> None:
    """What a service logs is not shown; its last lines are, where it ends."""


def _own_key() -> str | None:
    """What the gateway that was just started demands, if the environment told it to."""
    return os.environ.get("TRIPTYCH_API_KEYS", "").split(",")[0].strip() or None
