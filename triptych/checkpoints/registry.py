"""From what a user calls a model to the folder that holds it."""

from __future__ import annotations

from pathlib import Path

from triptych.errors import CheckpointError

EMBEDDED = {"vignette": Path(__file__).parents[1] / "vignette"}


def find_model(name: str) -> Path:
    """The folder of a model, given the name of an embedded one or a path.

    Raises:
        CheckpointError: There is no such model.
    """
    folder = EMBEDDED.get(name, Path(name))
    if not name or not folder.is_dir():
        raise CheckpointError(f"there is no model {name!r}: it is neither a folder nor one of {', '.join(sorted(EMBEDDED))}")
    return folder
