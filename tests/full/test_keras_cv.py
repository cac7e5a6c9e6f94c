"""keras-cv's presets at their full size, on random weights: from its `.h5` files to our folder, each network, and the whole loop.

keras-cv runs in a process of its own, and so do the conversion and each of our networks.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import PeakMemory
from tests.end_to_end.real_services import running
from tests.full.real_stages import environment
from tests.full.results import record
from tests.reference.keras_cv_peer import PIXEL_TOLERANCE, Peer, generated_by, run_peer
from tests.tiny_models import ROOT
from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.keras_cv import PRESETS, pull_keras_cv
from triptych.cli.processes import free_ports
from triptych.cli.topology import four_services
from triptych.contract import UInt8
from triptych.pipeline import Pipeline
from triptych.remote import RemoteDecoder, RemoteDiffusion, RemoteTextEncoder, make_client

pytestmark = pytest.mark.timeout(3600)

SIZE = 128
"""Of the loop's picture, in pixels. The networks' weights are all there are; their attention is short."""

DECODER_SIZE = 512
MEMORY_BYTES = 16e9
REMOTE_STAGES = (RemoteTextEncoder, RemoteDiffusion, RemoteDecoder)


@pytest.fixture(scope="module", params=PRESETS)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """keras-cv's side, and what `triptych pull --from` makes of its files."""
    folder = tmp_path_factory.mktemp("keras-cv")
    peer = run_peer(request.param, folder, size=SIZE, decoder_size=DECODER_SIZE)
    started = time.monotonic()
    pull_keras_cv(peer.name, folder / "model", source=folder / "files")
    record("keras-cv", f"{peer.name}, written", {"seconds": time.monotonic() - started})
    shutil.rmtree(folder / "files")
    yield peer
    shutil.rmtree(folder)  # gigabytes, which pytest would keep


@pytest.mark.parametrize("network", Network)
def test_each_network_computes_what_keras_cvs_does(peer: Peer, network: Network, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", **peer.inputs_of(network))
    outputs = tmp_path / "outputs.npz"
    command = [sys.executable, "-m", "tests.full.run_network", "ours", network, peer.folder / "model"]
    started = time.monotonic()
    process = subprocess.Popen([*map(str, command), str(tmp_path / "inputs.npz"), str(outputs)], cwd=ROOT)
    with PeakMemory(process.pid) as peak:
        assert process.wait() == 0
    took = {"seconds": time.monotonic() - started, "peak_bytes": peak.total, "peak_anonymous_bytes": peak.anonymous}

    error, bound = peer.error(network, dict(np.load(outputs)))

    record("keras-cv", f"{peer.name}, {network}", {"error": error, "bound": bound, **took})
    assert error < bound
    assert took["peak_bytes"] < MEMORY_BYTES


def test_three_services_make_the_picture_of_generate_image(peer: Peer, tmp_path: Path) -> None:
    told = environment(peer.folder / "model", tmp_path, PRECISION="float32", SIZES=f"{SIZE}x{SIZE}")
    stages = [replace(each, environment={**told, **each.environment}) for each in four_services(free_ports(4))[:-1]]
    with running(stages):
        images = asyncio.run(generated_over_http([stage.url for stage in stages]))
    difference = int(np.abs(images.astype(int) - peer.images).max())
    record("keras-cv", f"{peer.name}, the picture", {"largest_difference": difference, "bound": PIXEL_TOLERANCE})
    assert images.shape == peer.images.shape
    assert difference <= PIXEL_TOLERANCE
    assert len(np.unique(images)) > 100  # and it is a picture


async def generated_over_http(urls: list[str]) -> UInt8:
    async with make_client() as client:
        stages = (stage(url, client=client) for stage, url in zip(REMOTE_STAGES, urls, strict=True))
        return await generated_by(Pipeline(*stages), SIZE)
