"""The benchmark on a GPU: as a process on the CPU with tiny networks, and what it makes of its numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.__main__ import FLAGS, cases_of, make_parser, report, run
from benchmarks.gpu.device import ask_driver
from benchmarks.gpu.rivals import TORCH, Rivals, numbers_of
from benchmarks.gpu.workloads import PRODUCTS, Case, inputs_of, operations_of
from benchmarks.timing.journal import Journal
from triptych.checkpoints.checkpoint import Network
from triptych.errors import StartError

ROOT = Path(__file__).resolve().parents[2]

HEADER: dict[str, Any] = {
    **{"command": "python -m benchmarks.gpu", "machine": "a machine", "load_before": 0.0, "date": "today", "python": "3"},
    "versions": {"jax": "1"},
    "gpu": {},
    "options": {
        "tiny": False,
        "device": "A GPU",
        "driver": "570.1",
        "torch_mode": "max-autotune",
        "flags": {"jax": "", "jax-x": "--x"},
    },
}


def make_case(batch: int = 2, *, network: Network = Network.UNET, precision: str = "bfloat16") -> Case:
    return Case(network=network, precision=precision, batch=batch, tiny=True)


def contender(median: float, error: float | None = 0.01) -> dict[str, Any]:
    return {"median_seconds": median, "of_peak": 0.5, "peak_operations_per_second": 8e14, "error": error}


def record(case: Case, **contenders: dict[str, Any]) -> dict[str, Any]:
    return {"unit": case.name, **asdict(case), "missing": {}, "contenders": contenders}


def start(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "benchmarks.gpu", *options]
    return subprocess.run(arguments, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_refuses_in_one_sentence(tmp_path: Path) -> None:
    refused = start("--folder", str(tmp_path / "results"), JAX_PLATFORMS="cpu")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "JAX sees no GPU here: run it where there is one, with the extra jax-gpu, or give --tiny to try it on the CPU"
    ]
    assert not (tmp_path / "results").exists()


@pytest.mark.timeout(600)  # eight processes, one after the other
def test_tiny_networks_run_everything_on_the_cpu(tmp_path: Path) -> None:
    options = "--tiny --precisions bfloat16 --batches 2 --flags jax-searching --rounds 2 --times 2"
    measured = start(*options.split(), "--torch-python", sys.executable, "--folder", str(tmp_path))
    assert measured.returncode == 0, measured.stderr
    header, *units = map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines())
    assert header["options"]["device"] == "cpu" and header["versions"]["jax"]
    assert [unit["unit"] for unit in units] == ["unet-bfloat16-2", "vae_decoder-bfloat16-2"]
    for unit in units:
        ours = unit["contenders"]["jax-searching"]
        assert len(ours["seconds"]) == len(ours["product_seconds"]) == 2
        assert 0 < ours["of_peak"] < 1.5
        assert 1e-4 < ours["error"] < 0.1
        assert ours["versions"]["jax"] == header["versions"]["jax"]
        assert unit["missing"] == {TORCH: "torch is not installed"}
    text = (tmp_path / "results.md").read_text()
    assert measured.stdout == text
    assert "Not measured: diffusers-compiled: torch is not installed." in text
    assert "these numbers mean nothing" in text


def test_xla_knows_the_flags() -> None:
    flags = " ".join(FLAGS.values())
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=environment, check=True, capture_output=True)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--networks", "unet", "vae_decoder", "--precisions", "float16", "--batches", "1", "2", "8"]
    arguments = make_parser().parse_args(options)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.begin(HEADER)
    for batch in (2, 8):
        journal.add(record(make_case(batch, precision="float16"), jax=contender(1.0)))
    prepared, measured = [], []

    def measure(rivals: Rivals, case: Case, operations: int, **how: int) -> dict[str, Any]:
        measured.append((case.name, operations))
        return record(case, jax=contender(0.25))

    def prepare(self: Rivals, case: Case) -> int:
        prepared.append(case.name)
        return 7

    monkeypatch.setattr(Rivals, "prepare", prepare)
    monkeypatch.setattr(command, "measure", measure)

    text = run(arguments, HEADER, tmp_path)

    assert prepared == ["vae_decoder-float16-1"]
    assert measured == [("vae_decoder-float16-1", 7), ("vae_decoder-float16-2", 7)]
    assert "| batch 2, jax | 1000.00 |" in text and "| batch 2, jax | 250.00 |" in text
    assert run(arguments, HEADER, tmp_path) == text == (tmp_path / "results.md").read_text().rstrip("\n")
    assert len(measured) == 2


def test_another_driver_does_not_go_into_the_same_journal(tmp_path: Path) -> None:
    arguments = Namespace(networks=[], precisions=[], batches=None, tiny=True)
    Journal(tmp_path / "journal.jsonl").begin(HEADER)
    with pytest.raises(StartError, match="was begun with another driver"):
        run(arguments, {**HEADER, "options": {**HEADER["options"], "driver": "580.2"}}, tmp_path)


def test_all_is_measured_unless_less_is_asked_for() -> None:
    names = [case.name for case in cases_of(make_parser().parse_args([]))]
    networks = {"unet": (2, 4, 8, 16), "vae_decoder": (1, 2, 4)}
    kinds = ("bfloat16", "float16")
    assert names == [f"{network}-{kind}-{batch}" for network in networks for kind in kinds for batch in networks[network]]


def test_fewer_rows_are_the_first_of_more() -> None:
    for network, (few, many) in {Network.UNET: (2, 16), Network.VAE_DECODER: (1, 4)}.items():
        less, more = (inputs_of(make_case(batch, network=network)) for batch in (few, many))
        assert {name: len(array) for name, array in more.items()} == dict.fromkeys(less, many)
        assert all(np.array_equal(array, more[name][:few]) for name, array in less.items())


def test_the_share_of_the_peak_is_of_the_same_frameworks_product() -> None:
    case = make_case()
    numbers = numbers_of(case, 1000, network=[4.0, 2.0, 1.0], product=[1.0, 9.0, 2.0])
    peak = PRODUCTS * 2 * case.matrix_side**3 / 2
    assert (numbers["median_seconds"], numbers["peak_operations_per_second"]) == (2.0, peak)
    assert numbers["of_peak"] == 1000 / 2 / peak


def test_operations_are_those_of_products_and_convolutions_wherever_they_are() -> None:
    import jax
    import jax.numpy as jnp

    def function(inputs: dict[str, Any]) -> Any:
        product = jax.jit(lambda x: jnp.einsum("btc,bsc->bts", x, x))(inputs["tokens"])
        image = jax.lax.conv_general_dilated(
            inputs["image"], inputs["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return product.sum() + jnp.tanh(image).sum()

    shapes = {"tokens": (2, 5, 3), "image": (2, 8, 4, 3), "kernel": (3, 3, 3, 7)}
    operations = operations_of(function, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    assert operations == 2 * (2 * 5 * 5 * 3) + 2 * (2 * 8 * 4 * 7) * (3 * 3 * 3)


def test_the_report_compares_with_diffusers_where_it_ran() -> None:
    with_peer = record(make_case(2), jax=contender(0.02), **{"jax-x": contender(0.01, error=None), TORCH: contender(0.016)})
    without = record(make_case(4), jax=contender(0.03)) | {"missing": {TORCH: "torch sees no GPU"}}
    text = report(HEADER, [without, with_peer])
    lines = [line for line in text.splitlines() if line.startswith("| batch")]
    assert lines == [
        "| batch 2, jax | 20.00 | 10.00 | 1.250 | 0.500 | 800 | 0.01 |",
        "| batch 2, jax-x | 10.00 | 5.00 | 0.625 | 0.500 | 800 | not finite |",
        "| batch 2, diffusers-compiled | 16.00 | 8.00 | 1.000 | 0.500 | 800 | 0.01 |",
        "| batch 4, jax | 30.00 | 7.50 |  | 0.500 | 800 | 0.01 |",
    ]
    assert text.startswith("A GPU, driver 570.1. `python -m benchmarks.gpu` on a machine")
    assert "`jax`: no XLA_FLAGS. `jax-x`: `--x`. `diffusers-compiled`: max-autotune." in text
    assert "mean nothing" not in text
    assert text.endswith("Not measured: diffusers-compiled: torch sees no GPU.")


def test_the_driver_is_asked_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_driver() == {}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A10, 570.1, 23028 MiB, 3 MiB, 0 %, 150.00 W, 1695 MHz'\necho 'another'\n")
    program.chmod(0o755)
    driver = ask_driver()
    assert (driver["name"], driver["driver_version"], driver["clocks.max.sm"]) == ("NVIDIA A10", "570.1", "1695 MHz")
    program.write_text("#!/bin/sh\necho 'no devices were found'\nexit 6\n")
    assert ask_driver() == {}
