"""Diffusion: contexts and noise to latents, one network evaluation after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import lru_cache, partial

import numpy as np

from triptych.checkpoints.diffusers_folder import Network
from triptych.contract import (
    Denoised,
    DenoiseRequest,
    DiffusionIdentity,
    Float32,
    Progress,
    StageName,
    Task,
    check_denoise,
)
from triptych.engines import RowSpec
from triptych.errors import CheckpointError, StageFailed
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.plan import Plan
from triptych.sampling.samplers import SAMPLERS, make_plan
from triptych.sampling.schedule import ScheduleConfig
from triptych.stages.evaluation import Row, begin_row, evaluate
from triptych.stages.local_stage import LocalStage, NetworkLoader

_plan = lru_cache(maxsize=128)(make_plan)


class DiffusionStage(LocalStage[DiffusionIdentity]):
    """See `contract.Diffusion`."""

    name = StageName.DIFFUSION
    default_batch_sizes = (1, 2, 4, 8, 16)

    def load(self, networks: NetworkLoader) -> DiffusionIdentity:
        facts, config, vae = networks.files.facts, networks.files.unet, networks.files.vae
        if config.in_channels != vae.latent_channels:
            raise CheckpointError(f"a U-Net of {config.in_channels} input channels is not supported by this version")
        samplers = _default_first(facts.sampler)
        context = RowSpec(shape=(networks.files.text_encoder.max_position_embeddings, config.cross_attention_dim))
        sizes = networks.sizes(vae.downsampling * 2 ** (len(config.block_out_channels) - 1))
        self._schedule = ScheduleConfig.from_dict(networks.files.scheduler)
        self._networks = {
            (width, height): networks.load(
                Network.UNET,
                {
                    "latents": RowSpec(shape=(height // vae.downsampling, width // vae.downsampling, config.in_channels)),
                    "timestep": RowSpec(shape=()),
                    "context": context,
                },
            )
            for width, height in sizes
        }
        return DiffusionIdentity(
            model=facts.model,
            weights_digest=networks.weights_digest(Network.UNET),
            numerics=networks.numerics,
            text_space=facts.text_space,
            latent_space=facts.latent_space,
            context_length=context.shape[0],
            context_width=context.shape[1],
            latent_channels=vae.latent_channels,
            downsampling=vae.downsampling,
            prediction_type=self._schedule.prediction_type,
            tasks=(Task.TEXT_TO_IMAGE,),
            sizes=sizes,
            samplers=samplers,
            default_num_steps=facts.num_steps,
            default_guidance_scale=facts.guidance_scale,
        )

    async def denoise(
        self, request: DenoiseRequest, *, deadline: float | None = None
    ) -> AsyncGenerator[Progress | Denoised, None]:
        """See `contract.Diffusion.denoise`. Closing the iterator ends the denoising after the evaluation that runs."""
        identity = await self.identity()
        check_denoise(request, identity)
        network = self._networks[request.width, request.height]
        plan = _plan(request.sampler, self._schedule, request.num_steps)
        with self.worker.admit(jobs=plan.num_evaluations) as admission:
            rows = await asyncio.to_thread(begin, request, plan, identity)
            for position in range(plan.num_evaluations):
                rows = await self.worker.run(admission, partial(evaluate, network, rows), deadline=deadline)
                yield Progress(position=position + 1, num_evaluations=plan.num_evaluations)
        yield Denoised(latents=_finite_latents(rows))


def begin(request: DenoiseRequest, plan: Plan, identity: DiffusionIdentity) -> list[Row]:
    """The rows of a request at the start of their plan."""
    seeds = [int(seed) for seed in request.seeds]
    shape = (request.height // identity.downsampling, request.width // identity.downsampling, identity.latent_channels)
    guided = request.guidance_scale != 1

    def row_of(array: Float32, index: int) -> Float32:
        """A leading dimension of 1 stands for all rows."""
        row: Float32 = array[index if len(array) > 1 else 0]
        return row

    return [
        begin_row(
            plan,
            seed=seed,
            noise=normal(seed, Purpose.INITIAL, 0, shape)
            if request.initial_noise is None
            else row_of(request.initial_noise, index),
            context=row_of(request.context, index),
            unconditional_context=row_of(request.unconditional_context, index)
            if guided and request.unconditional_context is not None
            else None,
            guidance_scale=request.guidance_scale,
        )
        for index, seed in enumerate(seeds)
    ]


def _default_first(sampler: str) -> tuple[str, ...]:
    if sampler not in SAMPLERS:
        raise CheckpointError(f"the model wants the sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    return (sampler, *(name for name in SAMPLERS if name != sampler))


def _finite_latents(rows: list[Row]) -> Float32:
    latents = np.stack([row.latents for row in rows])
    if not np.isfinite(latents).all():
        raise StageFailed("the diffusion stage computed NaN or infinity", stage=StageName.DIFFUSION)
    return latents
