"""What the U-Net is shown: schedule, weights of places, and that it is small enough to ship."""

from __future__ import annotations

import numpy as np

from training.release import SCHEDULER
from training.unet import ALPHAS_CUMPROD, BOX_WEIGHT, place_weights
from triptych.sampling.schedule import ScheduleConfig, alphas_cumprod


def test_training_and_sampling_have_the_same_schedule_and_it_ends_in_noise() -> None:
    schedule = ScheduleConfig.from_dict(SCHEDULER)
    np.testing.assert_allclose(alphas_cumprod(schedule), ALPHAS_CUMPROD, rtol=1e-4)
    assert ALPHAS_CUMPROD[-1] < 1e-4


def test_the_place_of_a_thing_weighs_more() -> None:
    boxes = np.array([[0.25, 0.5, 0.5, 0.75], [0, 0, 0, 0]], np.float32)
    weights = place_weights(boxes)[..., 0]
    assert weights[8:12, 4:8].min() == BOX_WEIGHT
    assert weights.sum() == 256 + 16 * (BOX_WEIGHT - 1)
