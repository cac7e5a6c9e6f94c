"""What there is to ask for: `GET /models`, `GET /samplers`, and whether it can be had now: `GET /health/ready`."""

from __future__ import annotations

import asyncio
from datetime import datetime
from enum import StrEnum
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from triptych.contract import StageName, Task
from triptych.errors import StageNotReady
from triptych.gateway.errors import gateway_error
from triptych.gateway.registry import Identities, Model
from triptych.gateway.state import Gateway, GatewayDep
from triptych.gateway.steps import KEPT_STEPS, StepKind


class StageAnswer(BaseModel):
    """One stage of a model."""

    model: str
    weights_digest: str
    numerics: dict[str, str] = Field(description="What decides its bytes besides weights and request.")


class Inpainting(StrEnum):
    """How a model keeps what a mask does not cover."""

    MASKED_IMAGE = "masked_image"
    KNOWN_LATENTS = "known_latents"


class Abilities(BaseModel):
    """What a model can be asked for."""

    tasks: list[Task]
    inpainting: Inpainting | None = Field(
        description="How: `masked_image` is a network that sees mask and picture; `known_latents` is any other, where what is "
        "known is put back after every evaluation. Null where it does not inpaint."
    )
    sizes: list[tuple[int, int]] = Field(description="(width, height) in pixels; the first is the default.")
    samplers: list[str] = Field(description="The first is the default.")
    default_num_steps: int
    default_guidance_scale: float
    context_length: int = Field(description="Tokens of a context, the two marks of a prompt's start and end included.")
    max_prompt_chunks: int = Field(description="Contexts that a prompt may take under `long_prompt`.")
    takes_cache_interval: bool = Field(description="Whether a `cache_interval` above 1 may be asked for.")


class ModelAnswer(BaseModel):
    """One model. Abilities and stages are null while it is not ready."""

    name: str | None = Field(description="Null while its diffusion stage, which names it, has not been heard.")
    default: bool = Field(description="Whether a request that names no model gets this one.")
    ready: bool
    problems: dict[str, str] = Field(description="Why it is not ready, by stage.")
    abilities: Abilities | None
    stages: dict[StageName, StageAnswer] | None


class RetiringAnswer(BaseModel):
    """A model that was replaced, and finishes what it has."""

    name: str | None
    jobs: int = Field(description="Requests that it has yet.")
    since: datetime


class StepAnswer(BaseModel):
    """Something that happened to the models."""

    time: datetime
    step: StepKind
    model: str | None
    message: str


class ModelsAnswer(BaseModel):
    models: list[ModelAnswer]
    retiring: list[RetiringAnswer] = Field(description="Models that were replaced and have requests yet.")
    steps: list[StepAnswer] = Field(description=f"What happened to the models: the latest {KEPT_STEPS}, the newest last.")
    topology_problem: str | None = Field(description="Why the topology file as it is now was not taken up, if it was not.")


class SamplerAnswer(BaseModel):
    name: str
    models: list[str] = Field(description="Models that take it.")


class SamplersAnswer(BaseModel):
    samplers: list[SamplerAnswer]


router = APIRouter()
health = APIRouter()


@router.get("/models")
async def models(gateway: GatewayDep) -> ModelsAnswer:
    """The models, and what each can be asked for."""
    await _ask_the_missing(gateway)
    registry = gateway.registry
    return ModelsAnswer(
        models=[_describe(model, default=place == 0) for place, model in enumerate(registry)],
        retiring=[RetiringAnswer(name=each.name, jobs=each.model.jobs, since=each.since) for each in registry.retiring],
        steps=[StepAnswer(time=step.time, step=step.kind, model=step.model, message=step.message) for step in registry.steps],
        topology_problem=None if gateway.topology is None else gateway.topology.problem,
    )


@router.get("/samplers")
async def samplers(gateway: GatewayDep) -> SamplersAnswer:
    """The samplers, and the models that take each."""
    await _ask_the_missing(gateway)
    takers: dict[str, list[str]] = {}
    for model in gateway.registry:
        for sampler in model.identities.diffusion.samplers if model.identities else ():
            takers.setdefault(sampler, []).append(str(model.name))
    return SamplersAnswer(samplers=[SamplerAnswer(name=name, models=names) for name, names in takers.items()])


@health.get("/health/live")
async def live() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "live"}


@health.get("/health/ready")
async def ready(gateway: GatewayDep) -> Response:
    """Whether a picture can be made now. Asks every stage; 503 says which one is missing."""
    await gateway.registry.learn()
    states = [
        {"name": model.name, "ready": model.identities is not None, "problems": model.problems} for model in gateway.registry
    ]
    if any(state["ready"] for state in states):
        return JSONResponse({"status": "ready", "models": states})
    stage, problem = next((stage, problem) for model in gateway.registry for stage, problem in model.problems.items())
    return JSONResponse({**gateway_error(StageNotReady(problem, stage=stage)), "models": states}, status_code=503)


async def _ask_the_missing(gateway: Gateway) -> None:
    await asyncio.gather(*(model.learn() for model in gateway.registry if model.identities is None))


def _describe(model: Model, *, default: bool) -> ModelAnswer:
    identities = model.identities
    return ModelAnswer(
        name=model.name,
        default=default,
        ready=identities is not None,
        problems=model.problems,
        abilities=_abilities(identities) if identities else None,
        stages=describe_stages(identities) if identities else None,
    )


def _abilities(identities: Identities) -> Abilities:
    diffusion = identities.diffusion
    tasks = [task for task in diffusion.tasks if task is Task.TEXT_TO_IMAGE or identities.image_encoder is not None]
    way = Inpainting.MASKED_IMAGE if diffusion.takes_masked_image else Inpainting.KNOWN_LATENTS
    return Abilities(
        tasks=tasks,
        inpainting=way if Task.INPAINTING in tasks else None,
        sizes=list(identities.sizes),
        samplers=list(diffusion.samplers),
        default_num_steps=diffusion.default_num_steps,
        default_guidance_scale=diffusion.default_guidance_scale,
        context_length=identities.text_encoder.context_length,
        max_prompt_chunks=min(identities.text_encoder.max_prompt_chunks, diffusion.max_prompt_chunks),
        takes_cache_interval=diffusion.takes_cache_interval,
    )


def describe_stages(identities: Identities) -> dict[StageName, StageAnswer]:
    return {stage: _stage(getattr(identities, stage)) for stage in StageName}


def _stage(identity: Any) -> StageAnswer:
    return StageAnswer(model=identity.model, weights_digest=identity.weights_digest, numerics=identity.numerics.told())
