"""From what a user calls a model to its checkpoint."""

from __future__ import annotations

from pathlib import Path

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.errors import CheckpointError

EMBEDDED = {"vignette": Path(__file__).parents[1] / "vignette"}


def find_model(name: str) -> Checkpoint:
    """The model of that name, or of that path.

    Raises:
        CheckpointError: There is no such model.
    """
    folder = EMBEDDED.get(name, Path(name))
    if not name or not folder.is_dir():
        raise CheckpointError(f"there is no model {name!r}: it is neither a folder nor one of {', '.join(sorted(EMBEDDED))}")
    return DiffusersFolder(folder)
