"""Noise: the same bytes for ever, normally distributed, and never the same twice."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.special import ndtri

from triptych.sampling.noise import Purpose, _log, normal, normal_of_words, normal_quantile

SHAPE = (16, 16, 4)

GOLDEN = {
    (0, Purpose.INITIAL, 0): "6ed9ab480fa2982a29509184a777c9a0d8a96b08d736110278816b3360f5d196",
    (1234, Purpose.ANCESTRAL, 7): "2c11976f07edff6a88137c9f930d998d6aea425d61cdb6c262078b2f6fe73304",
    (2**64 - 1, Purpose.POSTERIOR, 149): "36a0e72f2372c547d177ce6117a4a4c7b74efd7ccefa0a51b0980b9ed0fcb4d7",
}


@pytest.mark.parametrize(("use", "digest"), GOLDEN.items())
def test_golden_digests(use: tuple[int, Purpose, int], digest: str) -> None:
    # Whoever changes one of these changes the picture of every seed: then NOISE_VERSION goes up too.
    noise = normal(*use, SHAPE)

    assert noise.dtype == np.float32
    assert hashlib.sha256(noise.astype("<f4").tobytes()).hexdigest() == digest


def test_a_plain_reading_of_the_rule_gives_the_same_numbers() -> None:
    # Seed 42's first block, by the standard library, whose inverse is the same algorithm with another logarithm.
    words = np.random.Philox(key=42, counter=0).random_raw(4)
    plain = [NormalDist().inv_cdf(((int(word) >> 12) + 0.5) / 2**52) for word in words]

    np.testing.assert_allclose(normal(42, Purpose.INITIAL, 0, (1, 1, 4)).ravel(), plain, rtol=1e-7)


def test_the_generator_is_philox_as_published() -> None:
    # Random123's known answers for philox4x64-10 (tests/kat_vectors): key and counter 0. numpy counts up before the first block.
    raw = np.random.Philox(key=0, counter=2**256 - 1).random_raw(4)

    assert [f"{word:016x}" for word in raw] == [
        "16554d9eca36314c",
        "db20fe9d672d0fdc",
        "d7e772cee186176b",
        "7e68b68aec7ba23b",
    ]


def test_moments() -> None:
    noise = normal(7, Purpose.INITIAL, 0, (250_000, 1, 4)).astype(np.float64).ravel()

    # Five standard errors of each moment of a million numbers.
    assert abs(noise.mean()) < 5 * 1e-3
    assert abs(noise.var() - 1) < 5 * math.sqrt(2) * 1e-3
    assert abs((noise**3).mean()) < 5 * math.sqrt(15) * 1e-3
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96) * 1e-3
    assert abs((noise[:-1] * noise[1:]).mean()) < 5 * 1e-3
    assert np.mean(np.abs(noise) > 3) == pytest.approx(0.0027, abs=5 * 5.2e-5)


def test_quantiles_agree_with_scipy_from_the_middle_to_the_farthest_tail() -> None:
    upper = 1.0 - np.geomspace(2.0**-53, 0.5, 2001)
    probability = np.concatenate([np.geomspace(2.0**-53, 0.5, 2001), upper[upper < 1], np.linspace(0.001, 0.999, 999)])

    np.testing.assert_allclose(normal_quantile(probability), ndtri(probability), rtol=2e-14, atol=1e-15)


def test_extreme_words_are_finite_and_symmetric() -> None:
    words = np.array([0, 2**64 - 1, 2**63 - 1, 2**63], dtype=np.uint64)

    lowest, highest, below_middle, above_middle = normal_of_words(words)

    assert -8.3 < lowest < -8.2
    assert highest == -lowest
    assert 0 < above_middle < 1e-15
    assert below_middle == -above_middle


def test_the_logarithm_is_good_to_two_units_in_the_last_place() -> None:
    x = np.geomspace(2.0**-53, 0.075, 5000)
    exact = np.array([math.log(each) for each in x])

    assert np.abs((_log(x) - exact) / np.spacing(np.abs(exact))).max() <= 2


def test_no_two_uses_share_their_noise() -> None:
    uses = [(seed, purpose, evaluation) for seed in (0, 1) for purpose in Purpose for evaluation in (0, 1)]
    noises = np.stack([normal(*use, (64, 64, 4)).ravel() for use in uses])

    correlations = np.corrcoef(noises) - np.eye(len(uses))

    assert np.abs(correlations).max() < 5 / math.sqrt(noises.shape[1])


def test_a_use_is_drawn_without_those_before_it() -> None:
    np.testing.assert_array_equal(normal(3, Purpose.ANCESTRAL, 5, SHAPE), normal(3, Purpose.ANCESTRAL, 5, SHAPE))


def test_a_seed_that_is_not_64_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        normal(2**64, Purpose.INITIAL, 0, SHAPE)
    with pytest.raises(OverflowError):
        normal(-1, Purpose.INITIAL, 0, SHAPE)


def test_purposes_keep_their_numbers() -> None:
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "INITIAL": 0,
        "ANCESTRAL": 1,
        "KNOWN_REGION": 2,
        "RESAMPLING": 3,
        "POSTERIOR": 4,
    }
