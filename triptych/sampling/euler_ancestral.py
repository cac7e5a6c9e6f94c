"""Euler's method with ancestral noise (Song et al. 2021, arXiv:2011.13456, appendix F: ancestral sampling of the VE SDE)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from triptych.sampling.euler import euler_initial_scale, euler_levels, euler_step
from triptych.sampling.plan import Plan, trace
from triptych.sampling.prediction import predicted_original
from triptych.sampling.schedule import CLEAN, Float64, ScheduleConfig


def ancestral_sigmas(sigma: float, next_sigma: float) -> tuple[float, float]:
    """Where to step down to, and how much fresh noise to add there, to be at `next_sigma` as the reversed chain would."""
    up = math.sqrt(next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2)
    down = math.sqrt(next_sigma**2 - up**2)
    return down, up


def euler_ancestral(config: ScheduleConfig, num_steps: int, *, first_step: int = 0) -> Plan:
    """The plan of ancestral Euler: one evaluation a step, no sampler state, noise at every step but the last. Ends at no noise.

    Raises:
        InvalidValue: No plan of so many steps.
    """
    timesteps, levels = euler_levels(config, num_steps, first_step, CLEAN)

    def advance(
        position: int, latents: Float64, state: Sequence[Float64], prediction: Float64, noise: Float64
    ) -> tuple[Float64, Sequence[Float64]]:
        level, next_level = levels[position], levels[position + 1]
        down, up = ancestral_sigmas(level.sigma, next_level.sigma)
        original = predicted_original(config.prediction_type, level.signal * latents, prediction, level)
        return euler_step(latents, original, level.sigma, down) + up * noise, []

    return trace(
        advance,
        sampler="euler_ancestral",
        prediction_type=config.prediction_type,
        timesteps=timesteps,
        levels=levels,
        initial_scale=euler_initial_scale(config, levels[0]),
        variance_exploding=True,
    )
