"""Commands whose code is in the repository's `benchmarks/`, which is no part of the package: this process becomes theirs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from triptych.errors import TriptychError

CHECKOUT = Path(__file__).resolve().parents[2]


def become_benchmark(module: str, arguments: Sequence[str], *, checkout: Path = CHECKOUT) -> NoReturn:
    """Runs `python -m module` in place of this process.

    Args:
        module: Such as `benchmarks.timing`.
        checkout: Where the repository is.

    Raises:
        TriptychError: It is not there: this is an installed package.
    """
    if not checkout.joinpath(*module.split(".")).is_dir():
        raise TriptychError(f"{module} is part of the repository and not of the installed package: run this in a checkout of it")
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)
