"""The optimizer of the U-Nets: which way it moves, how far, and what it leaves to AdamW."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Each starts a backend in a process of its own.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]

ORTHOGONAL = """
import numpy as np
from keras import ops
from training.muon import orthogonal

rng = np.random.default_rng(0)
for shape in ((48, 12), (12, 48), (16, 16)):
    given = rng.standard_normal(shape).astype("float32")
    values = np.linalg.svd(ops.convert_to_numpy(orthogonal(ops.convert_to_tensor(given))), compute_uv=False)
    assert 0.5 < values.min() and values.max() < 1.3, (shape, values)
    assert np.linalg.svd(given, compute_uv=False).max() > 2  # it was not so before
"""

STEPS = """
import keras, numpy as np
from keras import ops
from training.loop import Schedule, compile_for_training
from training.muon import SCALE, Muon

class Both(keras.Model):
    def __init__(self):
        super().__init__()
        self.kernel = keras.layers.Conv2D(4, 3, name="unet.conv")
        self.last = keras.layers.Conv2D(1, 1, name="conv_out", kernel_initializer="ones")
        self.kernel.build((None, 3, 3, 2))
        self.last.build((None, 1, 1, 4))
    def call(self, batch):
        return ops.square(self.last(self.kernel(batch["x"])) - 5)[:, 0, 0, 0]

network = Both()
compile_for_training(network, Schedule(steps=10, rate=0.01, weight_decay=0.0), Muon)
before = [ops.convert_to_numpy(layer.kernel).copy() for layer in (network.kernel, network.last)]
x = np.random.default_rng(1).standard_normal((8, 3, 3, 2)).astype("float32")
losses = [float(network.train_on_batch({"x": x}, np.zeros(8)))]
moved, last = (ops.convert_to_numpy(l.kernel) - b for l, b in zip((network.kernel, network.last), before))
moved = moved.reshape(-1, 4)
assert moved.shape == (18, 4)
largest = np.linalg.svd(moved, compute_uv=False).max() / (0.01 * SCALE * 18**0.5)
assert 0.5 < largest < 1.3, largest
np.testing.assert_allclose(np.abs(last), 0.01, rtol=1e-2)  # AdamW's first step is the rate, whatever the gradient
for _ in range(60):
    losses.append(float(network.train_on_batch({"x": x}, np.zeros(8))))
assert losses[-1] < 0.5 * losses[0], losses
"""


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
@pytest.mark.parametrize("code", [ORTHOGONAL, STEPS], ids=["orthogonal", "steps"])
def test_kernels_move_along_orthogonal_matrices_and_the_rest_as_by_adamw(backend: str, code: str) -> None:
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
