"""Euler's method."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triptych.sampling.euler import euler, euler_step
from triptych.sampling.schedule import FinalSigma, ScheduleConfig, TimestepSpacing, sigma_table


def test_a_step_goes_along_the_line_to_the_original() -> None:
    latents, original = np.array([5.0]), np.array([1.0])

    assert euler_step(latents, original, 2.0, 0.0) == original
    assert euler_step(latents, original, 2.0, 1.0) == 3.0
    assert euler_step(latents, original, 2.0, 2.0) == latents


@pytest.mark.parametrize(
    ("spacing", "scale"),
    [
        (TimestepSpacing.TRAILING, sigma_table(ScheduleConfig())[-1]),
        (TimestepSpacing.LINSPACE, sigma_table(ScheduleConfig())[-1]),
        (None, sigma_table(ScheduleConfig())[-1]),
        (TimestepSpacing.LEADING, math.hypot(sigma_table(ScheduleConfig())[750], 1)),
        (TimestepSpacing.KERAS_CV_0_8, math.hypot(sigma_table(ScheduleConfig())[751], 1)),
    ],
)
def test_the_latents_start_as_large_as_their_noise(spacing: TimestepSpacing | None, scale: float) -> None:
    plan = euler(ScheduleConfig(timestep_spacing=spacing), 4)
    noise = np.ones((1, 1, 4), np.float32)

    latents, state = plan.initial(noise)

    np.testing.assert_allclose(latents, scale * noise, rtol=1e-6)
    assert state.shape == (0, 1, 1, 4)


def test_the_network_sees_unit_variance() -> None:
    plan = euler(ScheduleConfig(), 4)
    latents = np.full((1, 1, 4), 3.0, np.float32)

    np.testing.assert_allclose(
        plan.network_input(latents, 0), latents / math.hypot(sigma_table(ScheduleConfig())[-1], 1), rtol=1e-6
    )


def test_final_sigma_says_where_it_ends() -> None:
    ends_low = euler(ScheduleConfig(final_sigmas_type=FinalSigma.SIGMA_MIN), 4)

    np.testing.assert_array_equal(euler(ScheduleConfig(), 4).levels[-1], (1.0, 0.0))
    np.testing.assert_allclose(ends_low.levels[-1], (1.0, sigma_table(ScheduleConfig())[0]), rtol=1e-6)
