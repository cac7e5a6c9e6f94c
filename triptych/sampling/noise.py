"""Standard normal noise that is the same bytes on every machine and with every version of numpy.

numpy promises the raw words of its Philox generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), but not
how `standard_normal` uses them. So the words become normal numbers here, by Wichura's inverse of the normal distribution (1988,
Algorithm AS 241, PPND16: relative accuracy 1e-16), of nothing but + - * / sqrt and frexp, which IEEE 754 rounds in one way only.

The generator is a function of key and counter, and every use has a counter of its own: noise at one evaluation can be drawn
without drawing what came before, and no two uses see the same words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from triptych.sampling.schedule import Float32, Float64

NOISE_VERSION = 1
"""Counts the changes of what a seed means. Whoever resumes a denoising must have the same."""


class Purpose(IntEnum):
    """What noise is drawn for. The numbers are part of what a seed means: never change one, only add."""

    INITIAL = 0
    ANCESTRAL = 1
    KNOWN_REGION = 2
    RESAMPLING = 3
    POSTERIOR = 4


def normal(seed: int, purpose: Purpose, evaluation: int, shape: Sequence[int]) -> Float32:
    """Standard normal noise, float32 of `shape`.

    Args:
        seed: Of the image, 0 to 2^64 - 1.
        purpose: What it is for.
        evaluation: The position in the plan at which it is used; 0 for what is drawn once.
        shape: Of one row, (h, w, channels).
    """
    return normal_of_words(_words(seed, purpose, evaluation, math.prod(shape))).reshape(shape)


def _words(seed: int, purpose: Purpose, evaluation: int, count: int) -> NDArray[np.uint64]:
    key = np.array([seed, 0], dtype=np.uint64)
    # The first word counts blocks of four; the generator adds to it.
    counter = np.array([0, evaluation, purpose, 0], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count))


def normal_of_words(words: NDArray[np.uint64]) -> Float32:
    """One standard normal number for each random word: the quantile of the middle of one of 2^52 equal intervals of (0, 1)."""
    # 52 bits and a half: 53 in all, so that neither this nor 1 minus this is rounded, and neither is 0 or 1.
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return normal_quantile(uniform).astype(np.float32)


def normal_quantile(probability: Float64) -> Float64:
    """The inverse of the normal distribution function, for probabilities in (0, 1), float64 (n,)."""
    centred = probability - 0.5
    square = 0.180625 - centred * centred
    quantile = centred * _ratio(_CENTRE, square)
    (outside,) = np.nonzero(np.abs(centred) > 0.425)
    quantile[outside] = np.copysign(_tail(np.minimum(probability[outside], 1.0 - probability[outside])), centred[outside])
    return quantile


def _tail(probability: Float64) -> Float64:
    """The distance from 0 beyond which `probability`, below 0.075, lies on either side."""
    root = np.sqrt(-_log(probability))
    distance = _ratio(_TAIL, root - 1.6)
    (far,) = np.nonzero(root > 5.0)
    distance[far] = _ratio(_FAR_TAIL, root[far] - 5.0)
    return distance


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Float64) -> Float64:
    numerator, denominator = coefficients
    return _polynomial(numerator, x) / _polynomial(denominator, x)


def _polynomial(coefficients: Sequence[float], x: Float64) -> Float64:
    """By Horner's rule, from the highest power down."""
    value = coefficients[-1] * x
    for coefficient in coefficients[-2:0:-1]:
        value += coefficient
        value *= x
    value += coefficients[0]
    return value


def _log(x: Float64) -> Float64:
    """The natural logarithm, to 2 units in the last place: numpy's own differs between processors."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = exponent - low
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * _LOG_2 + 2.0 * ratio * _polynomial(_ARTANH, ratio * ratio)


_LOG_2 = 0.6931471805599453
# artanh(z) / z in powers of z^2. |z| is at most 3 - 2 sqrt(2) = 0.172, so that the first term left out is below 1e-18.
_ARTANH = [1.0 / (2 * power + 1) for power in range(11)]

# The numbers of PPND16: numerator and denominator, from the lowest power up. For |p - 1/2| <= 0.425, in 0.425^2 - (p - 1/2)^2:
_CENTRE = (
    (
        3.3871328727963666080,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
# With r = sqrt(-log(min(p, 1 - p))), for r <= 5, in r - 1.6:
_TAIL = (
    (
        1.42343711074968357734,
        4.63033784615654529590,
        5.76949722146069140550,
        3.64784832476320460504,
        1.27045825245236838258,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187,
        1.67638483018380384940,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
# And beyond, in r - 5:
_FAR_TAIL = (
    (
        6.65790464350110377720,
        5.46378491116411436990,
        1.78482653991729133580,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)
