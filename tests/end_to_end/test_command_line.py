"""`triptych demo` and `triptych up`, as a person runs them, with a tiny model."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from PIL import Image

from tests.end_to_end.real_services import START_SECONDS, TinyModel
from tests.interrupts import hear_interrupts
from triptych.cli.processes import is_free

pytestmark = pytest.mark.timeout(600)

TRIPTYCH = (sys.executable, "-m", "triptych.cli")


def environment(model: TinyModel, **more: str) -> dict[str, str]:
    return {**os.environ, **model.environment, **more}


def four_ports_in_a_row() -> int:
    """The first of four ports that are free, below those that Linux gives to whoever asks for any.

    Whoever takes one of them in between makes a test fail, not pass.
    """
    while not all(map(is_free, range(first := random.randrange(10_000, 32_000), first + 4))):
        pass
    return first


class Up:
    """`triptych up` with all that it started."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []
        self._read_until_ready()
        self.services = psutil.Process(process.pid).children(recursive=True)

    def _read_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("The gateway is at"):
                return
        raise AssertionError("\n".join(self.lines))

    def serving(self, name: str) -> psutil.Process:
        return next(service for service in self.services if name in service.cmdline())

    def end(self) -> tuple[int, str]:
        """Waits for the end; returns the exit code and what was said after the start, on both streams."""
        out, _ = self.process.communicate(timeout=100)
        return self.process.returncode, out

    def left(self) -> list[psutil.Process]:
        """Services that still run, after a while in which they may end."""
        _, alive = psutil.wait_procs(self.services, timeout=60)
        return alive


@contextmanager
def up(model: TinyModel) -> Iterator[Up]:
    port = four_ports_in_a_row()
    process = subprocess.Popen(
        [*TRIPTYCH, "up", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(model),
        preexec_fn=hear_interrupts,
    )
    try:
        yield Up(process, port)
    finally:
        process.kill()
        process.communicate()


def test_the_demo_makes_a_picture_and_leaves_nothing_running(tiny_model: TinyModel, tmp_path: Path) -> None:
    started = time.time()
    ended = subprocess.run(
        [*TRIPTYCH, "demo", "a red circle", "--port", str(four_ports_in_a_row())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tiny_model),
        timeout=2 * START_SECONDS,
    )

    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "triptych.png") as picture:
        assert picture.format == "PNG"
    assert re.search(r"^triptych\.png \(seed \d+\)$", ended.stdout, re.MULTILINE)
    for row in ("text_encoder", "diffusion", "decoder", "total"):
        assert re.search(rf"{row} .*\d+\.\d{{3}}", ended.stdout)
    assert [process for process in services_since(started) if str(tiny_model.folder) in environ(process)] == []


def services_since(moment: float) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if process.create_time() > moment]


def environ(process: psutil.Process) -> str:
    try:
        return process.environ().get("TRIPTYCH_MODEL", "")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def test_the_demo_takes_other_ports_where_its_own_are_taken(tiny_model: TinyModel, tmp_path: Path) -> None:
    with up(tiny_model) as running:
        port = running.url.rpartition(":")[2]
        ended = subprocess.run(
            [*TRIPTYCH, "demo", "--port", port],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment(tiny_model),
            timeout=2 * START_SECONDS,
        )
    assert ended.returncode == 0, ended.stderr
    assert running.url not in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_until_it_is_told_to_stop_and_stops_all(tiny_model: TinyModel, number: signal.Signals) -> None:
    with up(tiny_model) as running:
        assert len(running.services) == 4
        response = httpx2.post(f"{running.url}/generate", json={"prompt": "a red circle"}, timeout=60)
        assert response.status_code == 200
        decoder = f"http://127.0.0.1:{int(running.url.rpartition(':')[2]) + 3}"
        refused = httpx2.post(f"{running.url}/admin/swap", json={"stage": "decoder", "to": [decoder]}, timeout=60)
        assert "is at" in refused.json()["error"]["message"], "it follows a topology file, in which stages can be swapped"

        running.process.send_signal(number)
        code, _ = running.end()

        assert code == 130
        assert running.left() == []


def test_one_service_that_dies_stops_all_with_its_last_lines(tiny_model: TinyModel) -> None:
    with up(tiny_model) as running:
        os.kill(running.serving("diffusion").pid, signal.SIGKILL)
        code, said = running.end()

        assert code == 1
        assert "error: the diffusion service ended with exit code -9" in said
        assert running.left() == []


def test_no_service_outlives_an_up_that_is_killed(tiny_model: TinyModel) -> None:
    with up(tiny_model) as running:
        running.process.kill()
        assert running.left() == []


def test_a_service_that_cannot_start_says_why_and_stops_all(tiny_model: TinyModel, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*TRIPTYCH, "demo", "--port", str(four_ports_in_a_row())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tiny_model, TRIPTYCH_MODEL=str(tmp_path / "nowhere")),
        timeout=START_SECONDS,
    )
    assert ended.returncode == 1
    assert re.search(r"error: the \w+ service ended with exit code 3", ended.stderr)
    assert "nowhere" in ended.stderr
    assert not (tmp_path / "triptych.png").exists()
