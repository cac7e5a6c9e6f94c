"""Stages of a model of full size as processes, and what they take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import PeakMemory

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("text_encoder", "diffusion", "decoder")


def environment(model: Path, cache: Path, **settings: str) -> dict[str, str]:
    told = {"MODEL": str(model), "CACHE_FOLDER": str(cache), **settings}
    return {f"TRIPTYCH_{name}": value for name, value in told.items()}


@dataclass(frozen=True, kw_only=True)
class Start:
    """A stage's whole start, from weights on disk to ready, the search for exact batch sizes included."""

    seconds: float
    peak_anonymous_bytes: int
    peak_file_bytes: int
    log: str

    def facts(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "peak_anonymous_bytes": self.peak_anonymous_bytes,
            "peak_file_bytes": self.peak_file_bytes,
        }


def start_once(stage: str, told: Mapping[str, str], *, prefix: Sequence[str] = ()) -> Start:
    """Starts a stage, `triptych prepare`, and waits for its end.

    Args:
        told: Environment variables.
        prefix: A program that runs the command, with its arguments.
    """
    command = [*prefix, sys.executable, "-m", "triptych.cli", "prepare", stage]
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **told}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with PeakMemory(process.pid) as peak:
        log, _ = process.communicate()
    print(log)  # noqa: T201  # pytest shows it where the test fails
    assert process.returncode == 0, f"exit code {process.returncode}"
    return Start(seconds=time.monotonic() - started, peak_anonymous_bytes=peak.anonymous, peak_file_bytes=peak.file, log=log)
