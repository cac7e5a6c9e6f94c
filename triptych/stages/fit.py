"""Whether the networks of a model can be loaded, and fit each other, before a service tries."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import Checkpoint, Network, load_network
from triptych.checkpoints.entries import FAMILIES
from triptych.checkpoints.weights import Tensors
from triptych.contract import StageName
from triptych.engines.keras_backend import import_keras
from triptych.errors import CheckpointError, TriptychError
from triptych.models.tokenizer import Tokenizer
from triptych.sampling.samplers import SAMPLERS, make_plan
from triptych.sampling.schedule import ScheduleConfig

NETWORKS: Mapping[StageName, tuple[Network, ...]] = {
    StageName.TEXT_ENCODER: (Network.TEXT_ENCODER,),
    StageName.DIFFUSION: (Network.UNET,),
    StageName.DECODER: (Network.VAE_DECODER, Network.VAE_ENCODER),
}
"""What each stage runs."""

CONTEXT_WIDTHS = {family.text_space: family.context_width for family in FAMILIES.values()}
"""Of the text spaces that many models share."""


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """What was seen of a network while it was loaded.

    Attributes:
        parameters: Their number.
        weights_bytes: Of its tensors on disk.
        dtypes: Of its tensors on disk, such as `float16`.
        digest: See `Checkpoint.weights_digest`.
    """

    network: Network
    parameters: int
    weights_bytes: int
    dtypes: tuple[str, ...]
    digest: str


def load_alone(checkpoint: Checkpoint, network: Network, *, backend: str) -> LoadedNetwork:
    """Builds a network, fills it with its weights and lets go of it.

    Args:
        backend: Of Keras: `openvino`, `tensorflow` or `jax`.

    Raises:
        CheckpointError: It cannot be loaded; the sentence says why.
        EngineError: The backend is not installed, or Keras runs on another one already.
    """
    import_keras(backend)
    watched = _Watched(checkpoint)
    parameters = load_network(watched, network).count_params()
    gc.collect()  # a Keras model is a cycle: the next one must find its memory free
    return LoadedNetwork(
        network=network,
        parameters=parameters,
        weights_bytes=watched.weights_bytes,
        dtypes=tuple(sorted(watched.dtypes)),
        digest=checkpoint.weights_digest(network),
    )


def check_fit(checkpoint: Checkpoint, stages: Collection[StageName] = tuple(NETWORKS)) -> None:
    """Refuses a model whose parts do not go together. Only configurations and the vocabulary are read.

    Args:
        stages: Those that are looked at; diffusion has something to say about both others.

    Raises:
        CheckpointError: One sentence that names what does not fit.
    """
    checks = {
        StageName.TEXT_ENCODER: _check_text_encoder,
        StageName.DIFFUSION: _check_diffusion,
        StageName.DECODER: _check_decoder,
    }
    for stage in stages:
        checks[stage](checkpoint)


def _check_text_encoder(checkpoint: Checkpoint) -> None:
    config, facts = checkpoint.text_encoder, checkpoint.facts
    size = 1 + max(Tokenizer.from_folder(checkpoint.tokenizer).bpe.get_vocab(with_added_tokens=True).values())
    if size > config.vocab_size:
        raise CheckpointError(f"the tokenizer has {size} tokens, but the text encoder embeds {config.vocab_size} only")
    if (width := CONTEXT_WIDTHS.get(facts.text_space, config.hidden_size)) != config.hidden_size:
        raise CheckpointError(
            f"the text encoder makes contexts {config.hidden_size} wide; those of text_space {facts.text_space} are {width} wide"
        )


def _check_diffusion(checkpoint: Checkpoint) -> None:
    unet, vae, text = checkpoint.unet, checkpoint.vae, checkpoint.text_encoder
    if unet.cross_attention_dim != text.hidden_size:
        raise CheckpointError(
            f"the text encoder makes contexts {text.hidden_size} wide, and the U-Net takes them {unet.cross_attention_dim} wide"
        )
    latents, inpainting = vae.latent_channels, 2 * vae.latent_channels + 1
    if unet.in_channels not in (latents, inpainting) or unet.out_channels != latents:
        raise CheckpointError(
            f"the VAE's latents have {latents} channels; the U-Net takes {unet.in_channels}, where {latents} or, for inpainting, "
            f"{inpainting} would fit, and gives {unet.out_channels}"
        )
    _check_sizes(checkpoint, vae.downsampling * 2 ** (len(unet.block_out_channels) - 1))
    _check_sampling(checkpoint)


def _check_sampling(checkpoint: Checkpoint) -> None:
    facts, schedule = checkpoint.facts, ScheduleConfig.from_dict(checkpoint.scheduler)
    check_sampler(facts.sampler)
    try:
        make_plan(facts.sampler, schedule, facts.num_steps)
    except TriptychError as error:
        raise CheckpointError(f"{facts.num_steps} steps of {facts.sampler} cannot be done: {error.message}") from error


def check_sampler(name: str) -> None:
    """Raises CheckpointError where there is none of that name."""
    if name not in SAMPLERS:
        raise CheckpointError(f"there is no sampler {name!r}; there are {', '.join(SAMPLERS)}")


def _check_decoder(checkpoint: Checkpoint) -> None:
    vae = checkpoint.vae
    if (vae.in_channels, vae.out_channels) != (3, 3):
        raise CheckpointError(f"the VAE takes {vae.in_channels} and gives {vae.out_channels} channels, where a picture has 3")
    if not vae.scaling_factor > 0:
        raise CheckpointError(f"the VAE's scaling_factor must be greater than 0, not {vae.scaling_factor}")
    _check_sizes(checkpoint, vae.downsampling)


def _check_sizes(checkpoint: Checkpoint, granularity: int) -> None:
    for width, height in checkpoint.facts.sizes:
        if width % granularity or height % granularity or min(width, height) <= 0:
            raise CheckpointError(f"the model's size {width}x{height} is no multiple of {granularity}, as its networks want it")


class _Watched:
    """A checkpoint whose tensors are counted while they are read. Everything else is the checkpoint's own."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.weights_bytes = 0
        self.dtypes: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    @contextmanager
    def tensors(self, network: Network) -> Iterator[Tensors]:
        with self._checkpoint.tensors(network) as tensors:
            yield _WatchedTensors(tensors, self)


class _WatchedTensors:
    """See `Tensors`."""

    def __init__(self, tensors: Tensors, watched: _Watched) -> None:
        self._tensors = tensors
        self._watched = watched

    @property
    def origin(self) -> str:
        return self._tensors.origin

    def names(self) -> Collection[str]:
        return self._tensors.names()

    def read(self, name: str) -> NDArray[Any]:
        array = self._tensors.read(name)
        self._watched.weights_bytes += array.nbytes
        self._watched.dtypes.add(array.dtype.name)
        return array
