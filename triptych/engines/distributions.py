"""Which distributions are installed, by their metadata alone."""

from __future__ import annotations

from importlib import metadata

from triptych.errors import EngineError

_TENSORFLOWS = ("tensorflow", "tensorflow-cpu")


def installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def refuse_two_tensorflows() -> None:
    """Both distributions own the same files: whichever pip wrote last has overwritten half of the other.

    Raises:
        EngineError: Both are installed.
    """
    if all(installed_version(name) for name in _TENSORFLOWS):
        raise EngineError(
            "tensorflow and tensorflow-cpu are both installed and overwrite each other's files: "
            "pip uninstall tensorflow tensorflow-cpu, and install one of them again"
        )
