"""DPM-Solver++(2M)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triptych.sampling.ddim import ddim_step
from triptych.sampling.dpmpp_2m import change_ahead, dpmpp_2m, dpmpp_step
from triptych.sampling.schedule import CLEAN, FinalSigma, Level, ScheduleConfig, sigma_table

LEVELS = [Level.of_sigma(sigma) for sigma in (8.0, 3.0, 1.0)]


def test_the_first_order_step_is_ddims() -> None:
    original, epsilon = np.array([1.0, -0.4]), np.array([0.2, 0.9])
    level, next_level = LEVELS[:2]
    latents = level.signal * original + level.noise * epsilon

    np.testing.assert_allclose(
        dpmpp_step(latents, original, level, next_level),
        ddim_step(original, epsilon, np.zeros(2), level, next_level, 0.0),
        rtol=1e-12,
    )


def test_a_step_to_no_noise_ends_at_the_original() -> None:
    original = np.array([1.0, -0.4])

    np.testing.assert_array_equal(dpmpp_step(np.array([3.0, 4.0]), original, LEVELS[-1], CLEAN), original)


def test_the_change_ahead_is_proportional_to_the_length_of_the_step() -> None:
    was, now = math.log(8.0 / 3.0), math.log(3.0)

    assert change_ahead(np.array([5.0]), np.array([2.0]), LEVELS) == pytest.approx(3.0 * now / was)


def looks_back(config: ScheduleConfig, num_steps: int) -> list[bool]:
    """Whether each evaluation uses the previous predicted original."""
    return [bool(matrix[0, 1]) for matrix in dpmpp_2m(config, num_steps).transitions]


@pytest.mark.parametrize(
    ("num_steps", "lower_order_final", "final", "last_looks_back"),
    [
        (4, True, FinalSigma.ZERO, False),
        (4, False, FinalSigma.ZERO, False),
        (4, True, FinalSigma.SIGMA_MIN, False),
        (4, False, FinalSigma.SIGMA_MIN, True),
        (14, True, FinalSigma.SIGMA_MIN, False),
        (15, True, FinalSigma.SIGMA_MIN, True),
        (15, True, FinalSigma.ZERO, False),
    ],
)
def test_the_first_step_and_some_last_ones_are_of_first_order(
    num_steps: int, lower_order_final: bool, final: FinalSigma, last_looks_back: bool
) -> None:
    config = ScheduleConfig(lower_order_final=lower_order_final, final_sigmas_type=final)

    assert looks_back(config, num_steps) == [False, *[True] * (num_steps - 2), last_looks_back]


def test_karras_sigmas_are_its_levels() -> None:
    plan = dpmpp_2m(ScheduleConfig(), 10, karras=True)
    sigmas = plan.levels[:-1, 1] / plan.levels[:-1, 0]

    assert plan.sampler == "dpm++_2m_karras"
    assert sigmas[0] == pytest.approx(sigma_table(ScheduleConfig())[-1], rel=1e-5)
    np.testing.assert_allclose(np.diff(sigmas ** (1 / 7)), np.diff(sigmas ** (1 / 7))[0], rtol=1e-4)
