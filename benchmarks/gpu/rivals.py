"""The contenders for one network: each a process of its own, because XLA's flags are read when it starts."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.device import environment
from benchmarks.gpu.workloads import BATCHES, PRODUCTS, Case
from benchmarks.line_processes import LineProcess, ScriptEnded, line_process
from benchmarks.timing.busy import Meter

ROOT = Path(__file__).resolve().parents[2]
TORCH = "diffusers-compiled"


class Rivals:
    """Ours under each set of flags, and diffusers.

    Args:
        flags: XLA's flags, by the contender's name.
        torch_python: The Python that has torch.
        torch_mode: Of torch.compile.
        folder: For what they read and write.
    """

    def __init__(self, flags: Mapping[str, str], torch_python: str, torch_mode: str, folder: Path) -> None:
        self.names = (*flags, TORCH)
        self._flags, self._torch_python, self._torch_mode, self._folder = dict(flags), torch_python, torch_mode, folder

    def prepare(self, case: Case) -> int:
        """Writes the weights that all of them read, and what float32 makes of the first rows of its inputs on the CPU.

        Returns:
            Additions and multiplications of a row.
        """
        with self._process("weights", case, framework="weights", on_cpu=True) as process:
            operations: int = process.facts["operations_of_row"]
        exact = replace(case, precision="float32", batch=min(BATCHES[case.network]))
        with self._process("float32", exact, framework="jax", on_cpu=True):
            return operations

    @contextmanager
    def running(self, name: str, case: Case) -> Iterator[LineProcess]:
        """Ready: it has run once, or says what is missing."""
        framework = "torch" if name == TORCH else "jax"
        with self._process(name, case, framework=framework, on_cpu=case.tiny, flags=self._flags.get(name, "")) as process:
            yield process

    def error(self, name: str, case: Case) -> float | None:
        """Largest difference from float32, over the largest value, of the rows that float32 was given; None is no number."""
        (exact,), (ours,) = (list(np.load(self._outputs(each, case.network)).values()) for each in ("float32", name))
        error = float(np.abs(ours[: len(exact)].astype(np.float64) - exact).max() / np.abs(exact).max())
        return error if np.isfinite(ours).all() else None

    @contextmanager
    def _process(self, name: str, case: Case, *, framework: str, on_cpu: bool, flags: str = "") -> Iterator[LineProcess]:
        with tempfile.TemporaryDirectory() as cache:  # XLA keeps by the operation, not by the flags, what it found to be fastest
            task = {
                "framework": framework,
                "case": asdict(case),
                "checkpoint": str(self._folder),
                "outputs": str(self._outputs(name, case.network)),
                "cache": cache,
                "torch_mode": self._torch_mode,
            }
            python = self._torch_python if framework == "torch" else sys.executable
            command = [python, "-m", "benchmarks.gpu.contender", json.dumps(task)]
            variables = environment(on_cpu=on_cpu) | {"XLA_FLAGS": flags}
            with line_process(name, command, folder=ROOT, environment=variables, on_line=_keep_quiet) as process:
                yield process

    def _outputs(self, name: str, network: str) -> Path:
        return self._folder / f"{network}-{name}.npz"


def measure(rivals: Rivals, case: Case, operations: int, *, rounds: int, times: int) -> dict[str, Any]:
    """One case: all contenders stay, and take turns whose order rotates.

    Args:
        operations: Of a row.
        times: Runs of a turn, of which the median counts.
    """
    with ExitStack() as stack:
        running, missing = _start(rivals, case, stack)
        seconds: dict[str, dict[str, list[float]]] = {name: {"network": [], "product": []} for name in running}
        meter = Meter()
        for number in range(rounds):
            for name in _rotated(list(running), number):
                for run, medians in seconds[name].items():
                    medians.append(statistics.median(running[name].ask({"run": run, "times": times})["seconds"]))
        return {
            **asdict(case),
            "operations": operations * case.batch,
            "others_share": meter.read().others_share,
            "missing": missing,
            "contenders": {
                name: {
                    **process.facts,
                    **numbers_of(case, operations * case.batch, **seconds[name]),
                    "error": rivals.error(name, case),
                }
                for name, process in running.items()
            },
        }


def numbers_of(case: Case, operations: int, network: list[float], product: list[float]) -> dict[str, Any]:
    """From the seconds of a contender's turns: how long, and how near to what it reaches in one large product."""
    median = statistics.median(network)
    peak = PRODUCTS * 2 * case.matrix_side**3 / statistics.median(product)
    return {
        "seconds": network,
        "median_seconds": median,
        "product_seconds": product,
        "peak_operations_per_second": peak,
        "of_peak": operations / median / peak,
    }


def _start(rivals: Rivals, case: Case, stack: ExitStack) -> tuple[dict[str, LineProcess], dict[str, str]]:
    """Those that run, and why the others do not."""
    running: dict[str, LineProcess] = {}
    missing: dict[str, str] = {}
    for name in rivals.names:
        try:
            process = stack.enter_context(rivals.running(name, case))
        except ScriptEnded as error:
            missing[name] = str(error)
            continue
        if "missing" in process.facts:
            missing[name] = process.facts["missing"]
        else:
            running[name] = process
    return running, missing


def _rotated(names: list[str], number: int) -> list[str]:
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


def _keep_quiet(name: str, line: str) -> None:
    if "Error" in line:
        print(f"{name}: {line}", file=sys.stderr)
