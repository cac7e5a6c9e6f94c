"""Where a run's files go: an unfinished run of the same options is gone on with, else a folder of today is begun."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS
from benchmarks.timing.journal import Journal

RESULTS_FILE = "results.json"


def choose_folder(wanted: Path | None, header: Mapping[str, Any], *, results: Path = RESULTS) -> Path:
    """The folder that was asked for, or one under `results`.

    Args:
        header: Of the run: its machine names the folder, and its options find one that was begun.
    """
    if wanted is not None:
        return wanted
    machine = slug(header["machine"].rpartition(",")[0])
    begun = [folder for folder in sorted(results.glob(f"*-{machine}*")) if _is_begun(folder, header)]
    if begun:
        return begun[-1]
    name = f"{datetime.now(UTC):%Y-%m-%d}-{machine}-{header['options']['profile']}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(results / each for each in names if not (results / each).exists())


def slug(text: str) -> str:
    """Letters and digits in lower case, with hyphens between."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _is_begun(folder: Path, header: Mapping[str, Any]) -> bool:
    """Whether it holds a journal of these options, and no results."""
    journal = folder / "journal.jsonl"
    if not journal.exists() or (folder / RESULTS_FILE).exists():
        return False
    began = Journal(journal).header
    return began is not None and began["options"] == json.loads(json.dumps(header["options"]))
