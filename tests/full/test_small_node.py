"""Stable Diffusion 2.1's text encoder on a node of 4 GB and 2 cores, from cold: built, converted, compiled and ready."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.full.control_group import limited_memory
from tests.full.real_stages import environment, start_once
from tests.full.results import record

pytestmark = pytest.mark.timeout(1800)

LIMIT_BYTES = 4 * 2**30
THREADS = 2


def test_the_text_encoder_of_2_starts_in_4_gb(stable_diffusion_2: Path, tmp_path: Path) -> None:
    told = environment(stable_diffusion_2, tmp_path / "compiled", THREADS=str(THREADS))
    with limited_memory(LIMIT_BYTES) as group:
        start = start_once("text_encoder", told, prefix=("taskset", "--cpu-list", "0,1", *group.prefix))
        charged = group.peak_bytes
    facts = {**start.facts(), "limit_bytes": LIMIT_BYTES, "peak_charged_bytes": charged, "threads": THREADS}
    record("cold starts", "text_encoder of 2.1 in 4 GiB", facts)
    assert "networks compiled" in start.log
    assert start.peak_anonymous_bytes < LIMIT_BYTES


def test_the_limit_limits() -> None:
    with limited_memory(2**28) as group:
        done = subprocess.run([*group.prefix, sys.executable, "-c", f"b'x' * {2**29}"], check=False)
    assert done.returncode == -signal.SIGKILL
