"""What there is to ask for: `GET /models`, `GET /samplers`, and whether it can be had now: `GET /health/ready`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from triptych.contract import StageName, Task
from triptych.errors import StageNotReady
from triptych.gateway.errors import gateway_error
from triptych.gateway.registry import Identities, Model
from triptych.gateway.state import Gateway, GatewayDep


class StageAnswer(BaseModel):
    """One stage of a model."""

    model: str
    weights_digest: str
    numerics: dict[str, str] = Field(description="What decides its bytes besides weights and request.")


class Abilities(BaseModel):
    """What a model can be asked for."""

    tasks: list[Task]
    sizes: list[tuple[int, int]] = Field(description="(width, height) in pixels; the first is the default.")
    samplers: list[str] = Field(description="The first is the default.")
    default_num_steps: int
    default_guidance_scale: float
    context_length: int = Field(description="Tokens of a context, the two marks of a prompt's start and end included.")
    max_prompt_chunks: int = Field(description="Contexts that a prompt may take under `long_prompt`.")


class ModelAnswer(BaseModel):
    """One model. Abilities and stages are null while it is not ready."""

    name: str | None = Field(description="Null while its diffusion stage, which names it, has not been heard.")
    default: bool = Field(description="Whether a request that names no model gets this one.")
    ready: bool
    problems: dict[str, str] = Field(description="Why it is not ready, by stage.")
    abilities: Abilities | None
    stages: dict[StageName, StageAnswer] | None


class ModelsAnswer(BaseModel):
    models: list[ModelAnswer]


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
    return ModelsAnswer(models=[_describe(model, default=place == 0) for place, model in enumerate(gateway.registry)])


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
    for model in gateway.registry:
        if model.identities is None:
            await model.learn()


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
    return Abilities(
        tasks=[task for task in diffusion.tasks if task is Task.TEXT_TO_IMAGE or identities.image_encoder is not None],
        sizes=list(identities.sizes),
        samplers=list(diffusion.samplers),
        default_num_steps=diffusion.default_num_steps,
        default_guidance_scale=diffusion.default_guidance_scale,
        context_length=identities.text_encoder.context_length,
        max_prompt_chunks=min(identities.text_encoder.max_prompt_chunks, diffusion.max_prompt_chunks),
    )


def describe_stages(identities: Identities) -> dict[StageName, StageAnswer]:
    return {stage: _stage(getattr(identities, stage)) for stage in StageName}


def _stage(identity: Any) -> StageAnswer:
    return StageAnswer(model=identity.model, weights_digest=identity.weights_digest, numerics=asdict(identity.numerics))
