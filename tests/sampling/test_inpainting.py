"""Known regions and resampling: against the published loop, and against what the papers say must hold."""

from __future__ import annotations

import numpy as np
import pytest

from triptych.sampling.inpainting import put_back, resampled
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.plan import Plan
from triptych.sampling.samplers import SAMPLERS, make_plan
from triptych.sampling.schedule import BetaSchedule, FinalSigma, ScheduleConfig, TimestepSpacing, alphas_cumprod

SHAPE = (4, 6, 4)
SEED = 3
STABLE_DIFFUSION = ScheduleConfig(beta_start=0.00085, beta_end=0.012, beta_schedule=BetaSchedule.SCALED_LINEAR)
KERAS_CV = ScheduleConfig(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule=BetaSchedule.SCALED_LINEAR,
    timestep_spacing=TimestepSpacing.KERAS_CV_0_8,
    set_alpha_to_one=True,
)
ORIGINAL = normal(1, Purpose.POSTERIOR, 0, SHAPE)
MASK = (normal(2, Purpose.POSTERIOR, 0, SHAPE)[..., :1] > 0).astype(np.float32)


def network(latents: np.ndarray, timestep: float) -> np.ndarray:
    """Any function of both."""
    return np.cos(3 * latents + timestep).astype(np.float32)


def inpaint(plan: Plan, mask: np.ndarray = MASK) -> list[np.ndarray]:
    """The latents after each evaluation."""
    latents, state = plan.initial(normal(SEED, Purpose.INITIAL, 0, SHAPE))
    course = []
    for position in range(plan.num_evaluations):
        prediction = network(plan.network_input(latents, position), float(plan.timesteps[position]))
        noise = normal(SEED, Purpose.ANCESTRAL, position, SHAPE) if plan.needs_noise(position) else None
        latents, state = plan.advance(latents, state, position, prediction, noise)
        known_noise = normal(SEED, Purpose.KNOWN_REGION, position, SHAPE)
        latents = put_back(latents, plan, position + 1, ORIGINAL, mask, known_noise)
        course.append(latents)
    return course


def published_loop(num_steps: int) -> list[np.ndarray]:
    """The inpainting of keras-cv 0.4 with num_resamples=1, plainly; there 1 means known, and noises are drawn in order."""
    timesteps = np.arange(1, 1000, 1000 // num_steps)
    table = alphas_cumprod(KERAS_CV)
    alphas = [table[t] for t in timesteps]
    previous_alphas = [1.0, *alphas[:-1]]
    known_mask, latent = 1 - MASK, normal(SEED, Purpose.INITIAL, 0, SHAPE)
    course = []
    for count, index in enumerate(reversed(range(len(timesteps)))):
        timestep, a_t, a_prev = timesteps[index], alphas[index], previous_alphas[index]
        epsilon = network(latent, float(timestep))
        predicted_x0 = (latent - np.sqrt(1 - a_t) * epsilon) / np.sqrt(a_t)
        latent = epsilon * np.sqrt(1.0 - a_prev) + np.sqrt(a_prev) * predicted_x0
        noise = normal(SEED, Purpose.KNOWN_REGION, count, SHAPE) if timestep > 1 else 0.0
        known = np.sqrt(a_prev) * ORIGINAL + np.sqrt(1 - a_prev) * noise
        latent = (known_mask * known + (1 - known_mask) * latent).astype(np.float32)
        course.append(latent)
    return course


@pytest.mark.parametrize("num_steps", [5, 25])
def test_every_evaluation_agrees_with_the_published_loop(num_steps: int) -> None:
    course, published = inpaint(make_plan("ddim", KERAS_CV, num_steps)), published_loop(num_steps)
    assert len(course) == len(published) == num_steps
    for ours, theirs in zip(course, published, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_resamples", [1, 3])
def test_what_is_known_comes_out_as_it_is(sampler: str, num_resamples: int) -> None:
    plan = resampled(make_plan(sampler, STABLE_DIFFUSION, 6), num_resamples)
    inpainted = inpaint(plan)[-1]
    assert (inpainted == ORIGINAL)[np.broadcast_to(MASK == 0, SHAPE)].all()
    assert not (inpainted == ORIGINAL)[np.broadcast_to(MASK == 1, SHAPE)].any()


def test_a_mask_of_ones_changes_no_byte() -> None:
    plan = make_plan("dpm++_2m", STABLE_DIFFUSION, 6)
    latents, state = plan.initial(normal(SEED, Purpose.INITIAL, 0, SHAPE))
    for position in range(plan.num_evaluations):
        prediction = network(plan.network_input(latents, position), float(plan.timesteps[position]))
        latents, state = plan.advance(latents, state, position, prediction)
    assert inpaint(plan, np.ones_like(MASK))[-1].tobytes() == latents.tobytes()


def test_resampling_once_is_the_plan_itself() -> None:
    plan = make_plan("unipc", STABLE_DIFFUSION, 6)
    assert resampled(plan, 1).digest() == plan.digest()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_evaluation_but_the_last_is_made_so_often(sampler: str) -> None:
    plan = make_plan(sampler, STABLE_DIFFUSION, 4)
    longer = resampled(plan, 3)
    counts = [int((longer.timesteps == timestep).sum()) for timestep in dict.fromkeys(plan.timesteps.tolist())]
    # PNDM's second evaluation takes its first step again, and is at its end already.
    assert counts == {"pndm": [3, 4, 3, 1]}.get(sampler, [3, 3, 3, 1])
    assert longer.num_steps == plan.num_steps == 4


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_ancestral"])
@pytest.mark.parametrize("num_resamples", [2, 5])
def test_latents_are_as_noisy_as_the_plan_says_however_often_a_step_is_taken(sampler: str, num_resamples: int) -> None:
    shape = (100, 100, 4)
    plan = resampled(make_plan(sampler, STABLE_DIFFUSION, 5), num_resamples)
    # Of an original that is nothing, an exact prediction of the noise is the latents over their noise.
    latents = plan.levels[0][1] * normal(SEED, Purpose.INITIAL, 0, shape)
    _, state = plan.initial(latents)
    for position in range(plan.num_evaluations):
        sigma = plan.levels[position][1]
        assert latents.std() == pytest.approx(sigma, rel=4 / np.sqrt(2 * latents.size))
        noise = normal(SEED, Purpose.ANCESTRAL, position, shape) if plan.needs_noise(position) else None
        latents, state = plan.advance(latents, state, position, latents / sigma, noise)


def test_going_back_keeps_of_the_result_what_diffusion_keeps() -> None:
    plan = make_plan("ddim", STABLE_DIFFUSION, 5)
    longer = resampled(plan, 2)
    (signal, _), (next_signal, _) = plan.levels[:2]
    np.testing.assert_allclose(longer.transitions[0][0, :-1], signal / next_signal * plan.transitions[0][0, :-1], rtol=1e-6)
    np.testing.assert_array_equal(longer.transitions[1], plan.transitions[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resampled_denoising_cut_anywhere_goes_on_with_the_same_bytes(sampler: str) -> None:
    config = ScheduleConfig(timestep_spacing=TimestepSpacing.TRAILING, final_sigmas_type=FinalSigma.SIGMA_MIN)
    plan = resampled(make_plan(sampler, config, 5, first_step=1), 2)

    def run(latents: np.ndarray, state: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        for position in range(start, stop):
            prediction = network(plan.network_input(latents, position), float(plan.timesteps[position]))
            noise = normal(SEED, Purpose.ANCESTRAL, position, SHAPE)
            latents, state = plan.advance(latents, state, position, prediction, noise)
            latents = put_back(latents, plan, position + 1, ORIGINAL, MASK, normal(SEED, Purpose.KNOWN_REGION, position, SHAPE))
        return latents, state

    noise = normal(SEED, Purpose.INITIAL, 0, SHAPE)
    start = plan.add_noise(ORIGINAL, noise, 0), plan.initial(noise)[1]
    uncut = run(*start, 0, plan.num_evaluations)[0].tobytes()
    for cut in range(plan.num_evaluations + 1):
        latents, state = run(*start, 0, cut)
        sent = np.frombuffer(latents.tobytes(), "<f4").reshape(SHAPE), np.frombuffer(state.tobytes(), "<f4").reshape(state.shape)
        assert run(*sent, cut, plan.num_evaluations)[0].tobytes() == uncut
