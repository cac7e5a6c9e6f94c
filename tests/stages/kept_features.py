"""Whether a U-Net predicts the same when its features come out: `python -m tests.stages.kept_features ENGINE MODEL`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from triptych.checkpoints.checkpoint import Network, UNetPart, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.engines import CompiledNetwork, NetworkSource, Precision, RowSpec, get_engine
from triptych.engines.exactness import example_rows

ROWS = 2


def compare(name: str, model: str) -> dict[str, Any]:
    files = DiffusersFolder(Path(model))
    rows = {
        "latents": RowSpec(shape=(4, 4, files.unet.in_channels)),
        "timestep": RowSpec(shape=(), below=1000),
        "context": RowSpec(shape=(files.text_encoder.max_position_embeddings, files.unet.cross_attention_dim)),
    }
    engine = get_engine(name)

    def compiled(part: UNetPart | None, folder: str) -> CompiledNetwork:
        build = partial(load_network, files, Network.UNET, part=part)
        source = NetworkSource(name="unet", build=build, key={"part": part})
        return engine.compile(source, rows, batch_sizes=(ROWS,), precision=Precision.FLOAT32, cache_folder=Path(folder))

    with tempfile.TemporaryDirectory() as folder:
        inputs = example_rows(rows, ROWS)
        plain, keeping = (compiled(part, folder).run_exactly(inputs) for part in (None, UNetPart.WHOLE))
    return {
        "same": plain["prediction"].tobytes() == keeping["prediction"].tobytes(),
        "outputs": [sorted(plain), sorted(keeping)],
    }


if __name__ == "__main__":
    os.write(1, json.dumps(compare(*sys.argv[1:])).encode())
