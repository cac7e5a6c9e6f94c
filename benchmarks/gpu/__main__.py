"""Stable Diffusion 1.5's U-Net and decoder at 512x512 on a GPU: ours on JAX under sets of XLA flags, and diffusers, in turns.

Random weights, the same for all. Needs the extra jax-gpu, and a Python that has torch if diffusers is to be compared::

    python -m benchmarks.gpu
    python -m benchmarks.gpu --tiny     # everything once, small, on the CPU: the numbers mean nothing
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import ask_driver, find_device
from benchmarks.gpu.rivals import TORCH, Rivals, measure
from benchmarks.gpu.workloads import BATCHES, PRECISIONS, Case
from benchmarks.line_processes import ScriptEnded
from benchmarks.report import RESULTS, circumstances, describe, markdown_table
from benchmarks.timing.folders import slug
from benchmarks.timing.journal import Journal, Record
from benchmarks.timing.peers import REFERENCE_PYTHON
from triptych.checkpoints.checkpoint import Network
from triptych.errors import TriptychError

PACKAGES = ("triptych", "keras", "jax", "jaxlib", "numpy")
FLAGS = {
    "jax": "",
    "jax-libraries": "--xla_gpu_enable_triton_gemm=false",
    "jax-searching": "--xla_gpu_triton_gemm_any=true --xla_gpu_exhaustive_tiling_search=true --xla_gpu_cudnn_gemm_fusion_level=2",
}
"""As XLA comes; products by cuBLAS alone; and whatever kernel is found to be fastest among all that there are."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=main.__doc__)
    parser.add_argument("--networks", nargs="+", type=Network, choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batches", nargs="+", type=int, help="of those that a network is measured at; all by default")
    parser.add_argument("--flags", nargs="+", choices=list(FLAGS), default=list(FLAGS), help="sets of XLA flags")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=10, help="runs of a turn")
    parser.add_argument("--torch-python", default=str(REFERENCE_PYTHON if REFERENCE_PYTHON.exists() else sys.executable))
    parser.add_argument("--torch-mode", default="max-autotune", help="of torch.compile")
    parser.add_argument("--folder", type=Path, help="where to; by default benchmarks/results/gpu-DEVICE, or nowhere if --tiny")
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU, to see that everything runs")
    return parser


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """What is to be measured; cases of one network follow each other, the smallest batch first."""
    return [
        Case(network=network, precision=precision, batch=batch, tiny=arguments.tiny)
        for network in arguments.networks
        for precision in arguments.precisions
        for batch in BATCHES[network]
        if arguments.batches is None or batch in arguments.batches
    ]


def make_header(arguments: argparse.Namespace) -> dict[str, Any]:
    """The journal's first line. What its options say must be the same for all that it holds.

    Raises:
        StartError: As `find_device`.
    """
    device, driver = find_device(tiny=arguments.tiny), {} if arguments.tiny else ask_driver()
    told = circumstances(PACKAGES)
    options = {
        "tiny": arguments.tiny,
        "device": device,
        "driver": driver.get("driver_version"),
        "flags": {name: FLAGS[name] for name in arguments.flags},
        "torch_mode": arguments.torch_mode,
        "rounds": arguments.rounds,
        "times": arguments.times,
        "versions": told["versions"],
    }
    # Where the folder and the Python lie is nobody's business.
    return told | {"command": "python -m benchmarks.gpu", "gpu": driver, "options": options}


def run(arguments: argparse.Namespace, header: Mapping[str, Any], folder: Path) -> str:
    """Measures what the folder's journal does not have yet, and writes the report after each case.

    Raises:
        StartError: The folder is of another run.
        ScriptEnded: The weights could not be written, or not be run in float32.
    """
    journal = Journal(folder / "journal.jsonl")
    journal.begin(header)
    missing = [case for case in cases_of(arguments) if not journal.attempts(case.name)]
    with tempfile.TemporaryDirectory() as temporary:
        rivals = Rivals(header["options"]["flags"], arguments.torch_python, arguments.torch_mode, Path(temporary))
        operations: dict[Network, int] = {}
        for case in missing:
            print(f"Measuring {case.name} ...", file=sys.stderr, flush=True)
            if case.network not in operations:
                operations[case.network] = rivals.prepare(case)
            measured = measure(rivals, case, operations[case.network], rounds=arguments.rounds, times=arguments.times)
            journal.add({"unit": case.name, **measured})
            write_report(journal, folder)
    return write_report(journal, folder)


def write_report(journal: Journal, folder: Path) -> str:
    assert journal.header is not None
    text = report(journal.header, journal.records)
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return text


def report(header: Mapping[str, Any], records: Sequence[Record]) -> str:
    """Everything as Markdown: a table for each network at each precision."""
    options = header["options"]
    driver = f", driver {options['driver']}" if options["driver"] else ""
    flags = [f"`{name}`: {f'`{value}`' if value else 'no XLA_FLAGS'}." for name, value in options["flags"].items()]
    parts = [f"{options['device']}{driver}. {describe(header)}", " ".join([*flags, f"`{TORCH}`: {options['torch_mode']}."])]
    if options["tiny"]:
        parts.append("Tiny networks on the CPU: these numbers mean nothing.")
    tables: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        tables[record["network"], record["precision"]].append(record)
    parts += [_table(f"{network}, {precision}", each) for (network, precision), each in tables.items()]
    reasons = {f"{name}: {why}" for record in records for name, why in record["missing"].items()}
    return "\n\n".join([*parts, *(f"Not measured: {reason}." for reason in sorted(reasons))])


def _table(title: str, records: Sequence[Record]) -> str:
    header = (title, "ms", "ms a row", "of diffusers'", "of the peak", "peak, TFLOP/s", "error")
    return markdown_table(header, [row for record in sorted(records, key=lambda each: each["batch"]) for row in _rows(record)])


def _rows(record: Record) -> Iterator[tuple[str, ...]]:
    peer = record["contenders"].get(TORCH)
    for name, each in record["contenders"].items():
        median, error = each["median_seconds"], each["error"]
        yield (
            f"batch {record['batch']}, {name}",
            f"{1e3 * median:.2f}",
            f"{1e3 * median / record['batch']:.2f}",
            f"{median / peer['median_seconds']:.3f}" if peer else "",
            f"{each['of_peak']:.3f}",
            f"{each['peak_operations_per_second'] / 1e12:.3g}",
            "not finite" if error is None else f"{error:.2g}",
        )


@contextmanager
def _folder_of(arguments: argparse.Namespace, header: Mapping[str, Any]) -> Iterator[Path]:
    if arguments.folder is not None or not arguments.tiny:
        yield arguments.folder or RESULTS / f"gpu-{slug(header['options']['device'])}"
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)


def main() -> None:
    """Measures, prints Markdown, and keeps each case once it is measured: the same command goes on where it was."""
    arguments = make_parser().parse_args()
    try:
        header = make_header(arguments)
        with _folder_of(arguments, header) as folder:
            print(run(arguments, header, folder))
    except TriptychError as error:
        sys.exit(error.message)
    except ScriptEnded as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
