"""Each network of Stable Diffusion 1.5 at 512x512 on our engine and on its peers', in turns, beside what the machine can do.

Ours starts from its compiled graph on disk, as a stage does; the peers convert theirs. In int8 it is there where `triptych
quantize` has made it before of the same checkpoint. Needs the reference environment, and about 18 GB of memory::

    .venv-reference/bin/python -m benchmarks.engines
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.contender import CONTENDERS, MATRIX_PRODUCTS, MATRIX_SIDE
from benchmarks.engines.workloads import NETWORKS, inputs_of, operations_of
from benchmarks.line_processes import LineProcess, ScriptEnded, line_process
from benchmarks.memory import resident_memory
from benchmarks.random_checkpoint import write_stable_diffusion_1
from benchmarks.report import circumstances, describe, markdown_table, write_results
from benchmarks.timing.busy import Meter
from triptych.checkpoints.checkpoint import Network
from triptych.stages.networks import QUANTIZABLE

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("triptych", "keras", "openvino", "numpy", "torch", "diffusers", "transformers")
PEAK, OURS, INT8, EXACT = "matrix-product", "ours", "ours-int8", "diffusers-float32"
FROM_DISK = (OURS, INT8)
"""Started once before it counts, so that it then finds what it compiled."""


class Rivals:
    """The contenders for one network.

    Args:
        folder: For what they read and write.
    """

    def __init__(self, network: Network, checkpoint: Path, folder: Path, threads: int) -> None:
        self.network = network
        self._checkpoint, self._folder, self._threads = checkpoint, folder, threads
        self.inputs = inputs_of(network)
        np.savez(folder / f"{network}.npz", allow_pickle=False, **self.inputs)

    @contextmanager
    def running(self, contender: str) -> Iterator[LineProcess]:
        """Ready: it has run once."""
        task = {
            "contender": contender,
            "network": self.network,
            "checkpoint": str(self._checkpoint),
            "inputs": str(self._folder / f"{self.network}.npz"),
            "outputs": str(self._outputs(contender)),
            "cache": str(self._folder / "cache"),
            "threads": self._threads,
        }
        command = [sys.executable, "-m", "benchmarks.engines.contender", json.dumps(task)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads), "HF_HUB_OFFLINE": "1"}
        with line_process(contender, command, folder=ROOT, environment=environment, on_line=_keep_quiet) as process:
            yield process

    def error(self, contender: str) -> float:
        """Largest difference from float32, over the largest value."""
        (ours,), (exact,) = (list(np.load(self._outputs(name)).values()) for name in (contender, EXACT))
        return float(np.abs(ours.astype(np.float64) - exact).max() / np.abs(exact).max())

    def _outputs(self, contender: str) -> Path:
        return self._folder / f"{self.network}-{contender}.npz"


def measure(rivals: Rivals, rounds: int) -> dict[str, Any]:
    """One network: all contenders stay, and take turns whose order rotates."""
    operations = operations_of(rivals.network, rivals.inputs)
    running: dict[str, LineProcess] = {}
    missing: dict[str, str] = {}
    with rivals.running(EXACT):  # for its outputs alone
        pass
    with ExitStack() as stack:
        for name in CONTENDERS:
            if name == EXACT or (name == INT8 and rivals.network not in QUANTIZABLE):
                continue
            try:
                if name in FROM_DISK:
                    with rivals.running(name):
                        pass
                running[name] = stack.enter_context(rivals.running(name))
            except ScriptEnded as error:
                missing[name] = str(error)
        seconds: dict[str, list[float]] = {name: [] for name in running}
        meter = Meter()
        for number in range(rounds):
            names = list(running)
            for name in (*names[number % len(names) :], *names[: number % len(names)]):
                seconds[name].append(running[name].ask({})["seconds"])
        busy = meter.read()
        memory = {name: asdict(resident_memory(process.pid)) for name, process in running.items()}
        precision = {name: process.facts["precision"] for name, process in running.items()}
    peak = MATRIX_PRODUCTS * 2 * MATRIX_SIDE**3 / statistics.median(seconds[PEAK])
    return {
        "operations": operations,
        "peak_operations_per_second": peak,
        "others_share": busy.others_share,
        "missing": missing,
        "contenders": {
            name: {
                "precision": precision[name],
                "seconds": seconds[name],
                "median_seconds": (median := statistics.median(seconds[name])),
                "of_peak": operations / median / peak,
                "error": rivals.error(name),
                "memory": memory[name],
            }
            for name in running
            if name != PEAK
        },
    }


def report(results: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for network, measured in results.items():
        contenders = measured["contenders"]
        fastest = min(each["median_seconds"] for name, each in contenders.items() if name not in FROM_DISK)
        header = (
            f"{network}, {measured['operations'] / 1e9:.0f} GFLOP",
            "precision",
            "seconds",
            "of the fastest peer's",
            "of the peak",
            "error",
            "own memory, GB",
        )
        rows = [
            (
                name,
                each["precision"],
                f"{each['median_seconds']:.3g}",
                f"{each['median_seconds'] / fastest:.3f}",
                f"{each['of_peak']:.3f}",
                f"{each['error']:.2g}",
                f"{each['memory']['anonymous'] / 1e9:.2f}",
            )
            for name, each in contenders.items()
        ]
        note = (
            f"Matrix peak {measured['peak_operations_per_second'] / 1e9:.0f} GFLOP/s; others took "
            f"{measured['others_share']:.1%} of the machine."
        )
        missed = [f"Not measured: {name}: {why}." for name, why in measured["missing"].items()]
        parts.append("\n\n".join([markdown_table(header, rows), " ".join([note, *missed])]))
    return "\n\n".join(parts)


def main() -> None:
    """Measures, prints Markdown, and keeps the numbers in benchmarks/results/engines.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, help="a Stable Diffusion 1.5 in diffusers' layout; else one is written and deleted"
    )
    parser.add_argument("--networks", nargs="+", type=Network, choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    told = circumstances(PACKAGES) | {"command": "python -m benchmarks.engines"}  # where the folder lies is nobody's business
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if (checkpoint := arguments.checkpoint) is None:
            checkpoint = folder / "checkpoint"
            write_stable_diffusion_1(checkpoint)
        for network in arguments.networks:
            print(f"Measuring the {network} ...", file=sys.stderr, flush=True)
            results[network.value] = measure(Rivals(network, checkpoint, folder, arguments.threads), arguments.rounds)
            write_results("engines", {**told, "networks": results})
    print(report(results), "\n\n" + describe(told))


def _keep_quiet(name: str, line: str) -> None:
    if "Error" in line:
        print(f"{name}: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
