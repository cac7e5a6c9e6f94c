"""What the U-Net is shown: schedule, weights of places, and that it is small enough to ship."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.cache import cache_folder, save_arrays
from training.latents import SHARD, load_latents
from training.pictures import drawn_scenes
from training.release import SCHEDULER
from training.tokenizer import train_tokenizer
from training.unet import (
    ALPHAS_CUMPROD,
    BOX_WEIGHT,
    LOG_RATIOS,
    Batches,
    place_weights,
    random_timesteps,
    share_of_two,
    sources_for,
    to_denoise,
)
from training.world.scenes import NO_THING, Grammar, from_code, kept_out
from triptych.sampling.schedule import ScheduleConfig, alphas_cumprod


def test_training_and_sampling_have_the_same_schedule_and_it_ends_in_noise() -> None:
    schedule = ScheduleConfig.from_dict(SCHEDULER)
    np.testing.assert_allclose(alphas_cumprod(schedule), ALPHAS_CUMPROD, rtol=1e-4)
    assert ALPHAS_CUMPROD[-1] < 1e-4


def test_most_timesteps_have_about_as_much_signal_as_noise_and_none_is_left_out() -> None:
    timesteps = random_timesteps(np.random.default_rng(3), 40_000)
    assert timesteps.min() == 0 and timesteps.max() == 999
    ratios = LOG_RATIOS[timesteps]
    assert np.mean(np.abs(ratios) < 2) == pytest.approx(0.8 * 0.683 + 0.2 * np.mean(np.abs(LOG_RATIOS) < 2), abs=0.01)
    assert abs(float(np.median(ratios))) < 0.5


def test_noisy_latents_and_what_is_to_be_predicted_tell_the_latents() -> None:
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, 3, 16, 16, 4), dtype=np.float32)
    batch = to_denoise(latents, np.array([0, 500, 999]), noise, np.ones((3, 16, 16, 1), np.float32))
    alpha, sigma = batch["alpha"], batch["sigma"]
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    noisy, target = alpha * latents + sigma * noise, alpha * noise - sigma * latents
    np.testing.assert_allclose(alpha * noisy - sigma * target, latents, atol=1e-5)
    assert (batch["weight"] == 1).all()


def test_the_place_of_a_thing_weighs_more() -> None:
    boxes = np.array([[0.25, 0.5, 0.5, 0.75], [0, 0, 0, 0]], np.float32)
    weights = place_weights(boxes)[..., 0]
    assert weights[8:12, 4:8].min() == BOX_WEIGHT
    assert weights.sum() == 256 + 16 * (BOX_WEIGHT - 1)


@pytest.fixture
def encoded() -> int:
    """Two shards as `latents` leaves them, small pixels in the place of latents; how many scenes each has."""
    count = 40
    for shard in (0, 1):
        pictures = drawn_scenes(Grammar.FULL, count, (21, shard))
        small = pictures.pop("images").reshape(count, 16, 8, 16, 8, 3).mean(axis=(2, 4))
        latents = np.concatenate([small, small[..., :1]], axis=-1).astype(np.float16) / 100
        save_arrays(cache_folder("latents") / f"full-{shard:04d}.npz", {**pictures, "latents": latents})
    save_arrays(cache_folder("latents") / "whitening.npz", {"mean": np.zeros(4), "matrix": np.eye(4)})
    train_tokenizer()
    return count


def test_twins_are_the_same_picture_with_attributes_swapped_and_none_is_kept_out(encoded: int) -> None:
    scenes = load_latents(Grammar.FULL)
    assert len(scenes.latents) == 2 * encoded < SHARD
    second = np.flatnonzero(scenes.twins >= 0)
    assert len(second) > 20 and (second >= encoded).any()
    for i in second:
        one, other = from_code(scenes.codes[i]), from_code(scenes.codes[scenes.twins[i]])
        assert scenes.twins[scenes.twins[i]] == i and not kept_out(other)
        assert sorted(thing.colour for thing in one.things) == sorted(thing.colour for thing in other.things)
        assert one.background == other.background
        np.testing.assert_array_equal(scenes.boxes[i], scenes.boxes[scenes.twins[i]])


@pytest.mark.usefixtures("encoded")
def test_scenes_that_are_chosen_keep_their_twins() -> None:
    scenes = load_latents(Grammar.FULL)
    two = scenes.where(scenes.codes[:, 5] != NO_THING)
    assert 0 < len(two.latents) < len(scenes.latents)
    for i in np.flatnonzero(two.twins >= 0):
        np.testing.assert_array_equal(two.boxes[i], two.boxes[two.twins[i]])
        assert two.twins[two.twins[i]] == i
    alone = scenes.where(scenes.codes[:, 5] == NO_THING)
    assert (alone.twins == -1).all()


@pytest.mark.usefixtures("encoded")
def test_twins_come_together_under_one_noise_and_other_words() -> None:
    batches = Batches(sources_for(Grammar.FULL), 32, lambda step: step / 10)
    batch = batches(9, np.random.default_rng(0))
    same = [i for i in range(1, 32) if np.array_equal(batch["noise"][i], batch["noise"][i - 1])]
    assert 5 < len(same) < 16
    for i in same:
        assert batch["timestep"][i] == batch["timestep"][i - 1] and batch["alpha"][i] == batch["alpha"][i - 1]
        assert not np.array_equal(batch["tokens"][i], batch["tokens"][i - 1])
        assert not np.array_equal(batch["latents"][i], batch["latents"][i - 1])
    alone = Batches([replace(sources_for(Grammar.FULL)[0], share=lambda progress: 1.0)], 32, lambda step: 0.0)
    first = alone(0, np.random.default_rng(0))
    assert len({row.tobytes() for row in first["noise"]}) == 32  # one thing has no twin


def test_the_curriculum_begins_mostly_with_one_thing_and_ends_with_more_of_two() -> None:
    assert [share_of_two(progress) for progress in (0.0, 0.2, 0.5, 0.9)] == [0.2, 0.2, 0.5, 0.6]
