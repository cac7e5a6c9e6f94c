"""Latent consistency sampling."""

from __future__ import annotations

import pytest

from triptych.errors import InvalidValue
from triptych.sampling.lcm import boundary_scalings, lcm
from triptych.sampling.schedule import ScheduleConfig


def test_at_timestep_0_the_consistency_function_is_the_latents_themselves() -> None:
    assert boundary_scalings(0) == (1.0, 0.0)


def test_at_the_noisiest_timestep_it_is_the_predicted_original() -> None:
    assert boundary_scalings(999) == pytest.approx((0.0, 1.0), abs=1e-7)


def test_its_timesteps_are_those_of_the_solver_it_was_distilled_from() -> None:
    assert lcm(ScheduleConfig(), 4).timesteps.tolist() == [999, 759, 499, 259]


def test_noise_is_wanted_at_every_step_but_the_last() -> None:
    plan = lcm(ScheduleConfig(), 4)

    assert [plan.needs_noise(position) for position in range(4)] == [True, True, True, False]


def test_more_steps_than_the_solver_had_are_refused() -> None:
    with pytest.raises(InvalidValue, match="num_steps of lcm must be between 1 and 50, not 51") as refused:
        lcm(ScheduleConfig(), 51)
    assert refused.value.param == "num_steps"
