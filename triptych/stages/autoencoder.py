"""What the two halves of the autoencoder share: a network for each size of picture, and what they say of themselves."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar, TypeVar

from triptych.checkpoints.checkpoint import Network
from triptych.contract import DecoderIdentity, ImageEncoderIdentity, StageName
from triptych.engines import CompiledNetwork, RowSpec
from triptych.models.config import VAEConfig
from triptych.models.tiling import num_upper_levels
from triptych.stages.call_batcher import CallBatcher
from triptych.stages.local_stage import LocalStage, NetworkLoader
from triptych.stages.options import StageOptions
from triptych.stages.tiles import TiledDecoder, TiledEncoder
from triptych.stages.worker import Worker

HalfIdentity = TypeVar("HalfIdentity", DecoderIdentity, ImageEncoderIdentity)


class AutoencoderStage(LocalStage[HalfIdentity]):
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
        self._worker = Worker(stage=self.name, queue_size=options.queue_size)

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

    def _network_for(self, width: int, height: int, networks: NetworkLoader) -> CallBatcher:
        config, largest = networks.files.vae, self.options.tile_side
        if max(width, height) <= largest or not num_upper_levels(config):
            return self._batched(networks.load(self.network, {self.input: self.row(width, height, config)}))
        tiled = self.tiled(networks, width, height, largest=largest)
        self._tile_sizes[width, height] = tiled.tile_size
        return CallBatcher(tiled, self._worker, capacity=1)

    def _batched(self, network: CompiledNetwork) -> CallBatcher:
        return CallBatcher(network, self._worker, capacity=network.capacity)

    def finish(self) -> None:
        self._worker.close()
