"""Diffusion: contexts and noise to latents, by a step batcher that all requests share."""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_left
from collections.abc import AsyncGenerator
from functools import lru_cache

import numpy as np

from triptych.checkpoints.checkpoint import Checkpoint, Network
from triptych.contract import (
    DenoiseEvent,
    DenoiseRequest,
    DenoiseState,
    DiffusionIdentity,
    Float32,
    StageName,
    Task,
    check_denoise,
)
from triptych.engines import RowSpec
from triptych.errors import CheckpointError, Conflict, InvalidValue
from triptych.sampling.inpainting import resampled
from triptych.sampling.noise import NOISE_VERSION, Purpose, normal
from triptych.sampling.plan import Plan
from triptych.sampling.samplers import SAMPLERS, first_step_of, make_plan
from triptych.sampling.schedule import ScheduleConfig
from triptych.stages.denoising import Denoising
from triptych.stages.evaluation import Known, Row
from triptych.stages.local_stage import LocalStage, NetworkLoader
from triptych.stages.options import StageOptions
from triptych.stages.step_batcher import StepBatcher


@lru_cache(maxsize=128)
def plan_of(sampler: str, schedule: ScheduleConfig, num_steps: int, strength: float, num_resamples: int) -> Plan:
    """The evaluations that a request asks for. Raises InvalidValue as `make_plan` and `first_step_of` do."""
    first_step = 0 if strength == 1 else first_step_of(strength, num_steps)
    return resampled(make_plan(sampler, schedule, num_steps, first_step=first_step), num_resamples)


class DiffusionStage(LocalStage[DiffusionIdentity]):
    """See `contract.Diffusion`."""

    name = StageName.DIFFUSION

    def __init__(self, options: StageOptions) -> None:
        super().__init__(options)
        self._batcher: StepBatcher | None = None

    def load(self, networks: NetworkLoader) -> DiffusionIdentity:
        files = networks.files
        facts, config, vae = files.facts, files.unet, files.vae
        sees_masked_image = takes_masked_image(files)
        samplers = _default_first(facts.sampler)
        sizes = networks.sizes(granularity(files))
        self._schedule = ScheduleConfig.from_dict(files.scheduler)
        compiled = [
            networks.load(Network.UNET, unet_rows(files, size, chunks))
            for size in sizes
            for chunks in range(1, self.options.max_prompt_chunks + 1)
        ]
        self._batcher = StepBatcher(
            {
                ((*network.rows["latents"].shape[:2], vae.latent_channels), network.rows["context"].shape): network
                for network in compiled
            },
            capacity=min(network.usable_batch_sizes[-1] for network in compiled),
            queue_size=self.options.queue_size,
        )
        return DiffusionIdentity(
            model=facts.model,
            weights_digest=networks.weights_digest(Network.UNET),
            numerics=networks.numerics,
            exact=self.options.exact,
            exact_batch_sizes=networks.exact_batch_sizes,
            largest_difference=networks.largest_difference,
            text_space=facts.text_space,
            latent_space=facts.latent_space,
            context_length=files.text_encoder.max_position_embeddings,
            context_width=config.cross_attention_dim,
            latent_channels=vae.latent_channels,
            downsampling=vae.downsampling,
            prediction_type=self._schedule.prediction_type,
            tasks=tuple(Task),
            sizes=sizes,
            samplers=samplers,
            default_num_steps=facts.num_steps,
            default_guidance_scale=facts.guidance_scale,
            max_prompt_chunks=self.options.max_prompt_chunks,
            takes_masked_image=sees_masked_image,
            warnings=facts.warnings,
        )

    def hand_back(self, *, all_at: float) -> None:
        if self._batcher is not None:
            self._batcher.stop(hand_back_all_at=all_at)

    @property
    def evaluations_outstanding(self) -> int:
        """Rows of the network that it has to evaluate yet."""
        return 0 if self._batcher is None else self._batcher.evaluations_left

    def finish(self) -> None:
        if self._batcher is not None:
            self._batcher.close()

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        """See `contract.Diffusion.denoise`. Closing the iterator ends the denoising before its next evaluation."""
        identity = await self.identity()
        check_denoise(request, identity)
        plan = plan_of(request.sampler, self._schedule, request.num_steps, request.strength, request.num_resamples)
        state_key = key_of_state(request, plan, identity)
        if request.resume is not None:
            check_state(request.resume, request, plan, state_key, identity)
        denoising = Denoising(
            await asyncio.to_thread(rows_of, request, plan, identity),
            state_key=state_key,
            deadline=deadline,
            progress_every=request.progress_every,
            previews=request.previews,
            priority=request.priority,
            finish_here=request.finish_here,
        )
        assert self._batcher is not None, "a stage that says who it is has started"
        self._batcher.join(denoising)
        try:
            async for event in denoising.events():
                yield event
        finally:
            denoising.leave()


def rows_of(request: DenoiseRequest, plan: Plan, identity: DiffusionIdentity) -> list[Row]:
    """The rows of a request, at the start of their plan or where they are resumed."""
    shape = identity.latents_shape(request.width, request.height)
    state = request.resume

    def row_of(array: Float32, index: int) -> Float32:
        """A leading dimension of 1 stands for all rows."""
        row: Float32 = array[index if len(array) > 1 else 0]
        return row

    def row_of_any(array: Float32 | None, index: int) -> Float32 | None:
        return None if array is None else row_of(array, index)

    def start_of(index: int, seed: int) -> tuple[Float32, Float32, int]:
        if state is not None:
            return state.latents[index], state.sampler_state[index], int(state.position[index])
        noise = row_of_any(request.initial_noise, index)
        if noise is None:
            noise = normal(seed, Purpose.INITIAL, 0, shape)
        latents, sampler_state = plan.initial(noise)
        original = row_of_any(request.init_latents, index)
        # Where all of a masked part is painted anew, nothing of it shines through.
        if original is not None and (request.mask is None or request.strength < 1):
            latents = plan.add_noise(original, noise, 0)
        return latents, sampler_state, 0

    def known_of(index: int) -> Known | None:
        if request.mask is None or request.init_latents is None or identity.takes_masked_image:
            return None
        return Known(original=row_of(request.init_latents, index), mask=row_of(request.mask, index))

    def extra_channels_of(index: int) -> Float32 | None:
        if request.mask is None or request.masked_image_latents is None:
            return None
        return np.concatenate([row_of(request.mask, index), row_of(request.masked_image_latents, index)], axis=-1)

    def make_row(index: int, seed: int) -> Row:
        latents, sampler_state, position = start_of(index, seed)
        unconditional = None if request.guidance_scale == 1 else request.unconditional_context
        return Row(
            plan=plan,
            latents=latents,
            sampler_state=sampler_state,
            position=position,
            context=row_of(request.context, index),
            unconditional_context=row_of_any(unconditional, index),
            guidance_scale=request.guidance_scale,
            guided=guided_positions(plan, request.guidance_start, request.guidance_end),
            seed=seed,
            known=known_of(index),
            extra_channels=extra_channels_of(index),
        )

    return [make_row(index, int(seed)) for index, seed in enumerate(request.seeds)]


def guided_positions(plan: Plan, start: float, end: float) -> range:
    """The evaluations of the steps from one share of them up to another, 0 to 1."""
    first, last = (round(share * plan.num_steps) for share in (start, end))
    return range(bisect_left(plan.steps, first), bisect_left(plan.steps, last))


def key_of_state(request: DenoiseRequest, plan: Plan, identity: DiffusionIdentity) -> str:
    """Digest of all that a state of this request depends on, except its tensors: those come with it again."""
    parts = (
        identity.weights_digest,
        identity.prediction_type,
        plan.digest(),
        f"{request.guidance_scale!r} {request.guidance_start!r} {request.guidance_end!r}",
        f"{request.width}x{request.height} {len(request.seeds)}",
        f"mask {request.mask is not None} picture {request.init_latents is not None}",
        f"noise {NOISE_VERSION}",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_state(state: DenoiseState, request: DenoiseRequest, plan: Plan, state_key: str, identity: DiffusionIdentity) -> None:
    """Refuses a state that is not one of this request.

    Raises:
        Conflict: It belongs to other weights, another plan or other parameters.
        InvalidValue: It is none at all.
    """
    if state.state_key != state_key:
        raise Conflict("the state belongs to other weights, another plan or other parameters", param="state_key")
    rows, shape = len(request.seeds), identity.latents_shape(request.width, request.height)
    for name, array, expected in (
        ("latents", state.latents, (rows, *shape)),
        ("sampler_state", state.sampler_state, (rows, plan.state_arrays, *shape)),
        ("position", state.position, (rows,)),
    ):
        if array.shape != expected:
            raise InvalidValue(f"{name} must be {expected}, not {array.shape}", param=name)
    if state.position.min() < 0 or state.position.max() > plan.num_evaluations:
        raise InvalidValue(f"position must be 0..{plan.num_evaluations}", param="position")


def granularity(files: Checkpoint) -> int:
    """What width and height of a picture must be multiples of, for the U-Net to halve its latents as often as it does."""
    return files.vae.downsampling << (len(files.unet.block_out_channels) - 1)


def unet_rows(files: Checkpoint, size: tuple[int, int], chunks: int) -> dict[str, RowSpec]:
    """The U-Net's inputs for pictures of this size (width, height) and contexts of so many chunks."""
    width, height = (side // files.vae.downsampling for side in size)
    return {
        "latents": RowSpec(shape=(height, width, files.unet.in_channels)),
        "timestep": RowSpec(shape=(), below=ScheduleConfig.from_dict(files.scheduler).num_train_timesteps),
        "context": RowSpec(shape=(chunks * files.text_encoder.max_position_embeddings, files.unet.cross_attention_dim)),
    }


def takes_masked_image(files: Checkpoint) -> bool:
    """Whether the U-Net sees a mask and a masked picture beside the latents.

    Raises:
        CheckpointError: It sees neither that nor the latents alone.
    """
    channels, latent_channels = files.unet.in_channels, files.vae.latent_channels
    if channels not in (latent_channels, 2 * latent_channels + 1):
        raise CheckpointError(
            f"the U-Net has {channels} input channels, where {latent_channels} are latents and "
            f"{2 * latent_channels + 1} latents, a mask and a masked picture"
        )
    return channels != latent_channels


def _default_first(sampler: str) -> tuple[str, ...]:
    if sampler not in SAMPLERS:
        raise CheckpointError(f"the model wants the sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    return (sampler, *(name for name in SAMPLERS if name != sampler))
