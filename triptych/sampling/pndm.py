"""PNDM without Runge-Kutta steps, also known as PLMS (Liu et al. 2022, arXiv:2202.09778; diffusers' `skip_prk_steps`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from triptych.errors import InvalidValue
from triptych.sampling.plan import Plan, trace
from triptych.sampling.prediction import predicted_noise
from triptych.sampling.schedule import CLEAN, Float64, Level, PredictionType, ScheduleConfig, TimestepSpacing, level_at
from triptych.sampling.timesteps import spaced_timesteps


def pndm_transfer(latents: Float64, epsilon: Float64, level: Level, next_level: Level) -> Float64:
    """The paper's transfer part, phi: from `level` to `next_level` along `epsilon`."""
    alpha, next_alpha = level.signal**2, next_level.signal**2
    denominator = alpha * next_level.noise + math.sqrt(alpha * level.noise**2 * next_alpha)
    return (next_level.signal / level.signal) * latents - (next_alpha - alpha) / denominator * epsilon


def linear_multistep(newest: Float64, earlier: Sequence[Float64]) -> Float64:
    """The paper's gradient part: Adams-Bashforth of as high an order, up to four, as there are predictions.

    Args:
        newest: This evaluation's prediction.
        earlier: Those before it that there are, newest first, at most three.
    """
    match earlier:
        case []:
            return newest
        case [e1]:
            return (3 * newest - e1) / 2
        case [e1, e2]:
            return (23 * newest - 16 * e1 + 5 * e2) / 12
        case [e1, e2, e3]:
            return (55 * newest - 59 * e1 + 37 * e2 - 9 * e3) / 24
    raise AssertionError("at most three predictions are kept")


def pndm(config: ScheduleConfig, num_steps: int, *, first_step: int = 0) -> Plan:
    """The plan of PNDM: one evaluation a step but two in the first, no noise.

    The second evaluation takes the first step again, by the mean of the predictions at its two ends. Three arrays of sampler
    state: the last three predictions, newest first; between the first two evaluations the second array keeps the latents of the
    start.

    Raises:
        InvalidValue: No plan of so many steps, or the model's configuration does not go with this sampler.
    """
    if config.rescale_betas_zero_snr:
        raise InvalidValue("pndm does not go with rescale_betas_zero_snr: it cannot step from pure noise", param="sampler")
    timesteps = spaced_timesteps(config, num_steps, default=TimestepSpacing.LEADING)[first_step:]
    stride = config.num_train_timesteps // num_steps
    count = len(timesteps)
    steps = list(range(count))
    if count > 1:
        steps.insert(0, 0)
        timesteps = np.insert(timesteps, 1, timesteps[1])
    levels = [level_at(config, int(timestep)) for timestep in timesteps]

    def ends(position: int) -> tuple[Level, Level]:
        """Where the transfer of an evaluation starts and ends: a stride apart, as in diffusers."""
        timestep = int(timesteps[position])
        start = timestep + stride if position == 1 else timestep
        return level_at(config, start), _level_below(config, start - stride)

    def advance(
        position: int, latents: Float64, state: Sequence[Float64], prediction: Float64, noise: Float64
    ) -> tuple[Float64, Sequence[Float64]]:
        level, next_level = ends(position)
        if config.prediction_type == PredictionType.SAMPLE:
            prediction = predicted_noise(config.prediction_type, latents, prediction, levels[position])
        e1, e2, e3 = state
        nothing = np.zeros_like(prediction)
        if position == 0:
            kept, mean = [prediction, latents, nothing], prediction
        elif position == 1:
            kept, mean, latents = [e1, nothing, nothing], (prediction + e1) / 2, e2
        else:
            kept, mean = [prediction, e1, e2], linear_multistep(prediction, [e1, e2, e3][: position - 1])
        if config.prediction_type == PredictionType.V_PREDICTION:
            # As diffusers does: velocities are averaged, and become noise by the latents of now.
            mean = predicted_noise(config.prediction_type, latents, mean, level)
        return pndm_transfer(latents, mean, level, next_level), kept

    return trace(
        advance,
        sampler="pndm",
        prediction_type=config.prediction_type,
        timesteps=timesteps,
        steps=steps,
        levels=[*levels, ends(len(levels) - 1)[1]],
        state_arrays=3,
    )


def _level_below(config: ScheduleConfig, timestep: int) -> Level:
    if timestep >= 0:
        return level_at(config, timestep)
    return CLEAN if config.set_alpha_to_one else level_at(config, 0)
