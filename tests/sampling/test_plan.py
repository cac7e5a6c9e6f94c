"""What holds for every sampler's plan."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from triptych.sampling.noise import Purpose, normal
from triptych.sampling.plan import Plan
from triptych.sampling.samplers import SAMPLERS, make_plan
from triptych.sampling.schedule import BetaSchedule, FinalSigma, PredictionType, ScheduleConfig, TimestepSpacing

SHAPE = (2, 3, 4)
STABLE_DIFFUSION = ScheduleConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule=BetaSchedule.SCALED_LINEAR, timestep_spacing=TimestepSpacing.LEADING
)
RANDOM = ("ddim_eta_1", "euler_ancestral", "lcm")
DETERMINISTIC = tuple(sampler for sampler in SAMPLERS if sampler not in RANDOM)
PNDM_ON_VELOCITIES = ("pndm", PredictionType.V_PREDICTION)
"""Averages velocities of several timesteps, as diffusers does, which says something else than averaging their noise."""


def plan_of(sampler: str, config: ScheduleConfig = STABLE_DIFFUSION, num_steps: int = 12) -> Plan:
    if sampler == "ddim_eta_1":
        return make_plan("ddim", config, num_steps, eta=1.0)
    return make_plan(sampler, config, num_steps)


def exact_prediction(plan: Plan, config: ScheduleConfig, latents: np.ndarray, original: np.ndarray, position: int) -> np.ndarray:
    """What a network that knows the original would predict."""
    plan_signal, plan_noise = plan.levels[position]
    epsilon = (latents - plan_signal * original) / plan_noise
    signal, noise = plan.levels[position] / np.hypot(plan_signal, plan_noise)
    match config.prediction_type:
        case PredictionType.EPSILON:
            return epsilon
        case PredictionType.V_PREDICTION:
            return signal * epsilon - noise * original
        case PredictionType.SAMPLE:
            return original


@pytest.mark.parametrize(
    ("sampler", "prediction_type"),
    [each for each in product(DETERMINISTIC, PredictionType) if each != PNDM_ON_VELOCITIES],
)
def test_a_network_that_knows_the_original_is_led_straight_to_it(sampler: str, prediction_type: PredictionType) -> None:
    config = replace(STABLE_DIFFUSION, prediction_type=prediction_type, set_alpha_to_one=True)
    plan = plan_of(sampler, config)
    original, noise = normal(1, Purpose.INITIAL, 0, SHAPE), normal(2, Purpose.INITIAL, 0, SHAPE)
    _, state = plan.initial(noise)
    latents = plan.add_noise(original, noise, 0)
    for position in range(plan.num_evaluations):
        np.testing.assert_allclose(latents, plan.add_noise(original, noise, position), rtol=2e-4, atol=2e-4)
        prediction = exact_prediction(plan, config, latents, original, position)
        np.testing.assert_allclose(plan.predicted_original(latents, position, prediction), original, rtol=1e-4, atol=2e-4)
        latents, state = plan.advance(latents, state, position, prediction)
    np.testing.assert_allclose(latents, original, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", RANDOM)
def test_fresh_noise_replaces_as_much_as_was_taken_away(sampler: str) -> None:
    plan = plan_of(sampler)
    shape = (100, 100, 4)
    original = np.zeros(shape, np.float32)
    latents, state = plan.initial(normal(0, Purpose.INITIAL, 0, shape))
    latents = plan.add_noise(original, normal(0, Purpose.INITIAL, 0, shape), 0)
    for position in range(plan.num_evaluations):
        # Four standard errors of the deviation of 40,000 numbers.
        assert latents.std() == pytest.approx(plan.levels[position][1], rel=4 / np.sqrt(2 * latents.size))
        prediction = exact_prediction(plan, STABLE_DIFFUSION, latents, original, position)
        noise = normal(0, Purpose.ANCESTRAL, position, shape) if plan.needs_noise(position) else None
        latents, state = plan.advance(latents, state, position, prediction, noise)
    np.testing.assert_allclose(latents, original, atol=1e-4)


@pytest.mark.parametrize(
    ("sampler", "prediction_type"),
    [each for each in product((*SAMPLERS, "ddim_eta_1"), list(PredictionType)[1:]) if each != PNDM_ON_VELOCITIES],
)
def test_the_kind_of_prediction_makes_no_difference(sampler: str, prediction_type: PredictionType) -> None:
    other = replace(STABLE_DIFFUSION, prediction_type=prediction_type)
    plans = (plan_of(sampler), STABLE_DIFFUSION), (plan_of(sampler, other), other)

    first, second = (denoise_towards_a_function(plan, config) for plan, config in plans)

    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)


def denoise_towards_a_function(plan: Plan, config: ScheduleConfig) -> np.ndarray:
    latents, state = plan.initial(normal(3, Purpose.INITIAL, 0, SHAPE))
    for position in range(plan.num_evaluations):
        original = np.tanh(plan.network_input(latents, position))
        prediction = exact_prediction(plan, config, latents, original, position)
        latents, state = plan.advance(latents, state, position, prediction, normal(4, Purpose.ANCESTRAL, position, SHAPE))
    return latents


@pytest.mark.parametrize(
    ("sampler", "shrinks_by"),
    [("ddim", 1.7), ("euler", 1.8), ("dpm++_2m", 2.5), ("dpm++_2m_karras", 3.8), ("unipc", 2.8), ("pndm", 3.0)],
)
def test_twice_the_steps_come_closer_to_the_exact_solution(sampler: str, shrinks_by: float) -> None:
    # Originals that are normal with deviation 0.5 have an exact solution; a method of order p halves its error p times over.
    config = replace(
        STABLE_DIFFUSION,
        prediction_type=PredictionType.SAMPLE,
        timestep_spacing=TimestepSpacing.TRAILING,
        final_sigmas_type=FinalSigma.SIGMA_MIN,
        lower_order_final=False,
    )

    assert error_on_normal_data(plan_of(sampler, config, 50)) > shrinks_by * error_on_normal_data(plan_of(sampler, config, 100))


def error_on_normal_data(plan: Plan, deviation: float = 0.5) -> float:
    start, state = plan.initial(normal(5, Purpose.INITIAL, 0, SHAPE))
    latents = start
    for position in range(plan.num_evaluations):
        signal, noise = plan.levels[position]
        original = signal * deviation**2 / ((signal * deviation) ** 2 + noise**2) * latents
        latents, state = plan.advance(latents, state, position, original.astype(np.float32))
    (first_signal, first_noise), (last_signal, last_noise) = plan.levels[0], plan.levels[-1]
    exact = start * np.hypot(last_signal * deviation, last_noise) / np.hypot(first_signal * deviation, first_noise)
    return float(np.abs(latents - exact).max())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_are_the_same_bytes_alone_and_together(sampler: str) -> None:
    plan = plan_of(sampler)
    noise = np.stack([normal(seed, Purpose.INITIAL, 0, SHAPE) for seed in range(5)])
    together, together_state = plan.initial(noise)
    alone = [plan.initial(row) for row in noise]
    assert together_state.shape == (5, plan.state_arrays, *SHAPE)
    for position in range(plan.num_evaluations):
        predictions = np.stack([normal(seed, Purpose.RESAMPLING, position, SHAPE) for seed in range(5)])
        together, together_state = plan.advance(together, together_state, position, predictions, predictions)
        alone = [plan.advance(*pair, position, row, row) for pair, row in zip(alone, predictions, strict=True)]
        for index, (latents, state) in enumerate(alone):
            assert latents.tobytes() == together[index].tobytes()
            assert state.tobytes() == together_state[index].tobytes()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_comes_in_is_left_as_it_was(sampler: str) -> None:
    plan = plan_of(sampler)
    latents, state = plan.initial(normal(0, Purpose.INITIAL, 0, SHAPE))
    prediction = normal(1, Purpose.INITIAL, 0, SHAPE)
    for array in (latents, state, prediction):
        array.flags.writeable = False
    for position in range(plan.num_evaluations):
        plan.network_input(latents, position)
        new_latents, new_state = plan.advance(latents, state, position, prediction, prediction)
        assert not np.shares_memory(new_latents, latents)
        assert new_latents.dtype == new_state.dtype == np.float32
        assert new_latents.flags.c_contiguous
        assert new_state.shape == state.shape


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_plan_is_read_only(sampler: str) -> None:
    plan = plan_of(sampler)
    for array in (plan.timesteps, plan.input_scales, plan.levels, plan.transitions, plan.originals):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_digest_is_that_of_what_the_plan_computes() -> None:
    plans = [
        plan_of("ddim"),
        plan_of("ddim_eta_1"),
        *(plan_of(sampler) for sampler in tuple(SAMPLERS)[1:]),
        plan_of("ddim", num_steps=13),
        plan_of("ddim", replace(STABLE_DIFFUSION, prediction_type=PredictionType.V_PREDICTION)),
        plan_of("ddim", replace(STABLE_DIFFUSION, steps_offset=1)),
        plan_of("ddim", replace(STABLE_DIFFUSION, set_alpha_to_one=False)),
    ]

    assert len({plan.digest() for plan in plans}) == len(plans)
    assert plan_of("unipc").digest() == plan_of("unipc").digest()
    assert plan_of("ddim").digest() == make_plan("ddim", STABLE_DIFFUSION, 12, eta=0.0).digest()


def test_float64_is_refused() -> None:
    plan = plan_of("euler")
    latents, state = plan.initial(normal(0, Purpose.INITIAL, 0, SHAPE))

    with pytest.raises(AssertionError, match="float32"):
        plan.advance(latents, state, 0, latents.astype(np.float64))
