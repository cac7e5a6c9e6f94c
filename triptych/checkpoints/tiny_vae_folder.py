"""The folder of an AutoencoderTiny, as diffusers writes it: config.json and diffusion_pytorch_model.safetensors."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.checkpoints.weights import fill, read_json, tensor_file
from triptych.errors import CheckpointError
from triptych.models.config import TinyVAEConfig

if TYPE_CHECKING:
    import keras


class TinyVAEFolder:
    """Of the network only the decoder is ever read.

    All members raise CheckpointError where their file is missing, damaged, or describes what we do not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def config(self) -> TinyVAEConfig:
        return TinyVAEConfig.from_dict(read_json(self.path / "config.json"))

    def load_decoder(self) -> keras.Model:
        """The decoder, built and with its weights."""
        from triptych.models.tiny_vae import build_tiny_decoder

        model = build_tiny_decoder(self.config, kernel_initializer="zeros")
        with tensor_file(self._weights, _name_in_decoder) as tensors:
            fill(model, tensors)
        return model

    def weights_digest(self) -> str:
        """sha256 of the file of weights, in hexadecimal."""
        try:
            with self._weights.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{self._weights} cannot be read: {error}") from error

    @property
    def _weights(self) -> Path:
        return self.path / "diffusion_pytorch_model.safetensors"


def _name_in_decoder(key: str) -> str | None:
    return key if key.startswith("decoder.") else None
