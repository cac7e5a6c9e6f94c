"""The noise schedule: published numbers, and what a configuration may say."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest

from triptych.errors import CheckpointError
from triptych.sampling.schedule import (
    BetaSchedule,
    FinalSigma,
    Level,
    PredictionType,
    ScheduleConfig,
    TimestepSpacing,
    alphas_cumprod,
    final_level,
    level_at,
    sigma_table,
    sigmas_at,
)

STABLE_DIFFUSION = ScheduleConfig(beta_start=0.00085, beta_end=0.012, beta_schedule=BetaSchedule.SCALED_LINEAR)

# Some of the thousand numbers that keras-cv 0.9.0 carries as a table (keras_cv/src/models/stable_diffusion/constants.py).
KERAS_CV_TABLE = {0: 0.99915, 1: 0.998296, 2: 0.9974381, 250: 0.6737926, 500: 0.27633268, 750: 0.05616985, 999: 0.0046600983}


@pytest.mark.parametrize(("timestep", "alpha_cumprod"), KERAS_CV_TABLE.items())
def test_the_scaled_linear_schedule_is_keras_cvs_table(timestep: int, alpha_cumprod: float) -> None:
    # 1000 roundings to float32 lie between: at most 5e-7 on the whole table.
    assert alphas_cumprod(STABLE_DIFFUSION)[timestep] == pytest.approx(alpha_cumprod, abs=5e-7)


@pytest.mark.parametrize(
    ("config", "betas"),
    [
        (STABLE_DIFFUSION, np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
        (ScheduleConfig(), np.linspace(0.0001, 0.02, 1000)),
        (ScheduleConfig(num_train_timesteps=7), np.linspace(0.0001, 0.02, 7)),
    ],
)
def test_the_schedule_is_the_cumulative_product_of_one_minus_beta(config: ScheduleConfig, betas: np.ndarray) -> None:
    np.testing.assert_allclose(alphas_cumprod(config), np.cumprod(1 - betas), rtol=2e-6)
    assert alphas_cumprod(config).dtype == np.float32


@pytest.mark.parametrize(
    ("config", "digest"),
    [
        (STABLE_DIFFUSION, "b0c6833c866f3aae5d58606971a4297931251d8ed9c31d9a8b849e13ca14e3b6"),
        (ScheduleConfig(), "b5555536933367c4ad73b4e972e1701b8cf631f368d370f1f05c23c5881f1994"),
    ],
)
def test_the_schedule_is_diffusers_to_the_bit(config: ScheduleConfig, digest: str) -> None:
    # Of DDIMScheduler(...).alphas_cumprod in diffusers 0.42; tests/reference/test_sampling.py compares with it live.
    assert hashlib.sha256(alphas_cumprod(config).astype("<f4").tobytes()).hexdigest() == digest


def test_zero_terminal_snr_keeps_the_start_and_ends_in_noise() -> None:
    config = ScheduleConfig(rescale_betas_zero_snr=True, prediction_type=PredictionType.V_PREDICTION)

    rescaled, plain = alphas_cumprod(config), alphas_cumprod(ScheduleConfig())

    assert rescaled[-1] == 0.0
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-6)
    assert np.all(np.diff(rescaled) < 0)
    assert sigma_table(config)[-1] == pytest.approx(4096, rel=1e-6), "samplers that count in sigmas need a finite one"


def test_tables_are_shared_and_so_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        alphas_cumprod(STABLE_DIFFUSION)[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        sigma_table(STABLE_DIFFUSION)[0] = 1


def test_a_level_is_the_same_by_alpha_and_by_sigma() -> None:
    by_alpha = level_at(STABLE_DIFFUSION, 300)
    by_sigma = Level.of_sigma(float(sigmas_at(STABLE_DIFFUSION, np.array([300.0]))[0]))

    assert by_sigma.signal == pytest.approx(by_alpha.signal, rel=1e-6)
    assert by_sigma.noise == pytest.approx(by_alpha.noise, rel=1e-6)
    assert by_alpha.signal**2 + by_alpha.noise**2 == pytest.approx(1.0)
    assert by_alpha.half_log_snr == pytest.approx(-math.log(by_alpha.sigma))


def test_without_noise_the_signal_to_noise_ratio_is_infinite() -> None:
    assert Level(1.0, 0.0).half_log_snr == math.inf


def test_final_sigma_is_none_or_the_least_of_training() -> None:
    least = ScheduleConfig(final_sigmas_type=FinalSigma.SIGMA_MIN)

    assert final_level(ScheduleConfig()).noise == 0.0
    assert final_level(least).sigma == pytest.approx(level_at(least, 0).sigma, rel=1e-5)


def test_stable_diffusions_own_file_is_read() -> None:
    # runwayml/stable-diffusion-v1-5, scheduler/scheduler_config.json
    content = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }

    assert ScheduleConfig.from_dict(content) == ScheduleConfig(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=BetaSchedule.SCALED_LINEAR,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def test_every_field_is_read() -> None:
    content = {
        "num_train_timesteps": 500,
        "beta_start": 0.001,
        "beta_end": 0.01,
        "beta_schedule": "linear",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "steps_offset": 1,
        "set_alpha_to_one": True,
        "final_sigmas_type": "sigma_min",
        "lower_order_final": False,
        "rescale_betas_zero_snr": True,
    }

    assert ScheduleConfig.from_dict(content) == ScheduleConfig(
        num_train_timesteps=500,
        beta_start=0.001,
        beta_end=0.01,
        beta_schedule=BetaSchedule.LINEAR,
        prediction_type=PredictionType.V_PREDICTION,
        timestep_spacing=TimestepSpacing.TRAILING,
        steps_offset=1,
        set_alpha_to_one=True,
        final_sigmas_type=FinalSigma.SIGMA_MIN,
        lower_order_final=False,
        rescale_betas_zero_snr=True,
    )


def test_null_is_absent() -> None:
    assert ScheduleConfig.from_dict({"timestep_spacing": None, "beta_start": None, "clip_sample": None}) == ScheduleConfig()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule='squaredcos_cap_v2'; it must be one of linear, scaled_linear"),
        ({"prediction_type": "flow_prediction"}, "it must be one of epsilon, v_prediction, sample"),
        ({"prediction_type": ["epsilon"]}, "prediction_type="),
        ({"timestep_spacing": "karras"}, "leading, trailing, linspace, keras_cv, keras_cv_0.8"),
        ({"final_sigmas_type": 0}, "one of zero, sigma_min"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"clip_sample": True}, "clip_sample=True; only False is supported"),
        ({"thresholding": True}, "thresholding"),
        ({"timestep_type": "continuous"}, "only 'discrete' is supported"),
        ({"num_train_timesteps": 1000.5}, "num_train_timesteps=1000.5; it must be a whole number"),
        ({"num_train_timesteps": True}, "a whole number"),
        ({"num_train_timesteps": 1}, "num_train_timesteps must be at least 2"),
        ({"beta_start": "0.1"}, "beta_start='0.1'; it must be a number"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "0 < beta_start <= beta_end < 1"),
        ({"beta_end": math.nan}, "0 < beta_start <= beta_end < 1"),
        ({"set_alpha_to_one": 1}, "set_alpha_to_one=1; it must be true or false"),
        ({"rescale_betas_zero_snr": True}, "does not go with prediction_type epsilon"),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        ScheduleConfig.from_dict(content)
    assert sentence in refused.value.message
