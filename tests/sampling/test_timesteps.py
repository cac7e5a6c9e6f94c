"""Timesteps by spacing, as lists that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from triptych.errors import InvalidValue
from triptych.sampling.schedule import ScheduleConfig, TimestepSpacing, sigma_table
from triptych.sampling.timesteps import karras_sigmas, spaced_timesteps, timesteps_of_sigmas

LEADING, TRAILING, LINSPACE = TimestepSpacing.LEADING, TimestepSpacing.TRAILING, TimestepSpacing.LINSPACE
KERAS_CV, KERAS_CV_0_8 = TimestepSpacing.KERAS_CV, TimestepSpacing.KERAS_CV_0_8


@pytest.mark.parametrize(
    ("spacing", "num_steps", "timesteps"),
    [
        (LEADING, 1, [0]),
        (LEADING, 4, [750, 500, 250, 0]),
        (LEADING, 3, [666, 333, 0]),
        (TRAILING, 1, [999]),
        (TRAILING, 4, [999, 749, 499, 249]),
        (TRAILING, 3, [999, 666, 332]),
        (LINSPACE, 1, [0]),
        (LINSPACE, 4, [999, 666, 333, 0]),
        (LINSPACE, 3, [999, 500, 0]),
        (KERAS_CV, 1, [0]),
        (KERAS_CV, 3, [999, 500, 0]),
        (KERAS_CV, 4, [999, 666, 333, 0]),
        (KERAS_CV_0_8, 1, [1]),
        (KERAS_CV_0_8, 4, [751, 501, 251, 1]),
        (KERAS_CV_0_8, 3, [667, 334, 1]),
    ],
)
def test_each_spacing(spacing: TimestepSpacing, num_steps: int, timesteps: list[int]) -> None:
    found = spaced_timesteps(ScheduleConfig(timestep_spacing=spacing), num_steps, default=LEADING)

    np.testing.assert_array_equal(found, timesteps)


@pytest.mark.parametrize(
    ("spacing", "timesteps"),
    [(LEADING, [750, 500, 250]), (TRAILING, [999, 666, 332]), (LINSPACE, [999, 666, 333])],
)
def test_multistep_samplers_leave_the_least_noisy_timestep_out(spacing: TimestepSpacing, timesteps: list[int]) -> None:
    found = spaced_timesteps(ScheduleConfig(timestep_spacing=spacing), 3, default=LEADING, leave_out_last=True)

    np.testing.assert_array_equal(found, timesteps)


def test_the_samplers_default_holds_where_the_configuration_says_nothing() -> None:
    np.testing.assert_array_equal(spaced_timesteps(ScheduleConfig(), 2, default=TRAILING), [999, 499])


def test_steps_offset_moves_leading_timesteps_only() -> None:
    config = ScheduleConfig(steps_offset=1)

    np.testing.assert_array_equal(spaced_timesteps(config, 2, default=LEADING), [501, 1])
    np.testing.assert_array_equal(spaced_timesteps(config, 2, default=TRAILING), [999, 499])


def test_linspace_may_fall_between_whole_timesteps() -> None:
    found = spaced_timesteps(ScheduleConfig(), 3, default=LINSPACE, whole=False)

    np.testing.assert_array_equal(found, [999, 499.5, 0])


def test_keras_cv_0_8_makes_more_steps_than_asked_for_where_the_division_leaves_much() -> None:
    assert len(spaced_timesteps(ScheduleConfig(), 150, default=KERAS_CV_0_8)) == 167


@pytest.mark.parametrize("num_steps", [61, 103, 121, 122, 998])
def test_trailing_never_goes_below_zero(num_steps: int) -> None:
    timesteps = spaced_timesteps(ScheduleConfig(), num_steps, default=TRAILING)

    assert len(timesteps) == num_steps
    assert timesteps[-1] >= 0


def test_trailing_rounds_ties_as_diffusers_does() -> None:
    # 1000 - 3 * 1000 / 48 is 937.5: numpy.arange's float64 falls just below.
    assert spaced_timesteps(ScheduleConfig(), 48, default=TRAILING)[3] == 936


@pytest.mark.parametrize("spacing", TimestepSpacing)
@pytest.mark.parametrize("leave_out_last", [False, True])
def test_any_number_of_steps_gives_distinct_timesteps_or_is_refused(spacing: TimestepSpacing, leave_out_last: bool) -> None:
    config = ScheduleConfig(timestep_spacing=spacing, num_train_timesteps=100)
    refused = []
    for num_steps in range(1, 101):
        try:
            timesteps = spaced_timesteps(config, num_steps, default=LEADING, leave_out_last=leave_out_last)
        except InvalidValue:
            refused.append(num_steps)
            continue
        assert np.all(np.diff(timesteps) < 0)
        assert 0 <= timesteps[-1] <= timesteps[0] < 100

    assert refused == ([100] if leave_out_last and spacing in (LEADING, LINSPACE) else [])


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
@pytest.mark.parametrize("spacing", [partial(spaced_timesteps, default=LEADING), karras_sigmas])
def test_an_impossible_number_of_steps_is_refused(spacing: Callable[..., np.ndarray], num_steps: int) -> None:
    with pytest.raises(InvalidValue) as refused:
        spacing(ScheduleConfig(), num_steps)
    assert refused.value.param == "num_steps"
    assert f"between 1 and 1000, not {num_steps}" in refused.value.message


def test_an_offset_beyond_the_last_timestep_is_refused() -> None:
    with pytest.raises(InvalidValue, match="num_steps 1000 is too many"):
        spaced_timesteps(replace(ScheduleConfig(), steps_offset=1), 1000, default=LEADING)


def test_karras_sigmas_run_from_the_most_noise_to_the_least_evenly_in_the_seventh_root() -> None:
    config = ScheduleConfig()
    table = sigma_table(config)

    sigmas = karras_sigmas(config, 10)

    assert sigmas[0] == pytest.approx(table[-1])
    assert sigmas[-1] == pytest.approx(table[0])
    np.testing.assert_allclose(np.diff(sigmas ** (1 / 7)), np.diff(sigmas ** (1 / 7))[0], rtol=1e-9)


def test_a_training_sigma_belongs_to_its_timestep() -> None:
    config = ScheduleConfig()

    np.testing.assert_array_equal(timesteps_of_sigmas(config, sigma_table(config)[[0, 17, 500, 999]]), [0, 17, 500, 999])
