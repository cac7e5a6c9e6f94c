from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tiny_models import SCHEDULER
from triptych.checkpoints.checkpoint import UNetPart
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.samplers import make_plan
from triptych.sampling.schedule import ScheduleConfig
from triptych.stages.evaluation import Row, evaluate

SHAPE = (2, 2, 4)
CONFIG = ScheduleConfig.from_dict(SCHEDULER)


def context(value: float):
    return np.full((3, 5), value, np.float32)


def some_row(sampler: str = "ddim", num_steps: int = 4, seed: int = 7, guidance_scale: float = 3.0):
    plan = make_plan(sampler, CONFIG, num_steps)
    latents, sampler_state = plan.initial(normal(seed, Purpose.INITIAL, 0, SHAPE))
    return Row(
        plan=plan,
        latents=latents,
        sampler_state=sampler_state,
        position=0,
        seed=seed,
        context=context(seed),
        unconditional_context=context(-1) if guidance_scale != 1 else None,
        guidance_scale=guidance_scale,
    )


class Network:
    """Predicts the mean of its context plus its timestep / 1000, everywhere, and remembers its calls.

    Its features are its predictions, and where it is given some it adds them.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, np.ndarray]] = []

    def __call__(self, inputs):
        self.calls.append(inputs)
        level = inputs["context"].mean(axis=(1, 2)) + inputs["timestep"] / 1000
        prediction = np.broadcast_to(level[:, None, None, None], inputs["latents"].shape).astype(np.float32)
        return {"prediction": prediction + inputs.get("features", np.float32(0)), "features": prediction}


def test_both_halves_go_in_one_call():
    network, row = Network(), some_row()
    (after,) = evaluate(network, [row])

    (call,) = network.calls
    assert call["context"][:, 0, 0].tolist() == [7, -1]
    assert call["timestep"].tolist() == [row.timestep] * 2
    np.testing.assert_array_equal(call["latents"][0], call["latents"][1])

    time = row.timestep / np.float32(1000)
    prediction = np.full(SHAPE, (-1 + time) + 3.0 * 8, np.float32)
    latents, state = row.plan.advance(row.latents, row.sampler_state, 0, prediction)
    np.testing.assert_allclose(after.latents, latents, rtol=1e-6)
    np.testing.assert_array_equal(after.sampler_state, state)
    assert (after.position, after.is_finished) == (1, False)


def test_without_guidance_there_is_one_half():
    network, row = Network(), some_row(guidance_scale=1.0)
    evaluate(network, [row])
    assert network.calls[0]["context"][:, 0, 0].tolist() == [7]


def test_rows_that_have_nothing_in_common_share_a_call():
    """Each as if it were alone."""
    rows = [
        some_row("ddim", 4, seed=1),
        some_row("dpm++_2m", 6, seed=2, guidance_scale=1.0),
        some_row("euler_ancestral", 5, seed=3, guidance_scale=7.5),
    ]
    rows[1:2] = evaluate(Network(), rows[1:2])
    network = Network()

    together = evaluate(network, rows)

    assert network.calls[0]["context"][:, 0, 0].tolist() == [1, 2, 3, -1, -1]
    for before, after in zip(rows, together, strict=True):
        (alone,) = evaluate(Network(), [before])
        np.testing.assert_array_equal(after.latents, alone.latents)
        np.testing.assert_array_equal(after.sampler_state, alone.sampler_state)
        assert after.position == before.position + 1


def test_ancestral_noise_is_that_of_seed_and_position():
    row = some_row("euler_ancestral", seed=5)
    prediction = np.zeros(SHAPE, np.float32)
    noise = normal(5, Purpose.ANCESTRAL, 0, SHAPE)
    latents, _ = row.plan.advance(row.latents, row.sampler_state, 0, prediction, noise)
    np.testing.assert_array_equal(row.advance(prediction).latents, latents)
    assert np.abs(replace(row, seed=6).advance(prediction).latents - latents).max() > 0.01


@pytest.mark.parametrize("guided", [None, range(7), range(2), range(1, 3), range(3, 3), range(4, 7), range(5, 6)])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("cache_interval", [1, 2, 3, 9])
def test_what_is_left_is_what_the_evaluations_to_come_take(guided, guidance_scale, cache_interval):
    row = replace(some_row(num_steps=7, guidance_scale=guidance_scale), guided=guided, cache_interval=cache_interval)
    lefts, halves = [(row.halves_left, row.whole_halves_left)], []
    while not row.is_finished:
        halves.append((row.halves, row.halves if row.part is UNetPart.WHOLE else 0))
        (row,) = evaluate(Network(), [row])
        lefts.append((row.halves_left, row.whole_halves_left))
    assert lefts == [tuple(sum(each[i] for each in halves[position:]) for i in (0, 1)) for position in range(8)]
    assert row.is_resumable and row.features == (), "there is nothing left that would take any"


def test_each_half_has_the_features_that_it_found_and_no_others():
    rows = [replace(some_row(seed=seed, num_steps=6), cache_interval=3) for seed in (1, 2)]
    network = Network()
    rows = evaluate(network, rows)
    found = network.calls[0]["context"][:, 0, 0] + network.calls[0]["timestep"] / 1000
    assert [feature[0, 0, 0] for row in rows for feature in row.features] == found[[0, 2, 1, 3]].tolist()
    rows = evaluate(network, evaluate(network, rows)[::-1])
    np.testing.assert_array_equal(network.calls[1]["features"][:, 0, 0, 0], found)
    np.testing.assert_array_equal(network.calls[2]["features"][:, 0, 0, 0], found[[1, 0, 3, 2]])
    assert [row.features for row in rows] == [(), ()], "the next evaluation is a whole one"
    assert all(row.is_resumable for row in rows)


def test_a_row_does_not_hold_what_its_mates_found():
    rows = evaluate(Network(), [replace(some_row(seed=seed), cache_interval=2) for seed in (1, 2)])
    assert all(feature.base is None for row in rows for feature in row.features)


def test_where_guidance_ends_the_unconditional_half_is_left_alone():
    row = replace(some_row(num_steps=4), cache_interval=4, guided=range(2))
    network = Network()
    for _ in range(4):
        (row,) = evaluate(network, [row])
    assert [len(call["latents"]) for call in network.calls] == [2, 2, 1, 1]
    assert network.calls[3]["features"][0, 0, 0, 0] == network.calls[1]["features"][0, 0, 0, 0]


def test_where_guidance_begins_all_features_are_new():
    row = replace(some_row(num_steps=5), cache_interval=4, guided=range(2, 5))
    parts = []
    for _ in range(5):
        parts.append((row.part, row.is_resumable))
        (row,) = evaluate(Network(), [row])
    whole, shallow = (UNetPart.WHOLE, True), (UNetPart.SHALLOW, False)
    assert parts == [whole, shallow, whole, shallow, whole]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++_2m", "pndm"])
def test_a_row_is_finished_when_its_plan_is(sampler):
    rows = [some_row(sampler, 3)]
    evaluations = 0
    while not rows[0].is_finished:
        rows = evaluate(Network(), rows)
        evaluations += 1
    assert evaluations == rows[0].plan.num_evaluations >= 3
