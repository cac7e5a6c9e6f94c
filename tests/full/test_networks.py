"""Every network of Stable Diffusion at its full size, on random weights, against diffusers and transformers in float32.

Each side runs in a process of its own, so that its memory is its own, and reads the same safetensors file. See
`benchmarks/random_checkpoint.py` for the weights.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.memory import PeakMemory
from benchmarks.random_checkpoint import write_network
from benchmarks.real_configurations import CLIP_L, OPENCLIP_H, UNET_1, UNET_1_INPAINTING, UNET_2, UNET_2_INPAINTING, VAE, Config
from tests.full.results import record
from triptych.checkpoints.checkpoint import Network

pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4
MEMORY_BYTES = 16e9

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and what it is tried with.

    Attributes:
        shapes: (B, ...) of the inputs that are normal.
    """

    network: Network
    config: Config
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str = "float32"

    def inputs(self) -> Arrays:
        generator = np.random.default_rng(3)
        arrays: dict[str, NDArray[Any]] = {
            name: generator.standard_normal(shape, dtype=np.float32) for name, shape in self.shapes.items()
        }
        if self.network is Network.UNET:
            arrays["timestep"] = np.linspace(981, 21, len(arrays["latents"]), dtype=np.float32)
        if self.network is Network.TEXT_ENCODER:
            arrays["tokens"] = generator.integers(0, self.config["vocab_size"], (2, 77)).astype(np.int32)
        return arrays


def unet(config: Config, *latents: int, dtype: str = "float32") -> Case:
    rows, width = latents[0], config["cross_attention_dim"]
    shapes = {"latents": (*latents, config["in_channels"]), "context": (rows, 77, width)}
    return Case(network=Network.UNET, config=config, shapes=shapes, dtype=dtype)


CASES = {
    "CLIP-L": Case(network=Network.TEXT_ENCODER, config=CLIP_L, shapes={}),
    "OpenCLIP-H": Case(network=Network.TEXT_ENCODER, config=OPENCLIP_H, shapes={}),
    "U-Net of 1.5": unet(UNET_1, 1, 64, 64),
    "U-Net of 1.5, file of float16": unet(UNET_1, 2, 32, 32, dtype="float16"),
    "U-Net of 1.5 inpainting": unet(UNET_1_INPAINTING, 2, 32, 32),
    "U-Net of 2.1": unet(UNET_2, 2, 32, 32),
    "U-Net of 2.1 inpainting": unet(UNET_2_INPAINTING, 2, 32, 32),
    "VAE encoder": Case(network=Network.VAE_ENCODER, config=VAE, shapes={"images": (1, 512, 512, 3)}),
}
DECODER = Case(network=Network.VAE_DECODER, config=VAE, shapes={"latents": (1, 64, 64, 4)})


@pytest.mark.parametrize("name", CASES)
def test_network_agrees_with_its_peer(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    runs = run_all(case, ("ours", "theirs"), tmp_path)
    errors = {output: relative_error(array, runs["theirs"].outputs[output]) for output, array in runs["ours"].outputs.items()}
    record("networks", name, {"error": max(errors.values()), "bound": TOLERANCE, **facts(case, runs)})
    assert max(errors.values()) < TOLERANCE, errors
    assert runs["ours"].took["peak_bytes"] < MEMORY_BYTES


def test_decoder_is_as_near_to_float64_as_its_peer(tmp_path: Path) -> None:
    # At 512x512 its sums are so long that float32 itself is wrong by more than the tolerance of the others may be.
    runs = run_all(DECODER, ("ours", "theirs", "theirs-float64"), tmp_path)
    right = runs["theirs-float64"].outputs["images"]
    ours, theirs = (relative_error(runs[whose].outputs["images"], right) for whose in ("ours", "theirs"))
    bound = 2 * theirs + 1e-5
    record("networks", "VAE decoder", {"error": ours, "error_of_peer": theirs, "bound": bound, **facts(DECODER, runs)})
    assert ours <= bound
    assert runs["ours"].took["peak_bytes"] < MEMORY_BYTES


@dataclass(frozen=True, kw_only=True)
class Run:
    outputs: Arrays
    took: Mapping[str, float]


def run_all(case: Case, sides: tuple[str, ...], folder: Path) -> dict[str, Run]:
    """What each side computes from the same file and the same inputs."""
    write_network(folder, case.network.subfolder, case.config, seed=7, dtype=case.dtype)
    np.savez(folder / "inputs.npz", **case.inputs())
    runs = {side: run(side, case.network, folder) for side in sides}
    shapes = [{name: array.shape for name, array in each.outputs.items()} for each in runs.values()]
    assert all(each == shapes[0] for each in shapes)
    for path in folder.rglob("*.safetensors"):  # gigabytes, which pytest would keep
        path.unlink()
    return runs


def run(side: str, network: Network, folder: Path) -> Run:
    outputs = folder / f"{side}.npz"
    command = [sys.executable, "-m", "tests.full.run_network", side, network, folder, folder / "inputs.npz", outputs]
    started = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT)
    with PeakMemory(process.pid) as peak:
        assert process.wait() == 0
    took = {"seconds": time.monotonic() - started, "peak_bytes": peak.total, "peak_anonymous_bytes": peak.anonymous}
    return Run(outputs=dict(np.load(outputs)), took=took)


def facts(case: Case, runs: Mapping[str, Run]) -> dict[str, Any]:
    shapes = {name: list(array.shape) for name, array in case.inputs().items()}
    return {"inputs": shapes, "dtype": case.dtype, "runs": {side: dict(each.took) for side, each in runs.items()}}


def relative_error(array: NDArray[Any], right: NDArray[Any]) -> float:
    """Of the whole output, in the Euclidean norm."""
    assert np.isfinite(array).all() and np.isfinite(right).all()
    return float(np.linalg.norm(array.astype(np.float64) - right) / np.linalg.norm(right.astype(np.float64)))
