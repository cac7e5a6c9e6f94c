"""Medians, spread, and whether two scenarios differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report import quantile

CONFIDENCE = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of one quantity over the rounds."""

    median: float
    p10: float
    p90: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    return Spread(median=float(np.median(values)), p10=quantile(values, 0.1), p90=quantile(values, 0.9), rounds=len(values))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two scenarios, round by round.

    Attributes:
        median: Of the differences, in the unit of the values.
        low, high: Between these the median lies with `confidence`, by resampling the rounds.
        is_noise: Whether nothing at all lies between them too.
    """

    median: float
    low: float
    high: float
    confidence: float
    is_noise: bool


def paired_difference(values: Sequence[float], baseline: Sequence[float], *, confidence: float = CONFIDENCE) -> Difference:
    """How much more the values are than the baseline's of the same rounds: a percentile bootstrap of the median.

    What slows a round down slows both, and falls out of the difference.
    """
    differences = np.subtract(values, baseline)
    draws = np.random.default_rng(0).integers(0, len(differences), (_RESAMPLES, len(differences)))
    medians = np.median(differences[draws], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(
        median=float(np.median(differences)),
        low=float(low),
        high=float(high),
        confidence=confidence,
        is_noise=bool(low <= 0 <= high),
    )
