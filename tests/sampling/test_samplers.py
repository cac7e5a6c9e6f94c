"""Samplers by name: what diffusers computes, cutting and resuming, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych.errors import CheckpointError, InvalidValue
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.plan import Plan
from triptych.sampling.samplers import REPLACEMENTS, SAMPLERS, first_step_of, make_plan, named_sampler, replaced_sampler
from triptych.sampling.schedule import BetaSchedule, FinalSigma, ScheduleConfig, TimestepSpacing

TOLERANCE = 1e-4
"""Of the latents, relative to the largest before or after the evaluation; tests/reference/test_sampling.py says why."""

with np.load(Path(__file__).with_name("reference.npz")) as _stored:
    # Written by tests/reference/store_sampling.py.
    CASES = json.loads(str(_stored["description"]))["cases"]
    TIMESTEPS, LATENTS = _stored["timesteps"], _stored["latents"]


def test_every_sampler_has_stored_values() -> None:
    assert {case["sampler"] for case in CASES} == set(SAMPLERS)
    assert {case["num_steps"] for case in CASES} == {1, 2, 3, 25, 50}


def test_every_evaluation_agrees_with_what_diffusers_computed() -> None:
    evaluations = values = 0
    for case in CASES:
        count = case["num_evaluations"]
        timesteps, latents = TIMESTEPS[evaluations : evaluations + count], LATENTS[values : values + count + 1]
        evaluations, values = evaluations + count, values + count + 1
        assert_agrees(case, timesteps, latents)
    assert (evaluations, values) == (len(TIMESTEPS), len(LATENTS))


def assert_agrees(case: dict[str, Any], timesteps: np.ndarray, latents_of_diffusers: np.ndarray) -> None:
    options = {"eta": case["options"]["eta"]} if "eta" in case["options"] else {}
    plan = make_plan(case["sampler"], ScheduleConfig.from_dict(case["options"]), case["num_steps"], **options)
    np.testing.assert_array_equal(plan.timesteps, timesteps, err_msg=str(case))
    shape = latents_of_diffusers.shape[1:]
    latents, state = plan.initial(normal(0, Purpose.INITIAL, 0, shape))
    for position, expected in enumerate(latents_of_diffusers):
        largest = np.abs(latents_of_diffusers[max(position - 1, 0) : position + 1]).max()
        assert np.abs(latents - expected).max() <= TOLERANCE * largest, (case, position)
        if position < plan.num_evaluations:
            prediction = normal(1, Purpose.KNOWN_REGION, position, shape)
            noise = normal(2, Purpose.ANCESTRAL, position, shape) if plan.needs_noise(position) else None
            latents, state = plan.advance(latents, state, position, prediction, noise)


SHAPE = (3, 2, 4)
SEED = 11


def new_plan(sampler: str) -> Plan:
    config = ScheduleConfig(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=BetaSchedule.SCALED_LINEAR,
        timestep_spacing=TimestepSpacing.TRAILING,
        final_sigmas_type=FinalSigma.SIGMA_MIN,
    )
    if sampler == "ddim with eta 1":
        return make_plan("ddim", config, 9, eta=1.0)
    return make_plan(sampler, config, 9)


def denoise(plan: Plan, latents: np.ndarray, state: np.ndarray, position: int, until: int) -> tuple[np.ndarray, np.ndarray]:
    for evaluation in range(position, until):
        prediction = np.cos(plan.network_input(latents, evaluation) * 3 + plan.timesteps[evaluation])
        noise = normal(SEED, Purpose.ANCESTRAL, evaluation, SHAPE) if plan.needs_noise(evaluation) else None
        latents, state = plan.advance(latents, state, evaluation, prediction, noise)
    return latents, state


@pytest.mark.parametrize("sampler", [*SAMPLERS, "ddim with eta 1"])
def test_a_denoising_cut_anywhere_and_resumed_gives_the_same_bytes(sampler: str) -> None:
    plan = new_plan(sampler)
    start = plan.initial(normal(SEED, Purpose.INITIAL, 0, SHAPE))
    uncut, _ = denoise(plan, *start, 0, plan.num_evaluations)
    for cut in range(plan.num_evaluations + 1):
        latents, state = denoise(plan, *start, 0, cut)
        # All that travels: float32 bytes, and the position.
        sent_latents, sent_state = latents.astype("<f4").tobytes(), state.astype("<f4").tobytes()

        other = new_plan(sampler)
        assert other.digest() == plan.digest()
        resumed, _ = denoise(
            other,
            np.frombuffer(sent_latents, "<f4").reshape(SHAPE),
            np.frombuffer(sent_state, "<f4").reshape(other.state_arrays, *SHAPE),
            cut,
            other.num_evaluations,
        )

        assert resumed.tobytes() == uncut.tobytes()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if new_plan(name).state_arrays])
def test_every_array_of_state_is_needed_somewhere(sampler: str) -> None:
    plan = new_plan(sampler)
    start = plan.initial(normal(SEED, Purpose.INITIAL, 0, SHAPE))
    uncut, _ = denoise(plan, *start, 0, plan.num_evaluations)
    for lost in range(plan.state_arrays):
        endings = set()
        for cut in range(1, plan.num_evaluations):
            latents, state = denoise(plan, *start, 0, cut)
            state[lost] = 0
            endings.add(denoise(plan, latents, state, cut, plan.num_evaluations)[0].tobytes())
        assert endings - {uncut.tobytes()}


@pytest.mark.parametrize(
    ("sampler", "state_arrays", "num_evaluations"),
    [
        ("ddim", 0, 9),
        ("euler", 0, 9),
        ("euler_ancestral", 0, 9),
        ("dpm++_2m", 1, 9),
        ("dpm++_2m_karras", 1, 9),
        ("unipc", 3, 9),
        ("pndm", 3, 10),
        ("lcm", 0, 9),
    ],
)
def test_what_a_sampler_carries_and_how_often_it_asks(sampler: str, state_arrays: int, num_evaluations: int) -> None:
    plan = new_plan(sampler)

    assert (plan.sampler, plan.state_arrays, plan.num_evaluations) == (sampler, state_arrays, num_evaluations)
    assert plan.num_steps == 9
    assert len(plan.timesteps) == len(plan.steps) == num_evaluations
    assert plan.timesteps.dtype == np.float32


def test_an_unknown_sampler_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidValue) as refused:
        make_plan("heun", ScheduleConfig(), 5)
    assert refused.value.param == "sampler"
    assert refused.value.message == (
        "there is no sampler 'heun'; there are ddim, euler, euler_ancestral, dpm++_2m, dpm++_2m_karras, unipc, pndm, lcm"
    )


@pytest.mark.parametrize(("sampler", "option"), [("euler", "eta"), ("ddim", "karras"), ("dpm++_2m", "karras")])
def test_an_option_of_another_sampler_is_refused(sampler: str, option: str) -> None:
    with pytest.raises(InvalidValue, match=r"takes no (eta|karras)") as refused:
        make_plan(sampler, ScheduleConfig(), 5, **{option: 1.0})
    assert refused.value.param == option


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_an_impossible_number_of_steps_is_refused(sampler: str, num_steps: int) -> None:
    with pytest.raises(InvalidValue) as refused:
        make_plan(sampler, ScheduleConfig(), num_steps)
    assert refused.value.param == "num_steps"


@pytest.mark.parametrize(
    ("scheduler_config", "sampler"),
    [
        ({"_class_name": "DDIMScheduler"}, "ddim"),
        ({"_class_name": "DDIMParallelScheduler"}, "ddim"),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "pndm"),
        ({"_class_name": "PNDMScheduler"}, None),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": None}, "euler"),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, None),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": False}, "euler"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, None),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_ancestral"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpm++_2m"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "dpm++_2m_karras"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, None),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, None),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2"}, "unipc"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, None),
        ({"_class_name": "HeunDiscreteScheduler"}, None),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0}, "lcm"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 20}, None),
        ({}, None),
    ],
)
def test_the_sampler_that_a_checkpoint_recommends(scheduler_config: dict[str, Any], sampler: str | None) -> None:
    assert named_sampler(scheduler_config) == sampler


@pytest.mark.parametrize(
    ("scheduler_config", "sampler", "wanted"),
    [
        ({"_class_name": "DEISMultistepScheduler", "solver_type": "logrho"}, "dpm++_2m", "DEISMultistepScheduler"),
        ({"_class_name": "HeunDiscreteScheduler", "use_karras_sigmas": True}, "dpm++_2m_karras", "HeunDiscreteScheduler"),
        ({"_class_name": "LMSDiscreteScheduler", "use_karras_sigmas": True}, "euler", "LMSDiscreteScheduler"),
        ({"_class_name": "DDPMScheduler"}, "ddim", "DDPMScheduler"),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": False}, "pndm", "PNDMScheduler with options that we do not have"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
            "dpm++_2m_karras",
            "DPMSolverMultistepScheduler with options that we do not have",
        ),
    ],
)
def test_a_sampler_we_do_not_have_is_replaced_and_named(scheduler_config: dict[str, Any], sampler: str, wanted: str) -> None:
    sentence = f"the model recommends {wanted}; {sampler} is used in its place"
    assert replaced_sampler(scheduler_config) == (sampler, sentence)


def test_a_sampler_we_have_is_not_replaced() -> None:
    assert replaced_sampler({"_class_name": "DDIMScheduler"}) == ("ddim", None)


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_what_replaces_a_sampler_is_one_of_ours(name: str) -> None:
    assert REPLACEMENTS[name] in SAMPLERS


@pytest.mark.parametrize(
    ("scheduler_config", "sentence"),
    [
        ({}, "names no scheduler: it lacks _class_name"),
        ({"_class_name": 3}, "names no scheduler"),
        ({"_class_name": "TCDScheduler"}, "trained to be sampled by TCDScheduler, which nothing here can stand in for"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "nothing here can stand in for"),
    ],
)
def test_a_sampler_that_nothing_replaces_is_refused(scheduler_config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        replaced_sampler(scheduler_config)


@pytest.mark.parametrize("first_step", [-1, 5, 6])
def test_steps_that_there_are_not_cannot_be_left_out(first_step: int) -> None:
    with pytest.raises(InvalidValue, match=f"of 5 steps, {first_step} cannot be left out"):
        make_plan("euler", ScheduleConfig(), 5, first_step=first_step)


@pytest.mark.parametrize(
    ("strength", "num_steps", "first_step"), [(1.0, 25, 0), (0.8, 25, 5), (0.5, 25, 13), (0.04, 25, 24), (0.999, 25, 1)]
)
def test_a_strength_leaves_out_steps_as_in_diffusers(strength: float, num_steps: int, first_step: int) -> None:
    assert first_step_of(strength, num_steps) == first_step


@pytest.mark.parametrize(
    ("strength", "sentence"),
    [
        (0.0, r"strength 0.0 of 25 steps leaves none"),
        (0.039, "leaves none"),
        (-0.1, "between 0 and 1"),
        (1.01, "between 0 and 1"),
    ],
)
def test_a_strength_that_leaves_nothing_to_do_is_refused(strength: float, sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence) as refused:
        first_step_of(strength, 25)
    assert refused.value.param == "strength"
