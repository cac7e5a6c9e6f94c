"""Medians and differences of the timing benchmark."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.timing.statistics import paired_difference, spread


def test_a_spread_of_known_values() -> None:
    told = spread([float(value) for value in range(1, 11)])
    assert (told.median, told.p10, told.p90, told.rounds) == (5.5, 1.0, 9.0, 10)


def test_what_slows_a_round_down_falls_out_of_the_difference() -> None:
    slow_rounds = np.array([0.0, 5.0, 0.0, 9.0, 1.0, 0.0])
    difference = paired_difference(list(1.2 + slow_rounds), list(1.0 + slow_rounds))
    assert difference.median == pytest.approx(0.2)
    assert not difference.is_noise


def test_noise_is_called_a_difference_as_rarely_as_is_said() -> None:
    """Of 300 comparisons of a thing with itself; 95 % is the confidence, and a bootstrap of ten rounds keeps it about."""
    rng = np.random.default_rng(1)
    rounds = [rng.lognormal(sigma=0.1, size=(2, 10)) for _ in range(300)]
    differing = sum(not paired_difference(list(some), list(others)).is_noise for some, others in rounds)
    assert differing / 300 < 0.07


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(2)
    values = 1.0 + 0.02 * rng.standard_normal((2, 10))
    difference = paired_difference(list(values[0] + 0.1), list(values[1]))
    assert not difference.is_noise
    assert difference.low < 0.1 < difference.high
