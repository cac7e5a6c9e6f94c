"""What the two halves of the autoencoder share: a network for each size of picture, and what they say of themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import ClassVar, TypeVar

from triptych.checkpoints.checkpoint import Network
from triptych.contract import DecoderIdentity, ImageEncoderIdentity, StageName
from triptych.engines import Precision, RowSpec
from triptych.models.config import VAEConfig
from triptych.models.tiling import is_tiled
from triptych.stages.call_batcher import CallBatcher
from triptych.stages.finite_network import FiniteNetwork
from triptych.stages.finite_network import Network as Run
from triptych.stages.local_stage import CallingStage
from triptych.stages.networks import NetworkLoader
from triptych.stages.options import StageOptions
from triptych.stages.tiles import TiledDecoder, TiledEncoder

HalfIdentity = TypeVar("HalfIdentity", DecoderIdentity, ImageEncoderIdentity)


class AutoencoderStage(CallingStage[HalfIdentity]):
    """One half of the autoencoder.

    Attributes:
        network: Which half.
        input: What its network calls its one input.
        tiled: What stands for the network where pictures are larger than `tile_side`.
        identity_type: Of what it says of itself.
    """

    name = StageName.DECODER
    network: ClassVar[Network]
    input: ClassVar[str]
    tiled: ClassVar[type[TiledDecoder] | type[TiledEncoder]]
    identity_type: type[HalfIdentity]

    def __init__(self, options: StageOptions) -> None:
        super().__init__(options)
        self._finite_networks: list[FiniteNetwork] = []

    @staticmethod
    @abstractmethod
    def row(width: int, height: int, config: VAEConfig) -> RowSpec:
        """The network's input for pictures of this size, (H, W, channels)."""

    @staticmethod
    @abstractmethod
    def picture_bytes(width: int, height: int, config: VAEConfig) -> int:
        """What is held at the most for a picture of this size as long as it is on its way."""

    def take_room(self, pictures: int, size: tuple[int, int]) -> AbstractContextManager[None]:
        """See `Room.take`."""
        assert self._room is not None, "a stage that says who it is has started"
        return self._room.take(pictures, size, retry_after=self._worker.seconds_to_a_free_place)

    def load(self, networks: NetworkLoader) -> HalfIdentity:
        facts, config = networks.files.facts, networks.files.vae
        sizes = networks.sizes(config.downsampling)
        self._tile_sizes: dict[tuple[int, int], tuple[int, int]] = {}
        self._networks = {self.row(*size, config).shape[:2]: self._network_for(*size, networks) for size in sizes}
        self._room = networks.room({(width, height): self.picture_bytes(width, height, config) for width, height in sizes})
        return self.identity_type(
            model=facts.model,
            weights_digest=networks.weights_digest(self.network),
            numerics=networks.numerics,
            exact=self.options.exact,
            exact_batch_sizes=networks.exact_batch_sizes,
            largest_difference=networks.largest_difference,
            latent_space=facts.latent_space,
            latent_channels=config.latent_channels,
            scaling_factor=config.scaling_factor,
            downsampling=config.downsampling,
            sizes=sizes,
            tile_sizes=tuple(self._tile_sizes.get(size, size) for size in sizes),
        )

    @property
    def float32_rows(self) -> int:
        """Rows so far that were NaN or infinite in half precision, and computed again in float32."""
        return sum(network.float32_rows for network in self._finite_networks)

    def _network_for(self, width: int, height: int, networks: NetworkLoader) -> CallBatcher:
        config, largest, precision = networks.files.vae, self.options.tile_side, networks.numerics.precision
        if is_tiled(width, height, config, tile_side=largest):
            tiled = self.tiled(networks, width, height, largest=largest)
            self._tile_sizes[width, height] = tiled.tile_size
            networks.count_call(tiled.call_bytes)
            return self._batched(tiled, capacity=1, precision=precision)  # float32 would take twice the memory that tiles spare
        rows = {self.input: self.row(width, height, config)}
        network = networks.load(self.network, rows)
        make_float32 = None if precision == Precision.FLOAT32 else partial(networks.load_float32, self.network, rows)
        return self._batched(network, capacity=network.capacity, precision=precision, make_float32=make_float32)

    def _batched(
        self, network: Run, *, capacity: int, precision: str, make_float32: Callable[[], Run] | None = None
    ) -> CallBatcher:
        finite = FiniteNetwork(network, make_float32, name=self.title or self.name, precision=precision)
        self._finite_networks.append(finite)
        return CallBatcher(finite, self._worker, capacity=capacity)
