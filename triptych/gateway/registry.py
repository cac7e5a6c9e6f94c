"""The models that this gateway serves, and what their stages last said of themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from triptych.contract import (
    DecoderIdentity,
    DiffusionIdentity,
    StageName,
    TextEncoderIdentity,
    check_fit,
)
from triptych.errors import NotFound, StageNotReady, StagesDoNotFit, TriptychError
from triptych.pipeline import Pipeline
from triptych.wire.open_inference import quoted

T = TypeVar("T")

NAMED_BY_ITS_DIFFUSION_STAGE = ""
"""Where a topology gives a model no name of its own, it goes by the name that its diffusion stage gives itself."""

IDENTITY_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Identities:
    """Three stages that fit together.

    Attributes:
        sizes: (width, height) that both the diffusion model and the decoder take; the first is the default.
    """

    text_encoder: TextEncoderIdentity
    diffusion: DiffusionIdentity
    decoder: DecoderIdentity
    sizes: tuple[tuple[int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        check_fit(self.text_encoder, self.diffusion, self.decoder)
        sizes = tuple(size for size in self.diffusion.sizes if size in self.decoder.sizes)
        if not sizes:
            raise StagesDoNotFit(
                f"the diffusion model {self.diffusion.model!r} and the decoder {self.decoder.model!r} have no size in common"
            )
        object.__setattr__(self, "sizes", sizes)


class Model:
    """A pipeline under a name. It can be asked for once its stages have said who they are, and fit.

    Attributes:
        pipeline: Its stages.
        identities: What the stages said, or None while one of them is missing or they do not fit.
        problems: Why not, one sentence a missing stage; under `stages` where they do not fit.
    """

    def __init__(self, configured_name: str, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.identities: Identities | None = None
        self.problems: dict[str, str] = {"stages": "the stages have not been asked yet"}
        self._configured_name = configured_name
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")

    @property
    def name(self) -> str | None:
        """None while it goes by its diffusion stage's name and that stage has not been heard."""
        if self._configured_name != NAMED_BY_ITS_DIFFUSION_STAGE:
            return self._configured_name
        return self.identities.diffusion.model if self.identities else None

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

    async def known(self) -> Identities:
        """The identities, asked for now where they are not known.

        Raises:
            StageNotReady: A stage is missing, or the stages do not fit.
        """
        if self.identities is None:
            await self.learn()
        if self.identities is None:
            stage, problem = next(iter(self.problems.items()))
            raise StageNotReady(problem, stage=stage)
        return self.identities

    async def _ask(self) -> None:
        stages = self.pipeline
        text_encoder, diffusion, decoder = await asyncio.gather(
            _answer(StageName.TEXT_ENCODER, stages.text_encoder.identity),
            _answer(StageName.DIFFUSION, stages.diffusion.identity),
            _answer(StageName.DECODER, stages.decoder.identity),
        )
        if isinstance(text_encoder, str) or isinstance(diffusion, str) or isinstance(decoder, str):
            answers = zip(StageName, (text_encoder, diffusion, decoder), strict=True)
            self._refuse({str(stage): answer for stage, answer in answers if isinstance(answer, str)})
            return
        try:
            self._accept(Identities(text_encoder=text_encoder, diffusion=diffusion, decoder=decoder))
        except StagesDoNotFit as error:
            self._refuse({"stages": error.message})

    def _accept(self, identities: Identities) -> None:
        if identities != self.identities:
            digests = {str(stage): getattr(identities, stage).weights_digest for stage in StageName}
            log.info("model_ready", model=self._configured_name or identities.diffusion.model, weights_digests=digests)
        self.identities, self.problems = identities, {}

    def _refuse(self, problems: dict[str, str]) -> None:
        if problems != self.problems:
            log.warning("model_not_ready", model=self.name, problems=problems)
        self.identities, self.problems = None, problems


class Registry:
    """The models by name. The first is the one that a request gets that names none."""

    def __init__(self, models: Mapping[str, Pipeline]) -> None:
        if not models:
            raise ValueError("a gateway serves at least one model")
        self._models = tuple(Model(name, pipeline) for name, pipeline in models.items())

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    async def learn(self) -> None:
        await asyncio.gather(*(model.learn() for model in self))

    async def find(self, name: str | None) -> Model:
        """The model of that name, or the default one.

        Raises:
            NotFound: No model has that name.
            StageNotReady: Whether one has it cannot be said, because a model's name is not known yet.
        """
        if name is None:
            return self._models[0]
        unnamed = [model for model in self if model.name is None]
        for model in self:
            if model.name == name:
                return model
        for model in unnamed:
            await model.known()
            if model.name == name:
                return model
        names = ", ".join(str(model.name) for model in self)
        raise NotFound(f"there is no model {quoted(name)} here; there is {names}", param="model")


async def _answer(stage: StageName, identity: Callable[[], Awaitable[T]]) -> T | str:
    """The stage's identity, or a sentence that says why there is none."""
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
