"""The networks of a stage: of the model, compiled or read from disk, quantized where that is asked for, and warm."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial

from triptych.checkpoints.checkpoint import Network, UNetPart, VAEPart, load_network, load_part
from triptych.checkpoints.registry import find_model
from triptych.checkpoints.tiny_vae_folder import TinyVAEFolder
from triptych.contract import Numerics, StageName
from triptych.engines import AUTO, CompiledNetwork, Exactness, NetworkSource, Precision, RowSpec, get_engine
from triptych.engines.cache import code_digest
from triptych.engines.exactness import exactness_of
from triptych.engines.hardware import instruction_set
from triptych.engines.quantized import find_quantized
from triptych.errors import CheckpointError, EngineError, StartError
from triptych.stages.batch_sizes import default_batch_sizes
from triptych.stages.memory import Room, plan_memory
from triptych.stages.options import StageOptions

_log = logging.getLogger(__name__)

# Stages of one process start side by side, but take turns network by network: what a call takes, in bytes and in
# seconds, is measured of the whole process, and building and compiling a large network takes several times its memory.
_one_at_a_time = threading.Lock()

QUANTIZABLE: Mapping[Network, StageName] = {Network.UNET: StageName.DIFFUSION, Network.VAE_DECODER: StageName.DECODER}
"""The networks that can be had in int8, and whose they are: those that take the time. The others compute in float."""


class NetworkLoader:
    """The networks of the options' model, compiled by the options' engine.

    Attributes:
        files: The model.
        engine: What compiles them.
        all_from_cache: Whether no network had to be built so far.
    """

    def __init__(self, options: StageOptions, stage: StageName) -> None:
        self.files = find_model(options.model, models_file=options.models_file, models_folder=options.models_folder)
        self.all_from_cache = True
        self._options = options
        self._stage = stage
        self._digests: dict[Network, str] = {}
        self._exactness: list[Exactness] = []
        self._call_bytes = 0
        with _one_at_a_time:  # nor is an engine touched for the first time by two threads at once
            self.engine = get_engine(options.engine, threads=options.threads)
        self._precision = self.engine.choose_precision(options.precision)
        # What is not quantized of a network, or a network that is not, computes in.
        self._float = self.engine.choose_precision(AUTO) if self._precision is Precision.INT8 else self._precision
        self._quantized: list[str] = []

    @property
    def numerics(self) -> Numerics:
        """Of the networks loaded so far."""
        numerics = Numerics(
            engine=self.engine.name,
            version=self.engine.version,
            precision=self._float,
            instruction_set=instruction_set(),
            device=self.engine.device,
        )
        if not self._quantized:
            return numerics
        digest = hashlib.sha256("\n".join(self._quantized).encode()).hexdigest()
        return replace(numerics, precision=Precision.INT8, float_precision=self._float, quantized=digest)

    @property
    def exact_batch_sizes(self) -> tuple[int, ...]:
        """Those that are exact for every network loaded so far."""
        common = set.intersection(*(set(exactness.batch_sizes) for exactness in self._exactness))
        return tuple(sorted(common))

    @property
    def largest_difference(self) -> float:
        """What batch-mates may change in a network's output: nothing where only exact batch sizes are run."""
        return 0.0 if self._options.exact else max(exactness.largest_difference for exactness in self._exactness)

    @property
    def tiny_vae(self) -> TinyVAEFolder | None:
        """What previews are decoded by, where there is one.

        Raises:
            EngineError: There is none, and yet it is wanted in int8.
        """
        folder = self._options.preview_decoder or self.files.tiny_vae
        if folder is None and self._options.preview_precision == Precision.INT8:
            raise EngineError(
                f"TRIPTYCH_PREVIEW_PRECISION is int8, but {self.files.facts.model} has no decoder for previews: "
                "TRIPTYCH_PREVIEW_DECODER names one"
            )
        return None if folder is None else TinyVAEFolder(folder)

    def weights_digest(self, network: Network) -> str:
        if network not in self._digests:  # gigabytes to read
            self._digests[network] = self.files.weights_digest(network)
        return self._digests[network]

    def sizes(self, granularity: int) -> tuple[tuple[int, int], ...]:
        """(width, height) in pixels to be ready for.

        Args:
            granularity: What width and height must be multiples of.

        Raises:
            StartError: One of them is none.
        """
        sizes = self._options.sizes or self.files.facts.sizes
        for side in (side for size in sizes for side in size):
            if side % granularity or side <= 0:
                nearest = max(1, round(side / granularity)) * granularity
                raise StartError(f"sizes: width and height must be multiples of {granularity}, not {side}; nearest is {nearest}")
        return sizes

    def room(self, picture_bytes: Mapping[tuple[int, int], int]) -> Room:
        """The memory for pictures beside the networks loaded so far, of which one is called at a time.

        Args:
            picture_bytes: See `Memory`.

        Raises:
            StartError: The options leave none.
        """
        budget = self._options.memory_bytes
        return Room(self._stage, plan_memory(self._stage, picture_bytes, call_bytes=self._call_bytes, budget=budget))

    def count_call(self, call_bytes: int) -> None:
        """Takes note of what a call takes; those of networks that are loaded here are counted already."""
        self._call_bytes = max(self._call_bytes, call_bytes)

    def load(
        self, network: Network, rows: Mapping[str, RowSpec], *, part: UNetPart | VAEPart | None = None, one_row: bool = False
    ) -> CompiledNetwork:
        """The network for rows of this shape, warm; where the options say so it runs only exact batch sizes.

        Args:
            network: Which one.
            rows: Of each input.
            part: Of the network; None is all of it.
            one_row: It is never run for more.

        Raises:
            CheckpointError, EngineError: As their names say; no batch size is exact.
        """
        source = self._quantized_source(network, rows, part) if self._precision is Precision.INT8 else self.source(network, part)
        batch_sizes = (1,) if one_row else self._batch_sizes(network)
        takes_turns = isinstance(part, VAEPart)
        compiled, exactness = self._compile(network, source, rows, self._float, batch_sizes, keeps_memory=not takes_turns)
        if not self._options.exact:
            difference = exactness.largest_difference
            _log.warning("exact=false: a row's batch-mates may change what the %s gives it by %.2g", network, difference)
        self._exactness.append(exactness)
        return compiled

    def load_float32(self, network: Network, rows: Mapping[str, RowSpec]) -> CompiledNetwork:
        """The network in float32, for one row at a time: what it gives a row never depends on mates, and it takes least memory.

        Raises:
            CheckpointError, EngineError: As `load` raises them.
        """
        compiled, _ = self._compile(network, self.source(network), rows, Precision.FLOAT32, (1,))
        return compiled

    def load_tiny_decoder(self, files: TinyVAEFolder, latents: RowSpec) -> CompiledNetwork:
        """The network of previews, warm. No picture goes through it, so it has no say in what the stage says of itself.

        Raises:
            CheckpointError, EngineError: As their names say; it does not fit the model's VAE.
        """
        network, rows, source = Network.VAE_DECODER, {"latents": latents}, self.tiny_decoder_source(files)
        if self._previews_in_int8:
            folder = self._options.preview_decoder
            settings = "TRIPTYCH_PREVIEW_PRECISION=int8 " + (f"TRIPTYCH_PREVIEW_DECODER={folder} " if folder else "")
            source, _ = self._in_int8(source, rows, stage=StageName.DECODER, settings=settings)
        compiled, _ = self._compile(network, source, rows, self._float, self._batch_sizes(network))
        return compiled

    @cached_property
    def _previews_in_int8(self) -> bool:
        if self._options.preview_precision != Precision.INT8:
            return False
        if self.engine.name != "openvino":
            raise EngineError(f"TRIPTYCH_PREVIEW_PRECISION=int8 is for the engine openvino, not for {self.engine.name}")
        return self.engine.choose_precision(Precision.INT8) is Precision.INT8  # else it is said, once

    def tiny_decoder_source(self, files: TinyVAEFolder) -> NetworkSource:
        """The network of previews in float.

        Raises:
            CheckpointError: As its name says; it does not fit the model's VAE.
        """
        tiny, vae = files.config, self.files.vae
        if (tiny.latent_channels, tiny.downsampling, tiny.out_channels) != (vae.latent_channels, vae.downsampling, 3):
            raise CheckpointError(
                f"{files.path} decodes latents of {tiny.latent_channels} channels, {tiny.downsampling} pixels each, to "
                f"{tiny.out_channels} channels; the model's VAE has {vae.latent_channels}, {vae.downsampling} and 3"
            )
        return NetworkSource(
            name="tiny_decoder",
            build=files.load_decoder,
            key={"network": "tiny_decoder", "weights": files.weights_digest(), "config": tiny.to_dict(), "code": _code()},
        )

    def _compile(
        self,
        network: Network,
        source: NetworkSource,
        rows: Mapping[str, RowSpec],
        precision: Precision,
        batch_sizes: tuple[int, ...],
        *,
        keeps_memory: bool = True,
    ) -> tuple[CompiledNetwork, Exactness]:
        with _one_at_a_time:
            compiled = self.engine.compile(
                source,
                rows,
                batch_sizes=batch_sizes,
                precision=precision,
                cache_folder=self._options.cache_folder,
            )
            exactness = exactness_of(compiled)
            compiled.keeps_memory = keeps_memory
            compiled.warm_up()
        self.count_call(compiled.call_bytes)
        compiled.use(exactness, exactly=self._options.exact)
        self.all_from_cache &= compiled.from_cache
        return compiled, exactness

    def _quantized_source(self, network: Network, rows: Mapping[str, RowSpec], part: UNetPart | VAEPart | None) -> NetworkSource:
        source = self.source(network, part)
        if network not in QUANTIZABLE:
            _log.info("the %s is never quantized, and computes in %s", network, self._float)
            return source
        if isinstance(part, VAEPart):
            raise EngineError(f"the {network} is quantized as a whole: int8 does not go with pictures above TRIPTYCH_TILE_SIDE")
        settings = "" if part is None else "TRIPTYCH_FEATURE_REUSE=true "
        in_int8, digest = self._in_int8(source, rows, stage=QUANTIZABLE[network], settings=settings)
        self._quantized.append(digest)
        return in_int8

    def _in_int8(
        self, source: NetworkSource, rows: Mapping[str, RowSpec], *, stage: StageName, settings: str
    ) -> tuple[NetworkSource, str]:
        """What `triptych quantize` made of a network, and its digest.

        Args:
            source: In float.
            stage: Whose networks the command makes that an error names.
            settings: In front of that command, each with a space behind it.

        Raises:
            EngineError: It made nothing of it.
        """
        folder = self._options.quantized_folder
        if (quantized := find_quantized(folder, source, rows)) is None:
            inputs = ", ".join(f"{name} {row.shape}" for name, row in rows.items() if row.shape)
            raise EngineError(
                f"{folder} has no {source.name} of {self.files.facts.model} in int8 for {inputs}: "
                f"`{settings}triptych quantize {self._options.model} --stage {stage}` makes it"
            )
        key = {"network": source.name, "quantized": quantized.digest}
        return replace(source, key=key, graph=quantized.folder), quantized.digest

    def source(self, network: Network, part: UNetPart | VAEPart | None = None) -> NetworkSource:
        """The network in float, as the checkpoint has it."""
        return NetworkSource(
            name=network if part is None else f"{network}_{part}",
            build=(
                partial(load_part, self.files, network, part)
                if isinstance(part, VAEPart)
                else partial(load_network, self.files, network, part=part)
            ),
            key={
                "network": network,
                "part": part,
                "weights": self.weights_digest(network),
                "config": self.files.config(network).to_dict(),
                "code": _code(),
            },
        )

    def _batch_sizes(self, network: Network) -> tuple[int, ...]:
        if self._options.batch_sizes:
            return self._options.batch_sizes
        sizes = default_batch_sizes(self._stage, self.files.config(network))
        _log.info(
            "the %s is compiled for %s rows at once; TRIPTYCH_BATCH_SIZES changes that", network, " and ".join(map(str, sizes))
        )
        return sizes


def _code() -> list[str]:
    """What of our code decides a network."""
    return [code_digest("triptych.models"), code_digest("triptych.checkpoints")]
