"""Exchanging a stage of a model while requests are flowing.

::

    checked ──▶ the topology file rewritten ──▶ new requests go to the new stage ──▶ the old model let go
       └──▶ refused: the file and the traffic are as they were

Checked is every new replica by itself: who it says that it is, whether that fits with the model's other stages, and one picture
of one step, made with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import numpy as np

from triptych.contract import ImageFormat, StageName, Task
from triptych.errors import CallerError, Conflict, QueueFull, StageError, StageNotReady, TriptychError
from triptych.gateway.live_topology import LiveTopology, shown
from triptych.gateway.registry import Identities, Model
from triptych.gateway.steps import StepKind
from triptych.gateway.topology_file import Addresses, ModelEntry, StageEntry, with_stage
from triptych.pipeline import Edit, GenerateRequest
from triptych.wire.open_inference import quoted

AT_THE_DECODERS_PLACE = "its decoder's place"


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """What was done.

    Attributes:
        model: The model's name from now on.
        before: The addresses that are not asked any more; none where the image encoder was with the decoder.
    """

    model: str
    stage: StageEntry
    before: Addresses
    now: Addresses


class Swaps:
    """One swap at a time.

    Args:
        topology: What is changed.
        timeout_seconds: How long a new stage's picture of one step may take.
    """

    def __init__(self, topology: LiveTopology, *, timeout_seconds: float) -> None:
        self._topology = topology
        self._timeout_seconds = timeout_seconds
        self._at_work = asyncio.Lock()

    async def swap(self, stage: StageEntry, to: Addresses, *, model: str | None) -> Swapped:
        """Puts other replicas in a stage's place, for good.

        Args:
            stage: Of the model.
            to: Addresses of the new ones.
            model: Its name; None is the default one.

        Raises:
            NotFound: No model has that name.
            Conflict: The new stage does not fit, makes no picture, or is the old one; or another swap is at work, or the
                topology file cannot be used or written.
            StageNotReady: The new stage, or another one of the model, is not there.
            QueueFull: The model's other stages are too busy to try the new one.
        """
        return await self._in_turn(model, partial(self._exchange, stage, model, StepKind.SWAPPED, lambda entry: to))

    async def roll_back(self, stage: StageEntry, *, model: str | None) -> Swapped:
        """Puts back what the last swap of a stage replaced. Errors are those of `swap`, whose checks are made again."""
        before = partial(_previous, stage)
        return await self._in_turn(model, partial(self._exchange, stage, model, StepKind.ROLLED_BACK, before))

    async def _in_turn(self, model: str | None, work: Callable[[], Awaitable[Swapped]]) -> Swapped:
        if self._at_work.locked():
            raise Conflict("another swap is at work; try again when it has ended")
        async with self._at_work:
            try:
                return await work()
            except TriptychError as error:
                self._note(StepKind.REFUSED, f"{error.message}; nothing was changed", model)
                raise

    async def _exchange(
        self, stage: StageEntry, name: str | None, kind: StepKind, choose: Callable[[ModelEntry], Addresses]
    ) -> Swapped:
        topology = self._topology
        await topology.refresh()
        if topology.problem is not None:
            raise Conflict(f"the topology file must be mended first: {topology.problem}")
        text = topology.text
        place, entry, old = topology.find(name)
        to = choose(entry)
        if to == entry.at(stage):
            raise Conflict(f"the {stage} is at {_shown(to)} already")
        new = entry.with_stage(stage, to)
        model = await self._checked(new, stage, instead_of=old)
        assert model.identities is not None
        called = model.name_with(model.identities)
        change = f"{stage} from {_shown(entry.at(stage))} to {_shown(to)}"
        self._note(StepKind.CHECKED, f"{stage} at {_shown(to)} fits, is ready and made a picture", called)
        after = with_stage(text, place=place, stage=stage, to=to)
        await topology.write(after, new, model, before=text, told=lambda: self._note(kind, change, called))
        return Swapped(model=called, stage=stage, before=entry.at(stage), now=to)

    async def _checked(self, entry: ModelEntry, stage: StageEntry, *, instead_of: Model) -> Model:
        """The model of an entry, ready to be asked for pictures."""
        alone = [entry.with_stage(stage, (address,)) for address in entry.at(stage)]
        for each in alone or [entry]:
            await self._prove(self._topology.models.model(each), stage)
        model = self._topology.models.model(entry)
        identities = await _fitting(model)
        name = model.name_with(identities)
        if any(other.name == name for other in self._topology.registry if other is not instead_of):
            raise Conflict(
                f"there is a model {quoted(name)} already, and this one would go by the same name: give it one of its own"
            )
        return model

    async def _prove(self, model: Model, stage: StageEntry) -> None:
        identities = await _fitting(model)
        if stage is StageEntry.IMAGE_ENCODER and identities.image_encoder is None:
            await _explain_image_encoder(model, identities)
        deadline = time.monotonic() + self._timeout_seconds
        try:
            await _make(model, trial_request(identities), deadline)
            if stage in (StageEntry.DECODER, StageEntry.IMAGE_ENCODER) and changes_pictures(identities):
                await _make(model, trial_request(identities, of_a_picture=True), deadline)
        except QueueFull:
            raise
        except StageError as error:
            raise StageNotReady(f"it made no picture: {error.message}", stage=error.stage) from None
        except CallerError as error:
            raise Conflict(f"it made no picture: {error.message}") from None

    def _note(self, kind: StepKind, message: str, model: str | None) -> None:
        self._topology.registry.steps.note(kind, message, model=model)


def _previous(stage: StageEntry, entry: ModelEntry) -> Addresses:
    if stage not in entry.previous:
        raise Conflict(f"there is nothing to roll back to: the {stage} was not swapped")
    return entry.previous[stage]


async def _fitting(model: Model) -> Identities:
    """What a model's stages say of themselves now.

    Raises:
        Conflict: They do not fit.
        StageNotReady: One is not there.
    """
    await model.learn()
    if model.identities is not None:
        return model.identities
    if (sentence := model.problems.get("stages")) is not None:
        raise Conflict(sentence)
    stage, problem = next(iter(model.problems.items()))
    raise StageNotReady(problem, stage=stage)


async def _explain_image_encoder(model: Model, identities: Identities) -> None:
    """Raises why the image encoder is none of the model's: it is missing, or its latents are others."""
    assert model.pipeline.image_encoder is not None
    try:
        identity = await model.pipeline.image_encoder.identity()
    except StageError as error:
        raise StageNotReady(error.message, stage=StageName.DECODER) from None
    raise Conflict(
        f"the image encoder {identity.model!r} has latent space {identity.latent_space}, "
        f"the diffusion model {identities.diffusion.model!r} wants {identities.diffusion.latent_space}"
    )


def changes_pictures(identities: Identities) -> bool:
    return identities.image_encoder is not None and Task.IMAGE_TO_IMAGE in identities.diffusion.tasks


def trial_request(identities: Identities, *, of_a_picture: bool = False) -> GenerateRequest:
    """The smallest request that every stage has work with: one picture of one step, from text or from a black picture."""
    width, height = identities.sizes[0]
    black = np.zeros((height, width, 3), np.uint8)
    return GenerateRequest(
        prompt="",
        seed=0,
        width=width,
        height=height,
        sampler=identities.diffusion.samplers[0],
        num_steps=1,
        guidance_scale=identities.diffusion.default_guidance_scale,
        image_format=ImageFormat.PNG,
        edit=Edit(image=black, mask=None, strength=1.0, num_resamples=1) if of_a_picture else None,
        takes_masked_image=identities.diffusion.takes_masked_image,
    )


async def _make(model: Model, request: GenerateRequest, deadline: float) -> None:
    async with aclosing(model.pipeline.generate(request, deadline=deadline)) as events:
        async for _ in events:
            pass


def _shown(addresses: Addresses) -> str:
    return shown(addresses) or AT_THE_DECODERS_PLACE
