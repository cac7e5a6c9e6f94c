"""`python -m benchmarks.timing` as a process, on stand-ins: it is interrupted, and goes on where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.interrupts import hear_interrupts

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 20
"""Of some milliseconds each: too many to be done between the first and a signal."""

OPTIONS = f"--model stand-in --scenarios all-in-one --parts sequential --peers --rounds {ROUNDS} --batch 1"
SECONDS = 100

pytestmark = pytest.mark.timeout(2 * SECONDS)


def ignore_interrupts() -> None:
    """As whatever a shell starts in its background does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start(folder: Path, options: str = OPTIONS, *, first: Callable[[], None] = hear_interrupts) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.timing", *options.split(), "--folder", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=first)


def units(folder: Path) -> list[dict[str, Any]]:
    """What the journal has, without its first line and without one that is not complete."""
    journal = folder / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)[1:] if journal.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.parametrize(("number", "before"), [(signal.SIGINT, hear_interrupts), (signal.SIGTERM, ignore_interrupts)])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, number: int, before: Callable[[], None]) -> None:
    first = start(tmp_path, first=before)
    deadline = time.monotonic() + SECONDS
    while not units(tmp_path):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(number)
    _, errors = first.communicate(timeout=SECONDS)
    assert first.returncode == 130
    assert "the same command goes on from here" in errors
    assert not any(process.is_running() for process in started)
    kept = units(tmp_path)
    assert not (tmp_path / "results.json").exists()

    second = start(tmp_path)
    output, errors = second.communicate(timeout=SECONDS)
    assert second.returncode == 0, errors
    assert "The results are in" in output
    measured = units(tmp_path)
    assert measured[: len(kept)] == kept
    names = [unit["unit"] for unit in measured]
    assert sorted(names) == sorted(
        f"sequential/{subject}/{number}" for subject in ("all-in-one", "all-in-one, again") for number in range(ROUNDS)
    )
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["sequential"]["subjects"]["all-in-one"]["seconds"]["wall"]["rounds"] == ROUNDS
    assert document["model"]["diffusion"]["weights_digest"] == "0" * 64


def test_every_round_of_three_endpoints_asks_every_stage(tmp_path: Path) -> None:
    """No cache of contexts, in a stage or in the gateway, answers for the text encoder."""
    ended = start(tmp_path, OPTIONS.replace("all-in-one", "three-endpoints").replace(str(ROUNDS), "2"))
    _, errors = ended.communicate(timeout=SECONDS)
    assert ended.returncode == 0, errors
    encode = json.loads((tmp_path / "results.json").read_text())["sequential"]["subjects"]["three-endpoints"]["seconds"]["encode"]
    assert encode["rounds"] == 2
    assert encode["p10"] > 0


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(json.dumps({"options": {"profile": "real-size"}}) + "\n")
    ended = start(tmp_path)
    _, errors = ended.communicate(timeout=SECONDS)
    assert ended.returncode == 1
    assert "was begun with another" in errors
