"""A folder that all processes of one test run share, so that what takes long is made once for them all."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

_VARIABLE = "TESTS_SHARED_FOLDER"


@cache
def shared_folder() -> Path:
    """Made by the process that asks first, and removed when that one ends; those that it starts inherit it."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="triptych-tests-")
        atexit.register(shutil.rmtree, os.environ[_VARIABLE], ignore_errors=True)
    return Path(os.environ[_VARIABLE])


def made_once(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder of that name in the shared one: filled by one process, while others that ask for it wait."""
    folder = shared_folder() / name
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=shared_folder()))
            fill(unfinished)
            unfinished.rename(folder)
    return folder
