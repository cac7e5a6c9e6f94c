"""A model's networks in int8: quantized by what they see while the model makes pictures."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import Network, UNetPart, VAEPart
from triptych.contract import Denoised, DenoiseRequest, EncodeRequest, Float32, StageName
from triptych.engines import CompiledNetwork, NetworkSource, Precision, RowSpec
from triptych.engines.compiled import Arrays
from triptych.engines.quantized import find_quantized
from triptych.errors import EngineError
from triptych.models.tiling import is_tiled
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage, granularity, takes_masked_image, unet_rows, with_features
from triptych.stages.networks import NetworkLoader
from triptych.stages.options import StageOptions
from triptych.stages.text_encoder import TextEncoderStage

_log = logging.getLogger(__name__)

ROWS_OF_A_PICTURE = 8
"""Of the U-Net's inputs, that are taken from the making of one picture: a few steps, each with both halves of the guidance."""

REUSE_INTERVAL = 3
"""At which pictures are made to go by, where the networks are those of feature reuse."""

PROMPTS = (
    "a lighthouse on a cliff at dusk, oil painting",
    "portrait of an old fisherman, natural light, 85mm photograph",
    "a bowl of lemons on a blue tablecloth, still life",
    "a busy street in the rain at night, neon signs, reflections",
    "a red fox asleep in the snow",
    "isometric drawing of a small wooden house with a garden",
    "an astronaut in a field of sunflowers, wide angle",
    "a black and white photograph of a steam train in a station",
    "watercolour of a harbour with sailing boats",
    "close-up of a green beetle on a leaf, macro",
    "a castle above the clouds, fantasy, detailed",
    "a child's drawing of a dinosaur",
    "interior of a library with tall windows and dust in the light",
    "a plate of sushi, food photography",
    "an abstract composition of circles and lines in yellow and grey",
    "mountains behind a calm lake in the morning, mist",
)
"""For models that know any word."""

_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
_THINGS = ("circle", "square", "star", "heart", "triangle", "house", "tree", "fish")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One network that is quantized now, or was before.

    Attributes:
        name: Of the network, or of its part where features are reused.
        inputs: What it was quantized for, for people.
        was_there: It was, and has been left as it is.
    """

    name: str
    inputs: str
    folder: Path
    was_there: bool


def default_prompts(words: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Prompts that the model knows all words of.

    Args:
        words: Those that it knows; None is any.
        count: How many at the most.
    """
    if words is None:
        return PROMPTS[:count]
    colours = [colour for colour in _COLOURS if colour in words]
    things = [thing for thing in _THINGS if thing in words]
    made = (
        f"a {colour} {things[(place + turn) % len(things)]} on a {colours[(place + turn + 1) % len(colours)]} background"
        for turn in range(len(things))
        for place, colour in enumerate(colours)
    )
    return tuple(prompt for _, prompt in zip(range(count), made, strict=False)) or PROMPTS[:count]


def quantize_model(
    options: StageOptions,
    stages: Sequence[str],
    *,
    samples: int,
    prompts: Sequence[str] | None,
    on_progress: Callable[[int, int], None],
) -> Iterator[Outcome]:
    """Makes pictures, and quantizes what the stages need for each size and length of context that the options name.

    What was quantized before is left as it is; where that is all, no picture is made.

    Args:
        options: Of the stages in float.
        stages: `diffusion` or `decoder`, or both.
        samples: Rows of the U-Net's inputs to go by; the decoder goes by the latents of the same pictures.
        prompts: What to make pictures of; None is a choice that suits the model.
        on_progress: Told how many pictures are made, and of how many.

    Raises:
        StartError: A stage does not start, the engine or the network cannot be quantized, or a folder cannot be written.
    """
    if options.engine != "openvino":
        raise EngineError(f"int8 is for the engine openvino, not for {options.engine}")
    from triptych.engines.openvino import OpenVINOEngine
    from triptych.engines.quantization import check_quantizer, quantize

    check_quantizer()
    networks = NetworkLoader(options, StageName.DIFFUSION)
    assert isinstance(networks.engine, OpenVINOEngine), "it was asked for"
    wanted = [each for stage in stages for each in _networks_of(stage, networks, options)]
    missing = [each for each in wanted if find_quantized(options.quantized_folder, each.source, each.rows) is None]
    prompts = _prompts(networks, samples, prompts)
    seen = asyncio.run(_Sampling(options, prompts, samples, on_progress).inputs_of(missing)) if missing else {}
    for each in wanted:
        quantized, was_there = quantize(
            each.source,
            each.rows,
            seen.get(each, ()),
            engine=networks.engine,
            cache_folder=options.cache_folder,
            folder=options.quantized_folder,
            facts={"model": networks.files.facts.model, "network": each.source.name, "inputs": each.inputs, "prompts": prompts},
        )
        yield Outcome(name=each.source.name, inputs=each.inputs, folder=quantized.folder, was_there=was_there)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Wanted:
    """A network for pictures of one size and contexts of one length.

    Attributes:
        network: Of the model, or what the tiny decoder of previews stands for: it sees the same.
    """

    network: Network
    part: UNetPart | None = None
    source: NetworkSource
    size: tuple[int, int]
    chunks: int
    rows: Mapping[str, RowSpec]

    @property
    def inputs(self) -> str:
        """For people."""
        of_contexts = f" and contexts of {self.chunks} chunks" if self.chunks > 1 else ""
        return "{}x{}".format(*self.size) + of_contexts


def _networks_of(stage: str, networks: NetworkLoader, options: StageOptions) -> Iterator[_Wanted]:
    if stage == StageName.DECODER:
        vae, network = networks.files.vae, Network.VAE_DECODER
        pictures, previews = networks.source(network), None
        if options.preview_precision == Precision.INT8 and (tiny := networks.tiny_vae):
            previews = networks.tiny_decoder_source(tiny)
        for size in networks.sizes(vae.downsampling):
            rows = {DecoderStage.input: DecoderStage.row(*size, vae)}
            if is_tiled(*size, vae, tile_side=options.tile_side):
                _log.warning("pictures of %dx%d are decoded in tiles, and those not in int8: TRIPTYCH_TILE_SIDE", *size)
            else:
                yield _Wanted(network=network, source=pictures, size=size, chunks=1, rows=rows)
            if previews is not None:
                yield _Wanted(network=network, source=previews, size=size, chunks=1, rows=rows)
        return
    if takes_masked_image(networks.files):
        raise EngineError(f"the U-Net of {networks.files.facts.model} sees a masked picture: there is no int8 for such yet")
    for size, chunks in product(networks.sizes(granularity(networks.files)), range(1, options.max_prompt_chunks + 1)):
        rows = unet_rows(networks.files, size, chunks)
        parts: dict[UNetPart | None, Mapping[str, RowSpec]] = {None: rows}
        if options.feature_reuse:
            parts = {UNetPart.WHOLE: rows, UNetPart.SHALLOW: with_features(rows, networks.files.unet)}
        for part, inputs in parts.items():
            source = networks.source(Network.UNET, part)
            yield _Wanted(network=Network.UNET, part=part, source=source, size=size, chunks=chunks, rows=inputs)


def _prompts(networks: NetworkLoader, samples: int, prompts: Sequence[str] | None) -> tuple[str, ...]:
    count = max(1, samples // ROWS_OF_A_PICTURE)
    return default_prompts(networks.files.facts.words, count) if prompts is None else tuple(prompts[:count])


class _RecordingLoader(NetworkLoader):
    """Its networks note what they are called with.

    Attributes:
        calls: Inputs of all calls since somebody took them out, by the part of the network.
    """

    def __init__(self, options: StageOptions, stage: StageName) -> None:
        super().__init__(options, stage)
        self.calls: defaultdict[UNetPart | VAEPart | None, list[Arrays]] = defaultdict(list)

    def load(
        self, network: Network, rows: Mapping[str, RowSpec], *, part: UNetPart | VAEPart | None = None, one_row: bool = False
    ) -> CompiledNetwork:
        compiled = super().load(network, rows, part=part, one_row=one_row)

        def run(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            self.calls[part].append(inputs)
            return compiled.run_exactly(inputs)

        return CompiledNetwork(run, rows, compiled.usable_batch_sizes, from_cache=compiled.from_cache)


class _Sampling:
    """Pictures in the making, as far as latents, by the stages in float.

    Args:
        prompts: One a picture.
        samples: Rows of the U-Net's inputs to take for each size and length of context.
    """

    def __init__(
        self, options: StageOptions, prompts: Sequence[str], samples: int, on_progress: Callable[[int, int], None]
    ) -> None:
        self._prompts = prompts
        self._rows_of_a_picture = max(1, samples // len(prompts))
        self._cache_interval = REUSE_INTERVAL if options.feature_reuse else 1
        self._on_progress = on_progress
        self._networks = _RecordingLoader(options, StageName.DIFFUSION)
        self._text_encoder = TextEncoderStage(options)
        self._diffusion = DiffusionStage(options)

    async def inputs_of(self, wanted: Sequence[_Wanted]) -> dict[_Wanted, list[Arrays]]:
        """What each of the networks sees, a row each."""
        try:
            self._text_encoder.start()
            self._diffusion.start(self._networks)
            return await self._inputs_of(wanted)
        finally:
            self._text_encoder.close()
            self._diffusion.close()

    async def _inputs_of(self, wanted: Sequence[_Wanted]) -> dict[_Wanted, list[Arrays]]:
        seen: dict[_Wanted, list[Arrays]] = {each: [] for each in wanted}
        kinds = sorted({(each.size, each.chunks) for each in wanted})
        contexts = await self._contexts()
        for done, (place, (size, chunks)) in enumerate(product(range(len(self._prompts)), kinds)):
            self._on_progress(done, len(self._prompts) * len(kinds))
            joined = [contexts[(place + chunk) % len(self._prompts)] for chunk in range(chunks)]
            latents = await self._denoise(np.concatenate(joined, axis=1), size, seed=place)
            calls, self._networks.calls = self._networks.calls, defaultdict(list)
            for each in wanted:
                if (each.size, each.chunks) != (size, chunks):
                    continue
                if each.network is Network.VAE_DECODER:
                    seen[each].append({DecoderStage.input: latents})
                else:
                    seen[each] += self._some(calls[each.part], place)
        return seen

    async def _contexts(self) -> list[Float32]:
        """Of each prompt and of none, (2, T, D)."""
        requests = (EncodeRequest(prompts=(prompt, ""), truncate=True) for prompt in self._prompts)
        return [(await self._text_encoder.encode(request)).context for request in requests]

    async def _denoise(self, contexts: Float32, size: tuple[int, int], *, seed: int) -> Float32:
        """Latents (1, H/8, W/8, C), made as the model makes them unless asked otherwise."""
        identity = await self._diffusion.identity()
        request = DenoiseRequest(
            context=contexts[:1],
            unconditional_context=contexts[1:],
            seeds=np.array([seed], np.uint64),
            width=size[0],
            height=size[1],
            sampler=identity.samplers[0],
            num_steps=identity.default_num_steps,
            guidance_scale=identity.default_guidance_scale,
            cache_interval=self._cache_interval,
        )
        async for event in self._diffusion.denoise(request):
            if isinstance(event, Denoised):
                return event.latents
        raise AssertionError("a denoising ends with its result, or raises")

    def _some(self, calls: Sequence[Arrays], place: int) -> list[Arrays]:
        """A few rows of the U-Net's calls for a picture, spread over the steps; other steps with every picture.

        Raises:
            EngineError: There are none.
        """
        if not calls:
            raise EngineError(
                "the model makes its pictures in one step, where nothing is reused: quantize it without feature reuse"
            )
        count = min(len(calls), -(-self._rows_of_a_picture // len(calls[0]["timestep"])))
        stride = len(calls) // count
        chosen = [calls[number * stride + place % stride] for number in range(count)]
        return [
            {name: array[row : row + 1] for name, array in call.items()}
            for call in chosen
            for row in range(len(call["timestep"]))
        ]
