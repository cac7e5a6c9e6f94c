"""Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 1 without lines 6 to 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from triptych.sampling.plan import Plan, trace
from triptych.sampling.prediction import predicted_original
from triptych.sampling.schedule import Float64, Level, ScheduleConfig, TimestepSpacing, final_level, sigmas_at
from triptych.sampling.timesteps import spaced_timesteps


def euler_step(latents: Float64, original: Float64, sigma: float, next_sigma: float) -> Float64:
    """One step along the tangent.

    Args:
        latents: `original + sigma * epsilon`.
        original: Predicted at `sigma`.
        sigma, next_sigma: Before and after the step, `sigma` not 0.
    """
    derivative = (latents - original) / sigma
    return latents + (next_sigma - sigma) * derivative


def euler(config: ScheduleConfig, num_steps: int, *, first_step: int = 0) -> Plan:
    """The plan of Euler's method: one evaluation a step, no sampler state, no noise.

    Raises:
        InvalidValue: No plan of so many steps.
    """
    timesteps, levels = euler_levels(config, num_steps, first_step, final_level(config))

    def advance(
        position: int, latents: Float64, state: Sequence[Float64], prediction: Float64, noise: Float64
    ) -> tuple[Float64, Sequence[Float64]]:
        level, next_level = levels[position], levels[position + 1]
        original = predicted_original(config.prediction_type, level.signal * latents, prediction, level)
        return euler_step(latents, original, level.sigma, next_level.sigma), []

    return trace(
        advance,
        sampler="euler",
        prediction_type=config.prediction_type,
        timesteps=timesteps,
        levels=levels,
        initial_scale=euler_initial_scale(config, levels[0]),
        variance_exploding=True,
    )


def euler_levels(config: ScheduleConfig, num_steps: int, first_step: int, last: Level) -> tuple[Float64, list[Level]]:
    """Timesteps, which linspace does not round, and the levels before each and after the last."""
    timesteps = spaced_timesteps(config, num_steps, default=TimestepSpacing.LINSPACE, whole=False)[first_step:]
    return timesteps, [*(Level.of_sigma(float(sigma)) for sigma in sigmas_at(config, timesteps)), last]


def euler_initial_scale(config: ScheduleConfig, level: Level) -> float:
    """How large the latents are to start from.

    Spacings that begin at the last timestep begin with noise alone, as diffusers has it; below, the original adds unit variance.
    """
    if config.timestep_spacing in (TimestepSpacing.LEADING, TimestepSpacing.KERAS_CV_0_8):
        return math.sqrt(level.sigma**2 + 1.0)
    return level.sigma
