"""What a stage wants to be told. Structural: the server's settings satisfy it without knowing that it exists."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class StageOptions(Protocol):
    """How a stage runs. Read once, when the stage starts."""

    @property
    def model(self) -> str:
        """A name of the registry, the path of a folder or a single file, or an id on the Hub: see `registry.find_model`."""

    @property
    def models_file(self) -> Path:
        """The user's own models by name; it need not be there."""

    @property
    def models_folder(self) -> Path:
        """Where models are that were written on this machine."""

    @property
    def engine(self) -> str:
        """`openvino`, `tensorflow` or `jax`."""

    @property
    def precision(self) -> str:
        """`float32`, `bfloat16`, `float16` or `int8`; `auto` is what the engine finds best on this machine."""

    @property
    def cache_folder(self) -> Path:
        """Where compiled networks are kept; made if it is missing."""

    @property
    def quantized_folder(self) -> Path:
        """Where networks are that were quantized to int8; it need not be there."""

    @property
    def cache_bytes(self) -> int | None:
        """What they may take there, those in use aside; None is no limit."""

    @property
    def batch_sizes(self) -> tuple[int, ...] | None:
        """Numbers of rows for which the network is compiled; None is the stage's own choice.

        Each one costs time at the start, and memory for a copy of the weights.
        """

    @property
    def exact(self) -> bool:
        """Whether a row's bytes may depend on nothing but the request: only batch sizes that are exact are run."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...] | None:
        """(width, height) in pixels of the pictures to be ready for, the default first; None is the model's own choice."""

    @property
    def tile_side(self) -> int:
        """Pixels: where a picture is wider or higher, its VAE runs in tiles that are not."""

    @property
    def preview_decoder(self) -> Path | None:
        """Folder of an AutoencoderTiny that decodes previews; None is the model's own, where it has one."""

    @property
    def preview_precision(self) -> str:
        """Of that decoder: `auto` is as for pictures, but float where those are in int8; or `int8`."""

    @property
    def threads(self) -> int | None:
        """CPU threads that the network may use; None is all of them."""

    @property
    def queue_size(self) -> int:
        """Jobs that may wait for the network; one more is refused."""

    @property
    def memory_bytes(self) -> int | None:
        """What the pictures on their way may take, a call of the network included; None is a share of what is left."""

    @property
    def max_prompt_chunks(self) -> int:
        """Chunks of a context that a long prompt may have: the text encoder joins so many, and the diffusion stage has a network
        of its own for each number of them.
        """

    @property
    def feature_reuse(self) -> bool:
        """Whether the diffusion stage takes `cache_interval`: it then has a shallow U-Net for each size beside the whole one."""

    @property
    def cached_contexts(self) -> int:
        """Prompts whose contexts the text encoder keeps; 0 keeps none."""
