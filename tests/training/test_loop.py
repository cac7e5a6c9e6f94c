"""An interrupted run ends where an uninterrupted one ends. In a process of its own: training wants another backend than tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.loop import Schedule

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import keras, numpy as np
from keras import ops
from training.cache import cache_folder
from training.loop import Schedule, train, use_averages

class Line(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")
    def call(self, batch):
        return ops.square(self.dense(batch["x"])[:, 0] - batch["y"])

def batches(step, rng):
    x = rng.standard_normal((8, 3)).astype("float32")
    return {"x": x, "y": x @ np.float32([3, -2, 1])}

def weights(name, *stops):
    for stop in stops:
        network = Line()
        reached = train(network, batches, Schedule(steps=stop, rate=0.05, warm_up=2, decay=0.0, ema=0.9, report_every=2), name)
        assert reached == stop, reached
    last = network.dense.kernel.numpy().ravel()
    use_averages(network)
    return np.concatenate([last, network.dense.kernel.numpy().ravel()])

straight, halting = weights("straight", 60), weights("halting", 25, 60)
np.testing.assert_array_equal(straight, halting)
assert np.abs(straight[:3] - [3, -2, 1]).max() < 1.5, straight
assert not np.array_equal(straight[:3], straight[3:])
lines = (cache_folder("halting") / "progress.jsonl").read_text().splitlines()
assert len(lines) == 31, lines
"""


def test_an_interrupted_run_ends_where_an_uninterrupted_one_ends(cache_folder: Path) -> None:
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "TRIPTYCH_CACHE_FOLDER": str(cache_folder)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_rate_falls_at_the_end_of_the_steps_or_of_the_minutes_whichever_comes_first() -> None:
    schedule = Schedule(steps=1000, rate=1.0, warm_up=10, decay=0.2, minutes=10)
    assert schedule.rate_at(0) == pytest.approx(0.1)
    assert schedule.rate_at(700, seconds=60) == 1.0
    assert schedule.rate_at(900, seconds=60) == pytest.approx(0.5)
    assert schedule.rate_at(300, seconds=540) == pytest.approx(0.5)
    assert schedule.rate_at(300, seconds=600) == pytest.approx(0.02)
    assert Schedule(steps=1000, rate=1.0, decay=0.0).rate_at(999) == 1.0
    assert schedule.progress(300, seconds=600) == 1.0 and schedule.progress(300) == 0.3


TWO_RATES = """
import keras, numpy as np
from keras import ops
from training.loop import Schedule, compile_for_training
from training.unet import TwoRates

class Two(keras.Model):
    def __init__(self):
        super().__init__()
        self.text = keras.layers.Dense(1, name="text_model.dense", kernel_initializer="ones")
        self.other = keras.layers.Dense(1, name="unet.dense", kernel_initializer="ones")
        self.text.build((None, 3))  # as the networks are: built before they are called, so that paths begin with the layer
        self.other.build((None, 3))
    def call(self, batch):
        return ops.square(self.text(batch["x"]) + self.other(batch["x"]))[:, 0]

network = Two()
compile_for_training(network, Schedule(steps=10, rate=0.01, weight_decay=0.0), TwoRates)
network.train_on_batch({"x": np.ones((4, 3), "float32")}, np.zeros(4))
moved = [ops.convert_to_numpy(layer.bias)[0] for layer in (network.text, network.other)]
np.testing.assert_allclose(moved, [-0.001, -0.01], rtol=1e-2)
moved = 1 - ops.convert_to_numpy(network.text.kernel).mean()
np.testing.assert_allclose(moved, 0.001, rtol=1e-2)
"""


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_the_text_encoder_learns_at_a_tenth_of_the_rate(backend: str) -> None:
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_RATES], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
