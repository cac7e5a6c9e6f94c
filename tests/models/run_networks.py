"""Runs the networks of a tiny model on the backend of this process: a backend is chosen once per process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.tiny_models import run_network
from triptych.checkpoints.checkpoint import Network, VAEPart, load_network, load_part
from triptych.checkpoints.diffusers_folder import DiffusersFolder


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


INPUTS = {
    Network.TEXT_ENCODER: {"tokens": np.arange(32, dtype=np.int32).reshape(2, 16)},
    Network.UNET: {"latents": normal(2, 4, 6, 4), "timestep": np.array([981, 3.25], np.float32), "context": normal(2, 16, 32)},
    Network.VAE_ENCODER: {"images": normal(2, 16, 24, 3)},
    Network.VAE_DECODER: {"latents": normal(2, 2, 3, 4)},
}
PARTS = {
    (Network.VAE_DECODER, VAEPart.TRUNK): {"latents": normal(2, 2, 3, 4)},
    (Network.VAE_DECODER, VAEPart.TILE): {
        "features": normal(2, 4, 6, 32),
        "share": normal(2, 4, 6, 1),
        "told": normal(2, 9, 2, 8),
    },
    (Network.VAE_DECODER, VAEPart.THUMBNAIL): {"features": normal(2, 4, 6, 32), "told": normal(2, 9, 2, 8)},
    (Network.VAE_ENCODER, VAEPart.TILE): {
        "images": normal(2, 16, 24, 3),
        "share": normal(2, 4, 6, 1),
        "told": normal(2, 4, 2, 8),
    },
}


def outputs(folder: Path) -> dict[str, np.ndarray]:
    files = DiffusersFolder(folder)
    networks = {network.value: (load_network(files, network), inputs) for network, inputs in INPUTS.items()}
    parts = {f"{network}.{part}": (load_part(files, network, part), inputs) for (network, part), inputs in PARTS.items()}
    return {
        f"{of}.{name}": array
        for of, (model, inputs) in (networks | parts).items()
        for name, array in run_network(model, inputs).items()
    }


def weights_without_gradient(folder: Path) -> list[str]:
    """On TensorFlow, which is one of the two backends that train."""
    import tensorflow as tf

    names = []
    for network, inputs in INPUTS.items():
        model = load_network(DiffusersFolder(folder), network)
        with tf.GradientTape() as tape:
            outputs = model({name: tf.constant(array) for name, array in inputs.items()})
            loss = sum(tf.reduce_sum(output**2) for output in outputs.values())
        for variable, gradient in zip(model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True):
            if gradient is None or not np.isfinite(tf.convert_to_tensor(gradient)).all():
                names.append(f"{network.value} {variable.path}")
    return names


if __name__ == "__main__":
    import keras

    backend, folder = keras.config.backend(), Path(sys.argv[1])
    np.savez(folder / f"{backend}.npz", **outputs(folder))
    if backend == "tensorflow":
        (folder / "without_gradient.txt").write_text("\n".join(weights_without_gradient(folder)))
