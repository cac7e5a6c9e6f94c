"""Classifier-free guidance."""

from __future__ import annotations

import numpy as np

from triptych.sampling.guidance import guide

UNCONDITIONAL, CONDITIONAL = np.float32([1.0, 2.0, -3.0]), np.float32([2.0, 2.0, 1.0])


def test_the_scale_says_how_far_to_go_from_one_prediction_to_the_other() -> None:
    np.testing.assert_array_equal(guide(UNCONDITIONAL, CONDITIONAL, 0.0), UNCONDITIONAL)
    np.testing.assert_array_equal(guide(UNCONDITIONAL, CONDITIONAL, 1.0), CONDITIONAL)
    np.testing.assert_array_equal(guide(UNCONDITIONAL, CONDITIONAL, 7.5), np.float32([8.5, 2.0, 27.0]))


def test_float32_stays_float32() -> None:
    assert guide(UNCONDITIONAL, CONDITIONAL, 7.5).dtype == np.float32
