"""UniPC of order 2 with B(h) = e^h - 1 (Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2); "bh2" in diffusers.

An evaluation first corrects the latents that it was made for (UniC), then predicts the next ones from there (UniP). Both are
written for predictions of the original; with this B(h), UniP of order 2 is the step of DPM-Solver++(2M).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from triptych.errors import InvalidValue
from triptych.sampling.dpmpp_2m import change_ahead, dpmpp_step
from triptych.sampling.plan import Plan, trace
from triptych.sampling.prediction import predicted_original
from triptych.sampling.schedule import Float64, Level, ScheduleConfig, TimestepSpacing, final_level, sigmas_at
from triptych.sampling.timesteps import spaced_timesteps


def unic_weights(levels: Sequence[Level]) -> tuple[float, float]:
    """The weights a_1 and a_2 of UniC at order 2: they solve the 2 x 2 system of the paper's theorem 3.1.

    Args:
        levels: Two steps before, at the step before, and now.
    """
    earlier, last, now = (level.half_log_snr for level in levels)
    h, ratio = now - last, (earlier - last) / (now - last)
    growth = math.expm1(-h)
    phi_2 = growth / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    b_1, b_2 = phi_2 / growth, 2.0 * phi_3 / growth
    weight = (b_1 - b_2) / (1.0 - ratio)
    return weight, b_1 - weight


def unipc(config: ScheduleConfig, num_steps: int, *, first_step: int = 0) -> Plan:
    """The plan of UniPC: one evaluation a step and no noise.

    Three arrays of sampler state: the corrected latents of the step before, the original predicted there, and the one before.

    Raises:
        InvalidValue: No plan of so many steps, or the model's configuration does not go with this sampler.
    """
    timesteps = spaced_timesteps(config, num_steps, default=TimestepSpacing.LINSPACE, leave_out_last=True)[first_step:]
    levels = [*(Level.of_sigma(float(sigma)) for sigma in sigmas_at(config, timesteps)), final_level(config)]
    count = len(timesteps)
    # A second-order step looks back on one step before it.
    second_order = [0 < position < (count - 1 if config.lower_order_final else count) for position in range(count)]
    if second_order[-1] and levels[-1].noise == 0.0:
        raise InvalidValue("unipc needs lower_order_final where final_sigmas_type is zero", param="sampler")

    def corrected(
        position: int, latents: Float64, last_original: Float64, earlier_original: Float64, original: Float64
    ) -> Float64:
        """UniC: the step that led here once more, from the corrected latents before it, now that its end is known."""
        change = original - last_original
        if second_order[position - 1]:
            around = levels[position - 2 : position + 1]
            weight, weight_of_new = unic_weights(around)
            change = weight * change_ahead(last_original, earlier_original, around) + weight_of_new * change
        else:
            change = 0.5 * change
        return dpmpp_step(latents, last_original + change, levels[position - 1], levels[position])

    def advance(
        position: int, latents: Float64, state: Sequence[Float64], prediction: Float64, noise: Float64
    ) -> tuple[Float64, Sequence[Float64]]:
        last_latents, last_original, earlier_original = state
        original = predicted_original(config.prediction_type, latents, prediction, levels[position])
        if position > 0:
            latents = corrected(position, last_latents, last_original, earlier_original, original)
        middle = original
        if second_order[position]:
            middle = original + 0.5 * change_ahead(original, last_original, levels[position - 1 : position + 2])
        return dpmpp_step(latents, middle, levels[position], levels[position + 1]), [latents, original, last_original]

    return trace(
        advance,
        sampler="unipc",
        prediction_type=config.prediction_type,
        timesteps=timesteps,
        levels=levels,
        state_arrays=3,
    )
