"""Models whose stages are services, by the addresses of a topology."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import httpx2

from triptych.gateway.contexts import CachedTextEncoder
from triptych.gateway.previews import IdleDecoder
from triptych.gateway.registry import Model
from triptych.gateway.topology_file import Addresses, ModelEntry, StageEntry, shown_address
from triptych.pipeline import Pipeline
from triptych.remote import (
    Names,
    Patience,
    RemoteDecoder,
    RemoteDiffusion,
    RemoteImageEncoder,
    RemoteTextEncoder,
    ReplicatedDecoder,
    ReplicatedDiffusion,
    ReplicatedImageEncoder,
    ReplicatedTextEncoder,
)

KINDS: Mapping[StageEntry, tuple[Callable[..., Any], Callable[..., Any]]] = {
    StageEntry.TEXT_ENCODER: (RemoteTextEncoder, ReplicatedTextEncoder),
    StageEntry.DIFFUSION: (RemoteDiffusion, ReplicatedDiffusion),
    StageEntry.DECODER: (RemoteDecoder, ReplicatedDecoder),
    StageEntry.IMAGE_ENCODER: (RemoteImageEncoder, ReplicatedImageEncoder),
}
"""One replica of a stage, and all of them."""

T = TypeVar("T")


class RemoteModels:
    """Makes models. Those that share the addresses of a stage share the stage, so that its load is counted once.

    Args:
        client: What carries the requests; closed by whoever made it.
        token: What the stages demand.
        patience: With replicas.
        context_cache_bytes: Of the contexts that are kept of each text encoder.
    """

    def __init__(
        self, client: httpx2.AsyncClient, *, token: str | None, patience: Patience | None = None, context_cache_bytes: int = 0
    ) -> None:
        self._client = client
        self._token = token
        self._patience = patience
        self._context_cache_bytes = context_cache_bytes
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
        one, all_of = KINDS[stage]
        urls = {shown_address(address): address for address in addresses}
        names = Names(urls, lambda url, ip: one(url, token=self._token, client=self._client, ip=ip))
        replicated = all_of(names.stages, patience=self._patience, resolve=None if names.are_fixed else names.resolve)
        if stage is StageEntry.TEXT_ENCODER:
            return CachedTextEncoder(replicated, max_bytes=self._context_cache_bytes)
        return replicated


def _kept(made: WeakValueDictionary[Any, T], key: Any, make: Callable[[], T]) -> T:
    if (one := made.get(key)) is None:
        made[key] = one = make()
    return one
