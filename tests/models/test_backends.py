"""The networks on OpenVINO, TensorFlow and JAX: the same weights give the same outputs, and every weight can be trained.

Tolerance: float32 sums in another order make about 1e-6 of the output's norm; 1e-5 is refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import ROOT, write_tiny_model

TOLERANCE = 1e-5

pytestmark = pytest.mark.timeout(400)  # each backend starts and compiles in a process of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_backends_agree(backend: str, folder: Path):
    outputs, expected = _outputs(backend, folder), _outputs("openvino", folder)
    assert outputs.keys() == expected.keys()
    for name, array in outputs.items():
        error = np.linalg.norm(array - expected[name]) / np.linalg.norm(expected[name])
        assert error < TOLERANCE, f"{name}: {error:.1e}"


def test_every_weight_has_a_gradient_on_tensorflow(folder: Path):
    _outputs("tensorflow", folder)
    assert (folder / "without_gradient.txt").read_text() == ""


@cache
def _outputs(backend: str, folder: Path) -> dict[str, np.ndarray]:
    command = [sys.executable, "-m", "tests.models.run_networks", str(folder)]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    with np.load(folder / f"{backend}.npz") as arrays:
        return dict(arrays)
