"""UniPC."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triptych.errors import InvalidValue
from triptych.sampling.dpmpp_2m import dpmpp_2m
from triptych.sampling.schedule import Level, ScheduleConfig
from triptych.sampling.unipc import unic_weights, unipc


def test_the_correctors_weights_solve_the_papers_system() -> None:
    levels = [Level.of_sigma(sigma) for sigma in (9.0, 4.0, 1.5)]
    weights = unic_weights(levels)

    # Theorem 3.1 for a prediction of the original, where phi_n integrates e^(s - h) s^(n - 1) / (n - 1)! over the step.
    h = math.log(4.0 / 1.5)
    ratios = np.array([-math.log(9.0 / 4.0) / h, 1.0])
    s = np.linspace(0, h, 200_001)
    moments = [np.trapezoid(np.exp(s - h) * s**power, s) / h**power for power in (1, 2)]
    right = np.array(moments) / (1 - math.exp(-h))

    np.testing.assert_allclose(np.stack([ratios**0, ratios]) @ weights, right * [1, 1], rtol=1e-6)


def test_the_predictor_is_dpm_solver_2m_where_there_is_nothing_to_correct() -> None:
    # A prediction that repeats itself needs no correction.
    config = ScheduleConfig()
    ours, theirs = unipc(config, 6), dpmpp_2m(config, 6)
    latents, state = ours.initial(np.ones((1, 1, 4), np.float32))
    plain, plain_state = theirs.initial(np.ones((1, 1, 4), np.float32))
    for position in range(6):
        ours_prediction, plain_prediction = (_epsilon_of_one(plan, x, position) for plan, x in ((ours, latents), (theirs, plain)))
        latents, state = ours.advance(latents, state, position, ours_prediction)
        plain, plain_state = theirs.advance(plain, plain_state, position, plain_prediction)
        np.testing.assert_allclose(latents, plain, rtol=1e-4)


def _epsilon_of_one(plan, latents, position):  # type: ignore[no-untyped-def]
    signal, noise = plan.levels[position]
    return (latents - signal) / noise


def test_lower_order_final_is_needed_to_end_at_no_noise() -> None:
    with pytest.raises(InvalidValue, match="unipc needs lower_order_final where final_sigmas_type is zero") as refused:
        unipc(ScheduleConfig(lower_order_final=False), 5)
    assert refused.value.param == "sampler"
    assert unipc(ScheduleConfig(lower_order_final=False), 1).num_evaluations == 1, "one step is of first order anyway"
