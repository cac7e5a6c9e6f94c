"""What a job keeps of its stages' results, so that none is computed again: the `Keep` of `pipeline.py`, in blobs and a row.

A result is written as a frame of the wire, which says of every tensor its type and shape: nothing is pickled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from triptych.contract import Denoised, DenoiseState, Encoded, EncodedImages, StageName, State
from triptych.errors import InvalidValue, MalformedRequest
from triptych.gateway.jobs.blobs import Blobs
from triptych.gateway.jobs.records import Lease
from triptych.gateway.jobs.table import JobTable
from triptych.pipeline import Kept, StageProgress
from triptych.wire import diffusion, image_encoder, text_encoder
from triptych.wire.frames import Frame, FrameReader, Kind, encode_frame
from triptych.wire.metadata import ANY, TensorSpec
from triptych.wire.open_inference import InferResponse

log = structlog.get_logger(__name__)

_ROWS = (ANY, ANY, ANY, ANY)
_LATENTS = TensorSpec(name="latents", datatype="FP32", shape=_ROWS)


@dataclass(frozen=True)
class _Form:
    """How results of a kind are called among a job's, and the tensors of their frames."""

    name: str
    tensors: tuple[TensorSpec, ...]


_FORMS: Mapping[type, _Form] = {
    Encoded: _Form("context", (TensorSpec(name="context", datatype="FP32", shape=(ANY, ANY, ANY)),)),
    EncodedImages: _Form("image_latents", (_LATENTS,)),
    DenoiseState: _Form(
        "state",
        (
            _LATENTS,
            TensorSpec(name="sampler_state", datatype="FP32", shape=(ANY, *_ROWS), may_be_empty=True),
            TensorSpec(name="position", datatype="INT32", shape=(ANY,)),
        ),
    ),
    Denoised: _Form("latents", (_LATENTS,)),
}


class LeaseLost(Exception):
    """Another gateway has taken the job: whatever is made of it here is not wanted any more."""


def to_bytes(made: Encoded | EncodedImages | DenoiseState | Denoised) -> bytes:
    return encode_frame(Frame(kind=Kind.RESULT, response=_response(made)))


def _response(made: Encoded | EncodedImages | DenoiseState | Denoised) -> InferResponse:
    match made:
        case Encoded():
            return text_encoder.write_response(made)
        case EncodedImages():
            return image_encoder.write_response(made)
        case DenoiseState():
            return diffusion.write_event(State(state=made)).response
        case Denoised():
            # On the wire it has no warnings: those are the gateway's own, of how it came about.
            warnings = {"warnings": "\n".join(made.warnings)} if made.warnings else {}
            return replace(diffusion.write_response(made), parameters=warnings)


def from_bytes(kind: type[Kept], content: bytes) -> Kept:
    """Raises MalformedRequest or InvalidValue where these bytes are no such result."""
    reader = FrameReader({Kind.RESULT: _FORMS[kind].tensors}, limit=len(content))
    (frame,) = reader.feed(content)
    outputs, parameters = frame.response.outputs, frame.response.parameters
    fields: dict[str, Any] = dict(outputs)
    if kind in (Encoded, Denoised):
        fields["warnings"] = tuple(str(parameters.get("warnings", "")).splitlines())
    elif kind is DenoiseState:
        fields["state_key"] = str(parameters.get("state_key", ""))
    return kind(**fields)


class JobKeep:
    """The results of one job, for whoever took it last.

    States come often, and a stage is not to wait until each is written: while one is, of those that come the newest waits.

    Args:
        made_by: Whose results `kept` are: of which weights, and for which parameters.
        kept: Keys by name, as the job's row has them.

    Attributes:
        progress: What a stage has told last; it is written down with the next result.
    """

    def __init__(self, table: JobTable, blobs: Blobs, lease: Lease, *, made_by: str, kept: Mapping[str, str]) -> None:
        self.progress: StageProgress | None = None
        self._table = table
        self._blobs = blobs
        self._lease = lease
        self._made_by = made_by
        self._kept = dict(kept)
        self._newest: tuple[str, DenoiseState] | None = None
        self._writing: asyncio.Task[None] | None = None

    def made_by(self, stages: str) -> JobKeep:
        """Forgets what others than these stages made."""
        if self._made_by != stages:
            self._made_by, self._kept = stages, {}
        return self

    async def recall(self, kind: type[Kept]) -> Kept | None:
        if (key := self._kept.get(_FORMS[kind].name)) is None:
            return None
        try:
            return from_bytes(kind, await self._blobs.get(key))
        except (FileNotFoundError, MalformedRequest, InvalidValue, ValueError) as error:
            log.warning("kept_result_unreadable", job=self._lease.id, kind=_FORMS[kind].name, error=str(error))
            return None

    async def keep(self, made: Kept) -> None:
        """Raises LeaseLost where another has the job, and what went wrong with a state that was written meanwhile."""
        if self._writing is not None and self._writing.done():
            await self.finish()
        if isinstance(made, DenoiseState):
            self._newest = self._made_by, made
            self._writing = self._writing or asyncio.create_task(self._write_states())
            return
        await self.finish()
        await self._write(made)

    async def finish(self) -> None:
        """Waits until the states are written that are being written."""
        if self._writing is not None:
            try:
                await self._writing
            finally:
                self._writing = None

    async def close(self) -> None:
        """Leaves it; what is being written is given up."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
            if not self._writing.cancelled():
                self._writing.exception()
            self._writing = None

    async def note(self, progress: StageProgress) -> None:
        """Writes down that another stage is at work; raises LeaseLost."""
        self.progress = progress
        await self._change(stage=progress.stage, position=progress.position, num_evaluations=progress.num_evaluations)

    async def _write_states(self) -> None:
        while (newest := self._newest) is not None:
            self._newest = None
            made_by, state = newest
            if made_by == self._made_by:
                await self._write(state)

    async def _write(self, made: Encoded | EncodedImages | DenoiseState | Denoised) -> None:
        name = _FORMS[type(made)].name
        before = dict(self._kept)
        self._kept[name] = await self._blobs.put(self._lease.id, to_bytes(made))
        if isinstance(made, Denoised):
            self._kept.pop(_FORMS[DenoiseState].name, None)
        # The row names what is there: it is changed after the new blob is written, and before the old one is deleted.
        await self._change(kept=dict(self._kept), made_by=self._made_by, failures=0, **self._position(made))
        await self._blobs.delete(*set(before.values()) - set(self._kept.values()))

    def _position(self, made: object) -> dict[str, Any]:
        if not isinstance(made, DenoiseState):
            return {}
        total = None if self.progress is None else self.progress.num_evaluations
        return {"stage": StageName.DIFFUSION, "position": int(made.position.min()), "num_evaluations": total}

    async def _change(self, **values: Any) -> None:
        if not await self._table.note(self._lease, **values):
            raise LeaseLost
