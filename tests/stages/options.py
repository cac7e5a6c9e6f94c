"""Options of a stage in a test: the tiny model on OpenVINO, exact, with few batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    model: str
    cache_folder: Path
    quantized_folder: Path = Path("quantized")
    cache_bytes: int | None = None
    models_file: Path = Path("models.toml")
    models_folder: Path = Path("models")
    engine: str = "openvino"
    precision: str = "float32"
    batch_sizes: tuple[int, ...] | None = (1, 2, 4)
    exact: bool = True
    sizes: tuple[tuple[int, int], ...] | None = None
    tile_side: int = 1024
    preview_decoder: Path | None = None
    preview_precision: str = "auto"
    threads: int | None = 2
    queue_size: int = 8
    cached_contexts: int = 8
    max_prompt_chunks: int = 1
    feature_reuse: bool = False
    memory_bytes: int | None = None
