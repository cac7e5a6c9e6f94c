"""Networks that were quantized to int8, on disk: a folder each, to be carried to other machines as it is.

In it are the graph as OpenVINO has it, and `quantization.json`, which says how it came about. It is named by what it was made of,
as compiled networks are, but by nothing of the machine: `triptych quantize` fills it once, and every start in int8 reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.engines import NetworkSource, RowSpec
from triptych.engines.cache import find, find_or_fill

GRAPH = ("network.xml", "network.bin")
FACTS = "quantization.json"

RECIPE = 3
"""Counts the ways in which networks were quantized: by another one it is another network."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized network on disk.

    Attributes:
        folder: With its graph.
        digest: sha256 of the graph.
    """

    folder: Path
    digest: str


def find_quantized(folder: Path, source: NetworkSource, rows: Mapping[str, RowSpec]) -> Quantized | None:
    """What was kept of a network for rows of this shape; None where there is nothing, or what is there is damaged.

    Args:
        folder: Where quantized networks are.
        source: The network in float.
    """
    found = find(folder, _name(source), _key(source, rows))
    return None if found is None else _read(found)


def keep_quantized(
    folder: Path,
    source: NetworkSource,
    rows: Mapping[str, RowSpec],
    save: Callable[[Path], None],
    facts: Mapping[str, Any],
) -> tuple[Quantized, bool]:
    """The quantized network of the key, and whether it was there already.

    Args:
        save: Writes the graph into an empty folder; called where nothing is kept yet.
        facts: How it came about, as JSON has it.

    Raises:
        EngineError: The folder cannot be written.
    """

    def fill(unfinished: Path) -> None:
        save(unfinished)
        told = {**facts, "digest": _digest(unfinished)}
        (unfinished / FACTS).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    kept, was_there = find_or_fill(folder, _name(source), _key(source, rows), fill)
    return _read(kept), was_there


def _name(source: NetworkSource) -> str:
    return f"{source.name}-int8"


def _key(source: NetworkSource, rows: Mapping[str, RowSpec]) -> dict[str, Any]:
    return {"recipe": RECIPE, "network": source.key, "rows": {name: [list(row.shape), row.dtype] for name, row in rows.items()}}


def _read(folder: Path) -> Quantized:
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Quantized(folder=folder, digest=facts["digest"])


def _digest(folder: Path) -> str:
    content = hashlib.sha256()
    for name in GRAPH:
        with (folder / name).open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()
