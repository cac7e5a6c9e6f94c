"""DDIM (Song et al. 2020, arXiv:2010.02502), from deterministic (eta 0) to ancestral (eta 1, DDPM)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from triptych.errors import InvalidValue
from triptych.sampling.plan import Plan, trace
from triptych.sampling.prediction import predicted_noise, predicted_original
from triptych.sampling.schedule import CLEAN, Float64, Level, ScheduleConfig, TimestepSpacing, level_at
from triptych.sampling.timesteps import spaced_timesteps


def ddim_step(original: Float64, epsilon: Float64, noise: Float64, level: Level, next_level: Level, std: float) -> Float64:
    """Equation 12: to `next_level`, with fresh noise of standard deviation `std`.

    Args:
        original, epsilon: Predicted at `level`.
        noise: Standard normal, same shape.
        level, next_level: Before and after the step.
        std: The paper's sigma, at most `next_level.noise`.
    """
    # The difference of two equal numbers may come out as -1e-17.
    direction = math.sqrt(max(next_level.noise**2 - std**2, 0.0))
    return next_level.signal * original + direction * epsilon + std * noise


def ddim_std(level: Level, next_level: Level, eta: float) -> float:
    """Equation 16: how much of the noise after a step is fresh."""
    return eta * (next_level.noise / level.noise) * math.sqrt(1.0 - (level.signal / next_level.signal) ** 2)


def ddim(config: ScheduleConfig, num_steps: int, *, first_step: int = 0, eta: float = 0.0) -> Plan:
    """The plan of DDIM: one evaluation a step, no sampler state, noise where eta is not 0.

    A step leads to the timestep that is `num_train_timesteps // num_steps` below, as in diffusers, whether or not the next step
    starts there: with linspace, and with trailing where the division leaves a remainder, it starts nearby. With keras-cv's
    spacings it leads to where the next one starts.

    Args:
        eta: 0 to 1.

    Raises:
        InvalidValue: No plan of so many steps, or no such eta.
    """
    if not 0.0 <= eta <= 1.0:
        raise InvalidValue(f"eta must be between 0 and 1, not {eta}", param="eta")
    timesteps = spaced_timesteps(config, num_steps, default=TimestepSpacing.LEADING)[first_step:]
    levels = [level_at(config, int(timestep)) for timestep in timesteps]
    if config.timestep_spacing in (TimestepSpacing.KERAS_CV, TimestepSpacing.KERAS_CV_0_8):
        targets = [*levels[1:], _level_below(config, -1)]
    else:
        stride = config.num_train_timesteps // num_steps
        targets = [_level_below(config, int(timestep) - stride) for timestep in timesteps]

    def advance(
        position: int, latents: Float64, state: Sequence[Float64], prediction: Float64, noise: Float64
    ) -> tuple[Float64, Sequence[Float64]]:
        level, target = levels[position], targets[position]
        original = predicted_original(config.prediction_type, latents, prediction, level)
        epsilon = predicted_noise(config.prediction_type, latents, prediction, level)
        return ddim_step(original, epsilon, noise, level, target, ddim_std(level, target, eta)), []

    return trace(
        advance, sampler="ddim", prediction_type=config.prediction_type, timesteps=timesteps, levels=[*levels, targets[-1]]
    )


def _level_below(config: ScheduleConfig, timestep: int) -> Level:
    if timestep >= 0:
        return level_at(config, timestep)
    ends_clean = True if config.set_alpha_to_one is None else config.set_alpha_to_one
    return CLEAN if ends_clean else level_at(config, 0)
