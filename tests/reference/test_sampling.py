"""Our samplers against diffusers', live: timesteps exactly, latents to 1e-4, over whole runs on random predictions."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest

from tests.reference.store_sampling import (
    LEADING,
    LINEAR,
    LINSPACE,
    NUM_STEPS,
    OPTION_SETS,
    SCALED_LINEAR,
    STORED,
    TRAILING,
    ZERO_SNR,
    original,
    predictions_and_noises,
    run_diffusers,
)
from tests.reference.store_sampling import SHAPE as STORED_SHAPE
from triptych.sampling.lcm import ORIGINAL_STEPS
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.plan import Plan
from triptych.sampling.samplers import make_plan
from triptych.sampling.schedule import ScheduleConfig, TimestepSpacing, alphas_cumprod
from triptych.sampling.timesteps import karras_sigmas, spaced_timesteps, timesteps_of_sigmas

TOLERANCE = 1e-4
"""Relative to the largest latent before or after the evaluation, which is what rounding is relative to.

diffusers computes factors in float32, ours are rounded to it once. Measured: at most 3e-5 (UniPC at 150 steps), mostly 2e-6.
"""

SHAPE = (2, 3, 5, 4)
MORE_NUM_STEPS = (*NUM_STEPS, 4, 7, 14, 15, 150)

# numpy 2 converts torch tensors inside diffusers in a way that both have yet to agree on.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

CASES = [
    pytest.param(sampler, options, id=f"{sampler}-{'-'.join(str(value) for value in options.values())}")
    for sampler, option_sets in OPTION_SETS.items()
    for options in option_sets
]


def plan_of(sampler: str, options: dict, num_steps: int) -> Plan:
    """Our plan for an option set of the table."""
    extra = {"eta": options["eta"]} if "eta" in options else {}
    return make_plan(sampler, ScheduleConfig.from_dict(options), num_steps, **extra)


@pytest.mark.parametrize(("sampler", "options"), CASES)
def test_every_evaluation_agrees_with_diffusers(sampler: str, options: dict) -> None:
    for num_steps in (each for each in MORE_NUM_STEPS if sampler != "lcm" or each <= ORIGINAL_STEPS):
        theirs = run_diffusers(sampler, options, num_steps, SHAPE)
        plan = plan_of(sampler, options, num_steps)
        np.testing.assert_array_equal(plan.timesteps, theirs["timesteps"])

        predictions, noises = predictions_and_noises(plan.num_evaluations, SHAPE)
        latents, state = plan.initial(normal(0, Purpose.INITIAL, 0, SHAPE))
        assert_close(latents, theirs["latents"][0])
        for position in range(plan.num_evaluations):
            # Of their latents: of ours, what float32 lost in a latent of 9,305 is larger than the tolerance on the input of 3.
            assert_close(plan.network_input(theirs["latents"][position], position), theirs["network_inputs"][position])
            latents, state = plan.advance(latents, state, position, predictions[position], noises[position])
            assert_close(latents, theirs["latents"][position + 1], before=theirs["latents"][position])


@pytest.mark.parametrize("first_step", [1, 4, 9])
@pytest.mark.parametrize(("sampler", "options"), [case for case in CASES if case.values[0] != "pndm"])
def test_a_denoising_that_begins_in_the_middle_agrees_with_diffusers(sampler: str, options: dict, first_step: int) -> None:
    # Not PNDM: cut so, diffusers' begins with the second half of a step that it never began.
    theirs = run_diffusers(sampler, options, 10, SHAPE, first_step)
    extra = {"eta": options["eta"]} if "eta" in options else {}
    plan = make_plan(sampler, ScheduleConfig.from_dict(options), 10, first_step=first_step, **extra)
    np.testing.assert_array_equal(plan.timesteps, theirs["timesteps"])

    predictions, noises = predictions_and_noises(plan.num_evaluations, SHAPE)
    noise = normal(0, Purpose.INITIAL, 0, SHAPE)
    latents, state = plan.add_noise(original(SHAPE), noise, 0), plan.initial(noise)[1]
    assert_close(latents, theirs["latents"][0])
    for position in range(plan.num_evaluations):
        latents, state = plan.advance(latents, state, position, predictions[position], noises[position])
        assert_close(latents, theirs["latents"][position + 1], before=theirs["latents"][position])


def assert_close(ours: np.ndarray, theirs: np.ndarray, *, before: np.ndarray | float = 0.0) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() <= TOLERANCE * max(np.abs(theirs).max(), np.abs(before).max())


@pytest.mark.parametrize("schedule", [SCALED_LINEAR, LINEAR])
def test_the_noise_schedule_is_diffusers_to_the_bit(schedule: dict) -> None:
    theirs = diffusers.DDIMScheduler.from_config(schedule).alphas_cumprod.numpy()

    np.testing.assert_array_equal(alphas_cumprod(ScheduleConfig.from_dict(schedule)), theirs)


def test_the_noise_schedule_that_ends_in_noise_is_diffusers_nearly() -> None:
    # torch's square root is not always the nearest float32.
    theirs = diffusers.DDIMScheduler.from_config(ZERO_SNR).alphas_cumprod.numpy()

    np.testing.assert_allclose(alphas_cumprod(ScheduleConfig.from_dict(ZERO_SNR)), theirs, rtol=1e-5)


@pytest.mark.parametrize("spacing", [LEADING, TRAILING, LINSPACE])
@pytest.mark.parametrize(
    ("scheduler_name", "options"),
    [
        ("DDIMScheduler", {"default": TimestepSpacing.LEADING}),
        ("EulerDiscreteScheduler", {"default": TimestepSpacing.LINSPACE, "whole": False}),
        ("DPMSolverMultistepScheduler", {"default": TimestepSpacing.LINSPACE, "leave_out_last": True}),
    ],
)
def test_spaced_timesteps_agree_for_any_number_of_steps(scheduler_name: str, options: dict, spacing: dict) -> None:
    scheduler = getattr(diffusers, scheduler_name).from_config(spacing)
    for num_steps in range(1, 151):
        scheduler.set_timesteps(num_steps)
        # diffusers' trailing has a timestep -1 too many at 61, 103, 121 and 122 steps.
        theirs = scheduler.timesteps.numpy()[:num_steps]
        np.testing.assert_array_equal(spaced_timesteps(ScheduleConfig.from_dict(spacing), num_steps, **options), theirs)


@pytest.mark.parametrize("schedule", [SCALED_LINEAR, LINEAR])
def test_karras_timesteps_agree_for_any_number_of_steps(schedule: dict) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(schedule | {"use_karras_sigmas": True})
    config = ScheduleConfig.from_dict(schedule)
    for num_steps in range(1, 151):
        scheduler.set_timesteps(num_steps)
        ours = timesteps_of_sigmas(config, karras_sigmas(config, num_steps))
        np.testing.assert_array_equal(ours, scheduler.timesteps.numpy())


def test_the_stored_values_are_what_diffusers_computes_today() -> None:
    with np.load(STORED) as stored:
        cases = json.loads(str(stored["description"]))["cases"]
        latents = stored["latents"]
    assert [(case["sampler"], case["options"], case["num_steps"]) for case in cases] == [
        (sampler, options, num_steps)
        for sampler, option_sets in OPTION_SETS.items()
        for options in option_sets
        for num_steps in NUM_STEPS
    ], "the table has changed: run python -m tests.reference.store_sampling"
    used = 0
    for case in cases:
        run = run_diffusers(case["sampler"], case["options"], case["num_steps"], STORED_SHAPE)["latents"]
        # No closer than ours are held to: processors round in their own ways, and noise over signal of 4,096 makes it large.
        kept = latents[used : used + len(run)]
        for position, theirs in enumerate(run):
            assert_close(kept[position], theirs, before=run[max(position - 1, 0)])
        used += len(run)
    assert used == len(latents)
