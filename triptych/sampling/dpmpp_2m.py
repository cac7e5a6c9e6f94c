"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2), plain and with the sigmas of Karras et al. (2206.00364)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from triptych.sampling.plan import Plan, trace
from triptych.sampling.prediction import predicted_original
from triptych.sampling.schedule import (
    FinalSigma,
    Float64,
    Level,
    ScheduleConfig,
    TimestepSpacing,
    final_level,
    sigmas_at,
)
from triptych.sampling.timesteps import karras_sigmas, spaced_timesteps, timesteps_of_sigmas

MANY_STEPS = 15
"""From here on a last step of second order does no harm; diffusers' number."""


def dpmpp_step(latents: Float64, original: Float64, level: Level, next_level: Level) -> Float64:
    """The first-order step, which is DDIM's: line 4 of algorithm 2.

    Args:
        latents: At `level`.
        original: The paper's D_i: what holds for the whole step.
        level, next_level: Before and after the step.
    """
    h = next_level.half_log_snr - level.half_log_snr
    return (next_level.noise / level.noise) * latents - next_level.signal * math.expm1(-h) * original


def change_ahead(original: Float64, previous: Float64, levels: Sequence[Level]) -> Float64:
    """How much the original will change over a step, going by its last change: that, divided by the paper's r_i.

    Args:
        original, previous: Predicted now and at the step before.
        levels: At the step before, now, and after the step.
    """
    before, now, after = (level.half_log_snr for level in levels)
    return (after - now) / (now - before) * (original - previous)


def dpmpp_2m(config: ScheduleConfig, num_steps: int, *, first_step: int = 0, karras: bool = False) -> Plan:
    """The plan of DPM-Solver++(2M): one evaluation a step, no noise, one array of sampler state: the previous predicted original.

    Raises:
        InvalidValue: No plan of so many steps.
    """
    timesteps, sigmas = _karras(config, num_steps) if karras else _spaced(config, num_steps)
    timesteps, sigmas = timesteps[first_step:], sigmas[first_step:]
    levels = [*(Level.of_sigma(float(sigma)) for sigma in sigmas), final_level(config)]
    count = len(timesteps)
    # To no noise at all, the second-order step is infinitely long.
    ends_low = config.final_sigmas_type == FinalSigma.ZERO or (config.lower_order_final and num_steps < MANY_STEPS)

    def advance(
        position: int, latents: Float64, state: Sequence[Float64], prediction: Float64, noise: Float64
    ) -> tuple[Float64, Sequence[Float64]]:
        level, next_level = levels[position], levels[position + 1]
        original = predicted_original(config.prediction_type, latents, prediction, level)
        if position == 0 or (ends_low and position == count - 1):
            return dpmpp_step(latents, original, level, next_level), [original]
        middle = original + 0.5 * change_ahead(original, state[0], levels[position - 1 : position + 2])
        return dpmpp_step(latents, middle, level, next_level), [original]

    return trace(
        advance,
        sampler="dpm++_2m_karras" if karras else "dpm++_2m",
        prediction_type=config.prediction_type,
        timesteps=timesteps,
        levels=levels,
        state_arrays=1,
    )


def _spaced(config: ScheduleConfig, num_steps: int) -> tuple[Float64, Float64]:
    timesteps = spaced_timesteps(config, num_steps, default=TimestepSpacing.LINSPACE, leave_out_last=True)
    return timesteps, sigmas_at(config, timesteps)


def _karras(config: ScheduleConfig, num_steps: int) -> tuple[Float64, Float64]:
    sigmas = karras_sigmas(config, num_steps)
    return timesteps_of_sigmas(config, sigmas), sigmas
