"""Where training keeps its state: a folder outside the repository, written so that a crash leaves the state before or after."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs


def cache_folder(stage: str) -> Path:
    """The folder of one stage, made if need be: under $TRIPTYCH_CACHE_FOLDER, or under the platform's cache folder."""
    root = os.environ.get("TRIPTYCH_CACHE_FOLDER") or platformdirs.user_cache_dir("triptych")
    folder = Path(root) / "training" / stage
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays whole or not at all."""
    draft = path.with_suffix(".part.npz")
    np.savez(draft, **arrays)  # type: ignore[arg-type]  # the stub has a flag in its way
    os.replace(draft, path)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file that `save_arrays` wrote."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """Changes when one of them does, or their order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()


def report(stage: str, **values: Any) -> None:
    """Appends one line of progress to `progress.jsonl` in the stage's folder, and prints it."""
    line = json.dumps({"time": time.strftime("%H:%M:%S"), **values})
    with (cache_folder(stage) / "progress.jsonl").open("a") as file:
        file.write(line + "\n")
    print(stage, line, flush=True)
