"""DDIM: keras-cv's loop, and the noise of equation 16."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triptych.errors import InvalidValue
from triptych.sampling.ddim import ddim, ddim_std
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.schedule import CLEAN, BetaSchedule, ScheduleConfig, TimestepSpacing, alphas_cumprod, level_at

SHAPE = (2, 3, 4)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 25, 50])
@pytest.mark.parametrize("spacing", [TimestepSpacing.KERAS_CV, TimestepSpacing.KERAS_CV_0_8])
def test_with_keras_cvs_spacing_it_is_keras_cvs_loop(spacing: TimestepSpacing, num_steps: int) -> None:
    config = ScheduleConfig(
        beta_start=0.00085, beta_end=0.012, beta_schedule=BetaSchedule.SCALED_LINEAR, timestep_spacing=spacing
    )
    plan = ddim(config, num_steps)
    latents, state = plan.initial(normal(0, Purpose.INITIAL, 0, SHAPE))
    theirs = latents.astype(np.float64)

    # What keras-cv computes: down a rising list of timesteps, each to the next lower one and the last to alpha 1.
    if spacing == TimestepSpacing.KERAS_CV:
        rising = np.round(np.linspace(0, 999, num_steps)).astype(int)
    else:
        rising = np.arange(1, 1000, 1000 // num_steps)
    alphas = [float(alphas_cumprod(config)[timestep]) for timestep in rising]
    for position, index in enumerate(reversed(range(len(rising)))):
        assert plan.timesteps[position] == rising[index]
        epsilon = normal(1, Purpose.RESAMPLING, position, SHAPE)
        alpha, alpha_below = alphas[index], [1.0, *alphas][index]
        original = (theirs - math.sqrt(1 - alpha) * epsilon) / math.sqrt(alpha)
        theirs = math.sqrt(alpha_below) * original + math.sqrt(1 - alpha_below) * epsilon
        latents, state = plan.advance(latents, state, position, epsilon)

        assert np.abs(latents - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_eta_1_is_the_posterior_of_ddpm() -> None:
    # Ho et al. 2020, eq. 7: beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t), for a step of one timestep.
    config = ScheduleConfig()
    alphas = alphas_cumprod(config).astype(np.float64)
    posterior = (1 - alphas[500] / alphas[499]) * (1 - alphas[499]) / (1 - alphas[500])

    assert ddim_std(level_at(config, 500), level_at(config, 499), 1.0) ** 2 == pytest.approx(posterior)


def test_without_noise_left_none_is_fresh() -> None:
    assert ddim_std(level_at(ScheduleConfig(), 20), CLEAN, 1.0) == 0.0


def test_noise_is_wanted_where_eta_is_not_0_and_noise_is_left() -> None:
    assert not any(ddim(ScheduleConfig(), 4).needs_noise(position) for position in range(4))
    assert [ddim(ScheduleConfig(), 4, eta=0.5).needs_noise(position) for position in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("set_alpha_to_one", [None, True, False])
def test_set_alpha_to_one_says_where_it_ends(set_alpha_to_one: bool | None) -> None:
    config = ScheduleConfig(set_alpha_to_one=set_alpha_to_one)
    end = level_at(config, 0) if set_alpha_to_one is False else CLEAN

    np.testing.assert_allclose(ddim(config, 5).levels[-1], (end.signal, end.noise), rtol=1e-6)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_impossible_eta_is_refused(eta: float) -> None:
    with pytest.raises(InvalidValue, match="eta must be between 0 and 1") as refused:
        ddim(ScheduleConfig(), 4, eta=eta)
    assert refused.value.param == "eta"
