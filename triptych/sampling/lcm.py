"""Latent consistency sampling, for networks that were distilled to need few steps (Luo et al. 2023, arXiv:2310.04378).

Each evaluation jumps to the original at once; between evaluations fresh noise is added, down to the next level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from triptych.errors import InvalidValue
from triptych.sampling.plan import Plan, trace
from triptych.sampling.prediction import predicted_original
from triptych.sampling.schedule import CLEAN, Float64, ScheduleConfig, level_at

ORIGINAL_STEPS = 50
"""The steps of the solver that such networks are distilled from: the timesteps are chosen among its own."""

_SIGMA_DATA = 0.5
_TIMESTEP_SCALING = 10.0


def boundary_scalings(timestep: float) -> tuple[float, float]:
    """How much of the latents as they are, and how much of the predicted original, the consistency function consists of.

    At timestep 0 it is the latents themselves (Song et al. 2023, arXiv:2303.01469, eq. 5, with the scaled timesteps of LCM).
    """
    scaled = timestep * _TIMESTEP_SCALING
    return _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2), scaled / math.hypot(scaled, _SIGMA_DATA)


def lcm(config: ScheduleConfig, num_steps: int, *, first_step: int = 0) -> Plan:
    """The plan of LCM: one evaluation a step, no sampler state, noise at every step but the last.

    Raises:
        InvalidValue: There are more steps than those networks were taught.
    """
    if not 1 <= num_steps <= ORIGINAL_STEPS:
        raise InvalidValue(f"num_steps of lcm must be between 1 and {ORIGINAL_STEPS}, not {num_steps}", param="num_steps")
    stride = config.num_train_timesteps // ORIGINAL_STEPS
    falling = np.arange(ORIGINAL_STEPS, 0, -1) * stride - 1.0
    timesteps = falling[np.floor(np.linspace(0, ORIGINAL_STEPS, num_steps, endpoint=False)).astype(int)][first_step:]
    levels = [*(level_at(config, int(timestep)) for timestep in timesteps), CLEAN]

    def advance(
        position: int, latents: Float64, state: Sequence[Float64], prediction: Float64, noise: Float64
    ) -> tuple[Float64, Sequence[Float64]]:
        next_level = levels[position + 1]
        of_latents, of_original = boundary_scalings(timesteps[position])
        original = predicted_original(config.prediction_type, latents, prediction, levels[position])
        return next_level.signal * (of_latents * latents + of_original * original) + next_level.noise * noise, []

    return trace(advance, sampler="lcm", prediction_type=config.prediction_type, timesteps=timesteps, levels=levels)
