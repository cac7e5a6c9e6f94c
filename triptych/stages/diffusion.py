"""Diffusion: contexts and noise to latents, by a step batcher that all requests share."""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_left
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from triptych.checkpoints.checkpoint import Checkpoint, Network, UNetPart
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
from triptych.engines import CompiledNetwork, RowSpec
from triptych.errors import CheckpointError, Conflict, InvalidValue
from triptych.models.config import UNetConfig
from triptych.sampling.inpainting import resampled
from triptych.sampling.noise import NOISE_VERSION, Purpose, normal
from triptych.sampling.plan import Plan
from triptych.sampling.samplers import SAMPLERS, first_step_of, make_plan
from triptych.sampling.schedule import ScheduleConfig
from triptych.stages.denoising import UNREAD, Denoising
from triptych.stages.evaluation import Known, Row, Shape
from triptych.stages.local_stage import LocalStage
from triptych.stages.networks import NetworkLoader
from triptych.stages.options import StageOptions
from triptych.stages.step_batcher import StepBatcher

_SOME_STEPS = 4
"""As many as any sampler takes."""


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
        length, width_of_context = files.text_encoder.max_position_embeddings, config.cross_attention_dim
        chunks = range(1, self.options.max_prompt_chunks + 1)
        sizes = networks.sizes(granularity(files))
        self._schedule = ScheduleConfig.from_dict(files.scheduler)
        self._batcher = self._make_batcher(networks, [unet_rows(files, size, number) for size in sizes for number in chunks])
        arrays = max(make_plan(name, self._schedule, _SOME_STEPS).state_arrays for name in SAMPLERS)
        context_bytes = 4 * chunks[-1] * length * width_of_context
        num_features = config.num_features if self.options.feature_reuse else 0

        def bytes_of(width: int, height: int) -> int:
            plane = 4 * (height // vae.downsampling) * (width // vae.downsampling)
            return picture_bytes(plane * vae.latent_channels, arrays, context_bytes, plane * num_features)

        self._room = networks.room({size: bytes_of(*size) for size in sizes})
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
            takes_cache_interval=self.options.feature_reuse,
            warnings=facts.warnings,
        )

    def _make_batcher(self, networks: NetworkLoader, rows: Sequence[Mapping[str, RowSpec]]) -> StepBatcher:
        """With a network for each of these rows, and where features are reused with a shallow one too."""
        config, channels = networks.files.unet, networks.files.vae.latent_channels

        def load(row: Mapping[str, RowSpec], part: UNetPart | None) -> tuple[Shape, CompiledNetwork]:
            height, width, _ = row["latents"].shape
            if part is UNetPart.SHALLOW:
                row = with_features(row, config)
            return ((height, width, channels), row["context"].shape), networks.load(Network.UNET, row, part=part)

        # A whole network gives the same predictions whether its features come out or not: the tests say so for every engine.
        reuse = self.options.feature_reuse
        whole = dict(load(row, UNetPart.WHOLE if reuse else None) for row in rows)
        shallow = dict(load(row, UNetPart.SHALLOW) for row in rows) if reuse else {}
        return StepBatcher(
            whole,
            shallow=shallow,
            capacity=min(network.capacity for network in (*whole.values(), *shallow.values())),
            queue_size=self.options.queue_size,
        )

    def hand_back(self, *, all_at: float) -> None:
        if self._batcher is not None:
            self._batcher.stop(hand_back_all_at=all_at)

    @property
    def is_at_work(self) -> bool:
        return self._batcher is not None and self._batcher.is_at_work

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
        assert self._batcher is not None and self._room is not None, "a stage that says who it is has started"
        size, retry_after = (request.width, request.height), self._batcher.seconds_to_a_free_place
        with self._room.take(len(request.seeds), size, retry_after=retry_after):
            rows = await asyncio.to_thread(rows_of, request, plan, identity)
            check_resumable(rows)
            denoising = Denoising(
                rows,
                state_key=state_key,
                deadline=deadline,
                progress_every=request.progress_every,
                previews=request.previews,
                priority=request.priority,
                finish_here=request.finish_here,
            )
            self._batcher.join(denoising)
            try:
                async for event in denoising.events():
                    yield event
            finally:
                denoising.leave()


def picture_bytes(latents_bytes: int, state_arrays: int, context_bytes: int, features_bytes: int = 0) -> int:
    """What is held for a picture at the most: its inputs, where it is, and what nobody has read of it.

    Args:
        latents_bytes: Of its latents.
        state_arrays: Of the sampler that keeps the most.
        context_bytes: Of the longest context.
        features_bytes: Of what the network hands from one evaluation to the next for each half; 0 where it does not.
    """
    state = (1 + state_arrays + 1) * latents_bytes  # latents, sampler_state, predicted_original
    # Of a picture that is changed: its latents and mask, as they came and as the network sees them; and its initial noise.
    inputs = 2 * context_bytes + 6 * latents_bytes
    # Where it is now, after the evaluation that is at work, and where it could last be resumed; states that wait for their
    # reader, and the one on the wire.
    return inputs + (3 + UNREAD + 1) * state + 2 * features_bytes


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
            cache_interval=request.cache_interval,
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
        f"cache_interval {request.cache_interval}",
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


def check_resumable(rows: Sequence[Row]) -> None:
    """Refuses rows whose next evaluation takes features of an earlier one: no state has them.

    Raises:
        InvalidValue: The sentence says where a denoising can be resumed.
    """
    for row in rows:
        if not row.is_resumable:
            raise InvalidValue(
                f"position must be one that the whole network comes next at, which with cache_interval {row.cache_interval} are "
                f"its multiples and where guidance begins; {row.position} is none",
                param="position",
            )


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


def with_features(row: Mapping[str, RowSpec], config: UNetConfig) -> dict[str, RowSpec]:
    """The shallow U-Net's inputs, by those of the whole one."""
    height, width, _ = row["latents"].shape
    return {**row, "features": RowSpec(shape=(height, width, config.num_features))}


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
