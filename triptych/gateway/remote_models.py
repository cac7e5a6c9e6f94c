"""Models whose stages are services, by the addresses of a topology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import httpx2

from triptych.gateway.previews import IdleDecoder
from triptych.gateway.registry import Model
from triptych.gateway.topology_file import Addresses, ModelEntry, StageEntry, shown_address
from triptych.pipeline import Pipeline
from triptych.remote import (
    RemoteDecoder,
    RemoteDiffusion,
    RemoteImageEncoder,
    RemoteTextEncoder,
    ReplicatedDecoder,
    ReplicatedDiffusion,
    ReplicatedImageEncoder,
    ReplicatedTextEncoder,
)

KINDS: dict[StageEntry, tuple[Callable[..., Any], Callable[..., Any]]] = {
    StageEntry.TEXT_ENCODER: (RemoteTextEncoder, ReplicatedTextEncoder),
    StageEntry.DIFFUSION: (RemoteDiffusion, ReplicatedDiffusion),
    StageEntry.DECODER: (RemoteDecoder, ReplicatedDecoder),
    StageEntry.IMAGE_ENCODER: (RemoteImageEncoder, ReplicatedImageEncoder),
}
"""A stage at one address, and at several."""

T = TypeVar("T")


class RemoteModels:
    """Makes models. Those that share the addresses of a stage share the stage, so that its load is counted once.

    Args:
        client: What carries the requests; closed by whoever made it.
        token: What the stages demand.
    """

    def __init__(self, client: httpx2.AsyncClient, *, token: str | None) -> None:
        self._client = client
        self._token = token
        # Each lives as long as a model that has it.
        self._stages: WeakValueDictionary[tuple[StageEntry, Addresses], Any] = WeakValueDictionary()
        self._idle_decoders: WeakValueDictionary[Addresses, IdleDecoder] = WeakValueDictionary()

    def pipeline(self, entry: ModelEntry) -> Pipeline:
        """The stages of a model.

        Raises:
            StartError: An address cannot be read.
        """
        return Pipeline(
            text_encoder=self._stage(StageEntry.TEXT_ENCODER, entry.text_encoder),
            diffusion=self._stage(StageEntry.DIFFUSION, entry.diffusion),
            decoder=self._stage(StageEntry.DECODER, entry.decoder),
            image_encoder=self._stage(StageEntry.IMAGE_ENCODER, entry.image_encoder or entry.decoder),
        )

    def model(self, entry: ModelEntry) -> Model:
        """See `pipeline`."""
        pipeline = self.pipeline(entry)
        idle_decoder = _kept(self._idle_decoders, entry.decoder, lambda: IdleDecoder(pipeline.decoder))
        return Model(entry.name, pipeline, idle_decoder=idle_decoder)

    def _stage(self, stage: StageEntry, addresses: Addresses) -> Any:
        return _kept(self._stages, (stage, addresses), lambda: self._make(stage, addresses))

    def _make(self, stage: StageEntry, addresses: Addresses) -> Any:
        one, several = KINDS[stage]
        replicas = {shown_address(address): one(address, token=self._token, client=self._client) for address in addresses}
        return several(replicas) if len(replicas) > 1 else next(iter(replicas.values()))


def _kept(made: WeakValueDictionary[Any, T], key: Any, make: Callable[[], T]) -> T:
    if (one := made.get(key)) is None:
        made[key] = one = make()
    return one
