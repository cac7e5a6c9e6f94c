"""A diffusion service is exchanged for one of another model at the same address: what runs is finished, what comes waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from tests.end_to_end.real_services import TinyModel, four_tiny_services, running
from tests.end_to_end.test_faults import Panels
from tests.tiny_models import write_tiny_model
from triptych.cli.processes import Service
from triptych.client import Progress

pytestmark = pytest.mark.timeout(600)

PATIENCE_SECONDS = 200.0
LONG = 150
EARLY = 5
"""An evaluation of the long request at which nearly all of it is still to be done."""


@pytest.fixture
def panels(tiny_model: TinyModel) -> Iterator[Panels]:
    """With a gateway that is as patient as this test."""
    *stages, gateway = four_tiny_services(tiny_model)
    patient = replace(gateway, environment={**gateway.environment, "TRIPTYCH_STAGE_WAIT_SECONDS": str(PATIENCE_SECONDS)})
    with running((*stages, patient)) as group:
        yield Panels(group)


def another_diffusion(model: TinyModel, place: Service, folder: Path) -> Service:
    """Of another model, prepared as in an image. It fits to the first one's text encoder and decoder."""
    other = replace(model, folder=write_tiny_model(folder, seed=1)).served_by(replace(place, environment={}))
    service = replace(other, environment={**other.environment, "TRIPTYCH_BATCH_SIZES": "1,2"})
    command = (sys.executable, "-m", "triptych.cli", "prepare", "diffusion")
    subprocess.run(command, env={**os.environ, **service.environment}, check=True, timeout=PATIENCE_SECONDS)
    return service


def early(do: Callable[[], None]) -> Callable[[Progress], None]:
    """Has something done early in a long denoising, once: it may begin anew."""
    left = [do]

    def note(progress: Progress) -> None:
        if progress.position == EARLY and left:
            left.pop()()

    return note


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_missing(panels: Panels) -> bool:
    return httpx2.get(f"{panels.url}/health/ready").status_code == 503


def test_what_runs_is_finished_and_what_comes_meanwhile_is_made_by_the_next_model(
    panels: Panels, tiny_model: TinyModel, tmp_path: Path
) -> None:
    diffusion = panels.process("diffusion")
    another = another_diffusion(tiny_model, diffusion.service, tmp_path / "another")
    expected = panels.generate(num_steps=LONG)
    lines_before = len(diffusion.lines)
    terminate = early(diffusion.terminate)
    with ThreadPoolExecutor() as pool:
        long = pool.submit(panels.generate, seconds=PATIENCE_SECONDS, num_steps=LONG, on_progress=terminate)
        # The gateway misses the stage, whose last request is still at work.
        until(lambda: is_missing(panels))
        waiting = pool.submit(panels.generate, seconds=PATIENCE_SECONDS)
        finished = long.result()
        diffusion.wait(30)
        gone = time.monotonic()
        assert diffusion._process.returncode == 0, "it ended by itself, and was not killed"

        panels.start_again("diffusion", another)
        made = waiting.result()
        print(f"answered {time.monotonic() - gone:.1f} s after the old stage had gone")  # noqa: T201

    assert finished.pictures == expected.pictures
    assert finished.receipt == expected.receipt
    assert finished.warnings == ()
    log = list(diffusion.lines)[lines_before:]
    place = {word: next(index for index, line in enumerate(log) if word in line) for word in ("Shutting down", "/infer")}
    assert place["Shutting down"] < place["/infer"], "it was told to stop in the middle of the request"

    stages = made.receipt["stages"]
    assert stages["diffusion"]["weights_digest"] != expected.receipt["stages"]["diffusion"]["weights_digest"]
    assert stages["decoder"] == expected.receipt["stages"]["decoder"]
    assert made.timings["queue_seconds"] > 0.5
    assert made.pictures == panels.generate().pictures


def test_a_stage_that_is_killed_in_the_middle_costs_time_and_not_the_request(panels: Panels) -> None:
    expected = panels.generate(num_steps=LONG)
    diffusion = panels.process("diffusion")
    kill = early(lambda: os.kill(diffusion.pid, signal.SIGKILL))
    with ThreadPoolExecutor() as pool:
        request = pool.submit(panels.generate, seconds=PATIENCE_SECONDS, num_steps=LONG, on_progress=kill)
        diffusion.wait(PATIENCE_SECONDS)
        panels.start_again("diffusion")
        generation = request.result()
    assert generation.pictures == expected.pictures
    assert generation.warnings == (), "it went on from its newest state: there is nothing to tell"
