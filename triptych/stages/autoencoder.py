"""What the two halves of the autoencoder share: a network for each size of picture, and what they say of themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, TypeVar

from triptych.checkpoints.checkpoint import Network
from triptych.contract import DecoderIdentity, ImageEncoderIdentity, StageName
from triptych.engines import Precision, RowSpec
from triptych.models.config import VAEConfig
from triptych.stages.call_batcher import CallBatcher
from triptych.stages.finite_network import FiniteNetwork
from triptych.stages.local_stage import LocalStage, NetworkLoader
from triptych.stages.options import StageOptions
from triptych.stages.worker import Worker

HalfIdentity = TypeVar("HalfIdentity", DecoderIdentity, ImageEncoderIdentity)


class AutoencoderStage(LocalStage[HalfIdentity]):
    """One half of the autoencoder.

    Attributes:
        network: Which half.
        input: What its network calls its one input.
        identity_type: Of what it says of itself.
    """

    name = StageName.DECODER
    network: ClassVar[Network]
    input: ClassVar[str]
    identity_type: type[HalfIdentity]

    def __init__(self, options: StageOptions) -> None:
        super().__init__(options)
        self._worker = Worker(stage=self.name, queue_size=options.queue_size)
        self._finite_networks: list[FiniteNetwork] = []

    @staticmethod
    @abstractmethod
    def row(width: int, height: int, config: VAEConfig) -> RowSpec:
        """The network's input for pictures of this size, (H, W, channels)."""

    def load(self, networks: NetworkLoader) -> HalfIdentity:
        facts, config = networks.files.facts, networks.files.vae
        sizes = networks.sizes(config.downsampling)
        rows = [self.row(width, height, config) for width, height in sizes]
        self._networks = {row.shape[:2]: self._batched(networks, {self.input: row}) for row in rows}
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
        )

    @property
    def float32_rows(self) -> int:
        """Rows so far that were NaN or infinite in half precision, and computed again in float32."""
        return sum(network.float32_rows for network in self._finite_networks)

    def _batched(self, networks: NetworkLoader, rows: Mapping[str, RowSpec]) -> CallBatcher:
        network, precision = networks.load(self.network, rows), networks.numerics.precision
        make_float32 = None if precision == Precision.FLOAT32 else partial(networks.load_float32, self.network, rows)
        finite = FiniteNetwork(network, make_float32, name=self.title or self.name, precision=precision)
        self._finite_networks.append(finite)
        return CallBatcher(finite, self._worker, capacity=network.usable_batch_sizes[-1])

    def finish(self) -> None:
        self._worker.close()
