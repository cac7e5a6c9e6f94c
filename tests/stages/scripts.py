"""Scripts of these tests in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_script(*arguments: object) -> bytes:
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}  # the engine knows better
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE).stdout
