"""The models that this gateway serves, and what their stages last said of themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from triptych.contract import (
    DecoderIdentity,
    DiffusionIdentity,
    ImageEncoderIdentity,
    StageName,
    TextEncoderIdentity,
    check_fit,
)
from triptych.errors import NotFound, StageNotReady, StagesDoNotFit, StageTimeout, TriptychError
from triptych.gateway.previews import IdleDecoder
from triptych.gateway.steps import StepKind, Steps
from triptych.pipeline import Pipeline
from triptych.wire.open_inference import quoted

T = TypeVar("T")

NAMED_BY_ITS_DIFFUSION_STAGE = ""
"""Where a topology gives a model no name of its own, it goes by the name that its diffusion stage gives itself."""

IDENTITY_TIMEOUT_SECONDS = 5.0
ASK_AGAIN_SECONDS = 0.25
"""Between two questions to a stage that requests wait for."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Identities:
    """Three stages that fit together.

    Attributes:
        image_encoder: What pictures are changed with; None where there is none that fits.
        sizes: (width, height) that both the diffusion model and the decoder take; the first is the default.
    """

    text_encoder: TextEncoderIdentity
    diffusion: DiffusionIdentity
    decoder: DecoderIdentity
    image_encoder: ImageEncoderIdentity | None = None
    sizes: tuple[tuple[int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        check_fit(self.text_encoder, self.diffusion, self.decoder)
        sizes = tuple(size for size in self.diffusion.sizes if size in self.decoder.sizes)
        if not sizes:
            raise StagesDoNotFit(
                f"the diffusion model {self.diffusion.model!r} and the decoder {self.decoder.model!r} have no size in common"
            )
        if self.diffusion.takes_masked_image and self.image_encoder is None:
            raise StagesDoNotFit(
                f"the diffusion model {self.diffusion.model!r} wants masked images, and no image encoder is there"
            )
        object.__setattr__(self, "sizes", sizes)


class Model:
    """A pipeline under a name. It can be asked for once its stages have said who they are, and fit.

    Attributes:
        pipeline: Its stages.
        idle_decoder: Its decoder, for previews.
        identities: What the stages said, or None while one of them is missing or they do not fit.
        problems: Why not, one sentence a missing stage; under `stages` where they do not fit.
        jobs: Requests that it was found for and that are not answered yet.

    Args:
        configured_name: Its own, or `NAMED_BY_ITS_DIFFUSION_STAGE`.
        pipeline: Its stages.
        idle_decoder: Shared by all models of one decoder; None is one of its own.
    """

    def __init__(self, configured_name: str, pipeline: Pipeline, *, idle_decoder: IdleDecoder | None = None) -> None:
        self.pipeline = pipeline
        self.idle_decoder = IdleDecoder(pipeline.decoder) if idle_decoder is None else idle_decoder
        self.identities: Identities | None = None
        self.problems: dict[str, str] = {"stages": "the stages have not been asked yet"}
        self.jobs = 0
        self._configured_name = configured_name
        self._when_idle: Callable[[], None] | None = None
        self._asking = asyncio.Lock()
        self._pausing = asyncio.Lock()
        self._asked_at = float("-inf")
        # Asked and not heard yet, in the order of the stages; a question that is cancelled stays until the next one.
        self._silent: dict[StageName, None] = {}

    @property
    def name(self) -> str | None:
        """None while it goes by its diffusion stage's name and that stage has not been heard."""
        if self._configured_name != NAMED_BY_ITS_DIFFUSION_STAGE:
            return self._configured_name
        return self.identities.diffusion.model if self.identities else None

    def name_with(self, identities: Identities) -> str:
        """Its name where its stages said this of themselves: of a request that is under way, whatever has happened since."""
        return self._configured_name or identities.diffusion.model

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Counts one of its `jobs` for the length of the block."""
        self.jobs += 1
        try:
            yield
        finally:
            self.jobs -= 1
            if not self.jobs and self._when_idle is not None:
                self._when_idle()

    def when_idle(self, do: Callable[[], None]) -> None:
        """Has something done as soon as it has no job; now, where it has none. For a model that gets no new ones."""
        if self.jobs:
            self._when_idle = do
        else:
            do()

    def forget(self) -> None:
        """A stage failed; another may stand in its place when it is back, so the next request asks first."""
        self.identities, self.problems = None, {"stages": "a stage failed, and the stages have not been asked again yet"}

    async def learn(self) -> None:
        """Asks all stages who they are. Callers at the same time share the answers."""
        wanted_at = time.monotonic()
        async with self._asking:
            if self._asked_at >= wanted_at:
                return
            asked_at = time.monotonic()
            await self._ask()
            self._asked_at = asked_at

    async def learn_again(self) -> None:
        """As `learn`, a little after the stages were last asked: all who wait for one share a question every now and then."""
        asked_at = self._asked_at
        async with self._pausing:
            if self._asked_at == asked_at:
                await asyncio.sleep(asked_at + ASK_AGAIN_SECONDS - time.monotonic())
                await self.learn()

    async def known(self, *, patiently: bool = False, deadline: float | None = None) -> Identities:
        """The identities, asked for where they are not known.

        Args:
            patiently: Not now, but as `learn_again` does.
            deadline: Of `time.monotonic()`; None waits as long as a stage may take to answer.

        Raises:
            StageNotReady: A stage is missing, or the stages do not fit.
            StageTimeout: A stage did not answer before the deadline.
        """
        if self.identities is None:
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    await (self.learn_again() if patiently else self.learn())
            except TimeoutError:
                silent = next(iter(self._silent), StageName.DIFFUSION)
                message = f"the {silent} stage did not say who it is before the request's deadline"
                raise StageTimeout(message, stage=silent) from None
        if self.identities is None:
            stage, problem = next(iter(self.problems.items()))
            raise StageNotReady(problem, stage=stage)
        return self.identities

    async def _ask(self) -> None:
        stages = self.pipeline
        text_encoder, diffusion, decoder, image_encoder = await asyncio.gather(
            self._answer(StageName.TEXT_ENCODER, stages.text_encoder.identity),
            self._answer(StageName.DIFFUSION, stages.diffusion.identity),
            self._answer(StageName.DECODER, stages.decoder.identity),
            self._image_encoder(),
        )
        if isinstance(text_encoder, str) or isinstance(diffusion, str) or isinstance(decoder, str):
            answers = zip(StageName, (text_encoder, diffusion, decoder), strict=True)
            self._refuse({str(stage): answer for stage, answer in answers if isinstance(answer, str)})
            return
        try:
            fitting = image_encoder if _fits(image_encoder, diffusion) else None
            self._accept(Identities(text_encoder=text_encoder, diffusion=diffusion, decoder=decoder, image_encoder=fitting))
        except StagesDoNotFit as error:
            self._refuse({"stages": error.message})

    async def _image_encoder(self) -> ImageEncoderIdentity | None:
        """None where there is none: a decoder of somebody else may come without."""
        if (image_encoder := self.pipeline.image_encoder) is None:
            return None
        answer = await _identity_or_problem(StageName.DECODER, image_encoder.identity)
        return None if isinstance(answer, str) else answer

    async def _answer(self, stage: StageName, identity: Callable[[], Awaitable[T]]) -> T | str:
        """The stage's identity, or a sentence that says why there is none."""
        self._silent[stage] = None
        answer = await _identity_or_problem(stage, identity)
        del self._silent[stage]
        return answer

    def _accept(self, identities: Identities) -> None:
        if identities != self.identities:
            digests = {str(stage): getattr(identities, stage).weights_digest for stage in StageName}
            log.info("model_ready", model=self._configured_name or identities.diffusion.model, weights_digests=digests)
        self.identities, self.problems = identities, {}

    def _refuse(self, problems: dict[str, str]) -> None:
        if problems != self.problems:
            log.warning("model_not_ready", model=self.name, problems=problems)
        self.identities, self.problems = None, problems


@dataclass(frozen=True, kw_only=True)
class RetiringModel:
    """A model that gets no new requests, and finishes those that it has.

    Attributes:
        name: The one that it had.
        since: When another one took its place, in UTC.
    """

    name: str | None
    model: Model
    since: datetime


class Registry:
    """The models by name. The first is the one that a request gets that names none.

    Attributes:
        retiring: Models that were replaced and have jobs yet.
        steps: What happened to the models lately.
    """

    def __init__(self, models: Mapping[str, Pipeline] | Sequence[Model]) -> None:
        made = [Model(name, pipeline) for name, pipeline in models.items()] if isinstance(models, Mapping) else models
        self._models = _at_least_one(made)
        self.retiring: list[RetiringModel] = []
        self.steps = Steps()

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    def replace(self, models: Sequence[Model]) -> None:
        """From now on it is these. Those that are not among them any more finish what they have, and are let go."""
        before, self._models = self._models, _at_least_one(models)
        for model in before:
            if model not in self._models:
                self._retire(model)

    def _retire(self, model: Model) -> None:
        retiring = RetiringModel(name=model.name, model=model, since=datetime.now(UTC))
        self.retiring.append(retiring)

        def let_go() -> None:
            self.retiring.remove(retiring)
            self.steps.note(
                StepKind.LET_GO, "its last request is answered: it sends nothing to its stages any more", model=retiring.name
            )

        model.when_idle(let_go)

    async def learn(self) -> None:
        await asyncio.gather(*(model.learn() for model in self))

    async def find(
        self, name: str | None, *, masked: bool = False, patiently: bool = False, deadline: float | None = None
    ) -> Model:
        """The model of that name, or the default one.

        Args:
            name: None asks for the default.
            masked: Whether a mask came with the request: where no name did, the first model that is ready and sees masks
                itself goes before the default.
            patiently: See `Model.known`.
            deadline: Of `time.monotonic()`, for a model that must be asked for its name.

        Raises:
            NotFound: No model has that name.
            StageNotReady, StageTimeout: Whether one has it cannot be said, because a model's name is not known yet.
        """
        if name is None:
            return next(filter(_sees_masks, self), self._models[0]) if masked else self._models[0]
        unnamed = [model for model in self if model.name is None]
        for model in self:
            if model.name == name:
                return model
        for model in unnamed:
            await model.known(patiently=patiently, deadline=deadline)
            if model not in self._models:
                # Replaced while it was asked.
                return await self.find(name, masked=masked, patiently=patiently, deadline=deadline)
            if model.name == name:
                return model
        names = ", ".join(str(model.name) for model in self)
        raise NotFound(f"there is no model {quoted(name)} here; there is {names}", param="model")


def _at_least_one(models: Sequence[Model]) -> tuple[Model, ...]:
    if not models:
        raise ValueError("a gateway serves at least one model")
    return tuple(models)


def _sees_masks(model: Model) -> bool:
    return model.identities is not None and model.identities.diffusion.takes_masked_image


def _fits(image_encoder: ImageEncoderIdentity | None, diffusion: DiffusionIdentity) -> bool:
    """Whether its latents are the diffusion model's."""
    if image_encoder is None:
        return False
    latents = (diffusion.latent_space, diffusion.latent_channels, diffusion.downsampling)
    return (image_encoder.latent_space, image_encoder.latent_channels, image_encoder.downsampling) == latents


async def _identity_or_problem(stage: StageName, identity: Callable[[], Awaitable[T]]) -> T | str:
    try:
        async with asyncio.timeout(IDENTITY_TIMEOUT_SECONDS):
            return await identity()
    except TimeoutError:
        return f"the {stage} stage did not say who it is within {IDENTITY_TIMEOUT_SECONDS:g} s"
    except TriptychError as error:
        return error.message
    except Exception:
        log.exception("identity_failed", stage=stage)
        return f"the {stage} stage cannot say who it is"
