"""What `make test-full` and the benchmarks beside it measured, kept as JSON, and the page that shows it.

::

    python -m tests.full.results        writes docs/proof.md anew
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.report import RESULTS, circumstances

PATH = RESULTS / "proof.json"
PACKAGES = ("triptych", "keras", "openvino", "numpy", "torch", "diffusers", "transformers", "safetensors")


def record(section: str, name: str, measured: Mapping[str, Any]) -> None:
    """Keeps what was measured, in place of what was measured before under this name; with where and when."""
    document = read()
    told = {key: value for key, value in circumstances(PACKAGES).items() if key != "command"}
    document.setdefault(section, {})[name] = {**measured, **told}
    PATH.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    return document
