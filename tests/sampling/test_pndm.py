"""PNDM."""

from __future__ import annotations

import numpy as np
import pytest

from triptych.errors import InvalidValue
from triptych.sampling.pndm import linear_multistep, pndm, pndm_transfer
from triptych.sampling.schedule import Level, PredictionType, ScheduleConfig


@pytest.mark.parametrize(
    ("num_steps", "timesteps", "steps"),
    [(1, [0], (0,)), (2, [500, 0, 0], (0, 0, 1)), (4, [750, 500, 500, 250, 0], (0, 0, 1, 2, 3))],
)
def test_the_first_step_takes_two_evaluations(num_steps: int, timesteps: list[int], steps: tuple[int, ...]) -> None:
    plan = pndm(ScheduleConfig(), num_steps)

    np.testing.assert_array_equal(plan.timesteps, timesteps)
    assert plan.steps == steps
    assert plan.num_steps == num_steps


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_multistep_of_an_order_is_exact_for_polynomials_of_lower_degree(order: int) -> None:
    # The mean over the coming step, from 0 to 1, of a polynomial that is known at 0, -1, -2, -3.
    polynomial = np.polynomial.Polynomial([3.0, -2.0, 0.7, 0.4][:order])
    newest, *earlier = (np.array([polynomial(-step)]) for step in range(order))

    assert linear_multistep(newest, earlier) == pytest.approx(polynomial.integ()(1.0))


def test_the_transfer_along_the_true_noise_is_exact() -> None:
    original, epsilon = np.array([1.0, -0.4]), np.array([0.2, 0.9])
    level, next_level = Level.of_sigma(5.0), Level.of_sigma(0.6)

    np.testing.assert_allclose(
        pndm_transfer(level.signal * original + level.noise * epsilon, epsilon, level, next_level),
        next_level.signal * original + next_level.noise * epsilon,
        rtol=1e-12,
    )


def test_pure_noise_is_refused() -> None:
    config = ScheduleConfig(rescale_betas_zero_snr=True, prediction_type=PredictionType.V_PREDICTION)

    with pytest.raises(InvalidValue, match="pndm does not go with rescale_betas_zero_snr") as refused:
        pndm(config, 5)
    assert refused.value.param == "sampler"
