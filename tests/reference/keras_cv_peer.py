"""What `run_keras_cv.py` left in a folder, and our side of the comparison."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference.run_keras_cv import GUIDANCE_SCALE, NEGATIVE_PROMPT, NUM_STEPS, PROMPT, SEED
from tests.stages.options import Options
from tests.tiny_models import ROOT
from triptych.checkpoints.checkpoint import Network
from triptych.contract import UInt8
from triptych.pipeline import Generated, GenerateRequest, Pipeline
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.text_encoder import TextEncoderStage

Arrays = Mapping[str, NDArray[Any]]

TOLERANCE = 1e-5
"""Of a network's error, relative to the norm of its output: float32 sums in another order."""

PIXEL_TOLERANCE = 2
"""Of 255. keras-cv cuts pixels off where we round them."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """keras-cv's side."""

    name: str
    folder: Path
    size: int
    inputs: Arrays
    outputs: Arrays
    images: UInt8
    tokens: NDArray[np.int32]
    epsilons: frozenset[float]

    def inputs_of(self, network: Network) -> Arrays:
        """Under our network's names."""
        match network:
            case Network.TEXT_ENCODER:
                return {"tokens": self.inputs["tokens"]}
            case Network.UNET:
                return {name: self.inputs[name] for name in ("latents", "timestep", "context")}
            case Network.VAE_ENCODER:
                return {"images": self.inputs["pictures"]}
            case Network.VAE_DECODER:
                return {"latents": self.inputs["decoder_latents"]}

    def error(self, network: Network, answer: Arrays) -> tuple[float, float]:
        """The error of our network's answer, and what it may be."""
        match network:
            case Network.TEXT_ENCODER:
                return relative_error(answer["context"], self.outputs["context"]), TOLERANCE
            case Network.UNET:
                return relative_error(answer["prediction"], self.outputs["prediction"]), TOLERANCE
            case Network.VAE_ENCODER:
                scaling_factor = 0.18215  # which keras-cv's encoder multiplies by itself
                return relative_error(scaling_factor * answer["mean"], self.outputs["mean"]), TOLERANCE
            case Network.VAE_DECODER:
                right = self.outputs["images_float64"]
                theirs = relative_error(self.outputs["images_float32"], right)
                return relative_error(answer["images"], right), 2 * theirs + TOLERANCE


def run_peer(name: str, folder: Path, *, size: int, decoder_size: int, narrow: bool = False) -> Peer:
    """Runs keras-cv, in a process of its own."""
    command = [sys.executable, "-m", "tests.reference.run_keras_cv", name, folder]
    command += ["--size", str(size), "--decoder-size", str(decoder_size), *(["--narrow"] if narrow else [])]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return read_peer(name, folder, size)


def read_peer(name: str, folder: Path, size: int) -> Peer:
    inputs, outputs, picture = (dict(np.load(folder / f"{each}.npz")) for each in ("inputs", "outputs", "picture"))
    return Peer(
        name=name,
        folder=folder,
        size=size,
        inputs=inputs,
        outputs=outputs,
        images=picture["images"],
        tokens=picture["tokens"],
        epsilons=frozenset(picture["epsilons"].tolist()),
    )


def relative_error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


async def our_images(model: Path, cache: Path, size: int) -> UInt8:
    """The picture of the same prompt, noise and steps, by our three stages in this process."""
    options = Options(model=str(model), cache_folder=cache, batch_sizes=(2,), exact=False, sizes=((size, size),))
    text_encoder, diffusion, decoder = stages = TextEncoderStage(options), DiffusionStage(options), DecoderStage(options)
    try:
        for stage in stages:
            stage.start()
        return await generated_by(Pipeline(text_encoder, diffusion, decoder), size)
    finally:
        for stage in stages:
            stage.close()


async def generated_by(pipeline: Pipeline, size: int) -> UInt8:
    """The picture that a pipeline makes of keras-cv's prompt and noise, with as many steps."""
    request = GenerateRequest(
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        seed=SEED,
        width=size,
        height=size,
        sampler="ddim",
        num_steps=NUM_STEPS,
        guidance_scale=GUIDANCE_SCALE,
    )
    *_, generated = [event async for event in pipeline.generate(request)]
    assert isinstance(generated, Generated)
    assert isinstance(generated.images, np.ndarray)
    return generated.images
