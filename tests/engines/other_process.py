"""The toy network in a process of its own, for the engines that are not this process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_toy(engine: str, precisions: str, cache_folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.engines.toy_network", engine, precisions, str(cache_folder)]
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}  # the engine knows better
    process = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer
