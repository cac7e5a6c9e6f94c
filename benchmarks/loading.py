"""From a float16 safetensors file into a network, ours against diffusers' `from_pretrained`: seconds and memory at the peak.

The U-Net of Stable Diffusion 1.5 with random weights, into float32 on both sides; each run in a process of its own, ours and
theirs in turn. The file is in the system's cache for both. Needs the reference environment::

    .venv-reference/bin/python -m benchmarks.loading
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory import PeakMemory, resident_memory
from benchmarks.report import circumstances, describe, markdown_table, write_results

PACKAGES = ("triptych", "keras", "openvino", "numpy", "safetensors", "torch", "diffusers")
PARAMETERS = 859_520_964
NETWORK_BYTES = 4 * PARAMETERS
SIDES = ("ours", "diffusers")


def load(side: str, folder: Path) -> dict[str, float]:
    """Loads once, in this process. What is imported first is not counted, on either side."""
    if side == "ours":
        os.environ["KERAS_BACKEND"] = "openvino"
        import keras  # noqa: F401

        from triptych.checkpoints.checkpoint import Network, load_network
        from triptych.checkpoints.diffusers_folder import DiffusersFolder
        from triptych.models import unet  # noqa: F401

        def load_it() -> Any:
            return load_network(DiffusersFolder(folder), Network.UNET)
    else:
        import torch
        from diffusers import UNet2DConditionModel

        def load_it() -> Any:
            return UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)

    before = resident_memory()
    started = time.monotonic()
    network = load_it()
    seconds = time.monotonic() - started
    parameters = network.count_params() if side == "ours" else network.num_parameters()
    assert parameters == PARAMETERS, parameters
    return {"seconds": seconds, "anonymous_before_bytes": before.anonymous, "anonymous_after_bytes": resident_memory().anonymous}


def measure(folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """A B A B ..., after one of each that is not counted."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.loading", "--once", side, "--folder", str(folder)]
            run = watched(command)
            if number:
                runs[side].append(run)
    return runs


def watched(command: Sequence[str]) -> dict[str, float]:
    """What the command printed, and what memory it had at its peak, what it imports included."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with PeakMemory(process.pid) as peak:
        output, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        **json.loads(output.splitlines()[-1]),
        "peak_anonymous_bytes": peak.anonymous,
        "peak_file_bytes": peak.file,
        "peak_total_bytes": peak.total,
        "anonymous_over_network": peak.anonymous / NETWORK_BYTES,
    }


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def report(results: Mapping[str, Mapping[str, float]]) -> str:
    header = ("median of", "seconds", "peak RssAnon GB", "over the network's 3.44 GB", "peak RssFile GB")
    rows = [
        (
            side,
            f"{each['seconds']:.1f}",
            f"{each['peak_anonymous_bytes'] / 1e9:.2f}",
            f"{each['anonymous_over_network']:.2f}",
            f"{each['peak_file_bytes'] / 1e9:.2f}",
        )
        for side, each in results.items()
    ]
    return markdown_table(header, rows)


def main() -> None:
    """Measures, prints Markdown, and keeps the numbers in benchmarks/results/loading.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--once", choices=SIDES, help="load in this process, and print JSON")
    parser.add_argument("--folder", type=Path, help="of a Stable Diffusion 1.5; else one is written and deleted")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(load(arguments.once, arguments.folder)))
        return
    told = circumstances(PACKAGES) | {"command": "python -m benchmarks.loading"}  # where the folder lies is nobody's business
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not arguments.folder:
            from benchmarks.random_checkpoint import write_network
            from benchmarks.real_configurations import UNET_1

            write_network(folder, "unet", UNET_1, seed=1, dtype="float16")
        runs = measure(folder, arguments.rounds)
    results = {side: medians(each) for side, each in runs.items()}
    print(f"# Loading\n\n{describe(told)}\n\n{report(results)}")
    write_results("loading", {**told, "network_bytes": NETWORK_BYTES, "medians": results, "runs": runs})


if __name__ == "__main__":
    main()
