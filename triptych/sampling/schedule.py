"""The noise schedule a network was trained with: how much signal is left at each timestep.

Latents at a timestep are `signal * original + noise * epsilon`, with `signal**2 + noise**2 = 1`; `alphas_cumprod` is `signal**2`
(Ho et al. 2020, arXiv:2006.11239, eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from triptych.errors import CheckpointError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class BetaSchedule(StrEnum):
    """How beta grows over the training timesteps."""

    LINEAR = "linear"
    SCALED_LINEAR = "scaled_linear"


class PredictionType(StrEnum):
    """What the network predicts: the noise, the velocity (Salimans and Ho 2022, arXiv:2202.00512), or the original."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    SAMPLE = "sample"


class TimestepSpacing(StrEnum):
    """How a plan's timesteps lie among the training timesteps (Lin et al. 2023, arXiv:2305.08891, table 2).

    keras-cv's own are the last two: from 0.9 on it counts like linspace, up to 0.8 it started at timestep 1.
    """

    LEADING = "leading"
    TRAILING = "trailing"
    LINSPACE = "linspace"
    KERAS_CV = "keras_cv"
    KERAS_CV_0_8 = "keras_cv_0.8"


class FinalSigma(StrEnum):
    """Where samplers that count in sigmas end: at no noise, or at the least noise of the training schedule."""

    ZERO = "zero"
    SIGMA_MIN = "sigma_min"


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A network's noise schedule and how it wants to be sampled, in the field names of diffusers' `scheduler_config.json`.

    Which sampler runs is not part of it: users name that. Options of one sampler alone (`algorithm_type`, `solver_order`,
    `use_karras_sigmas` ...) are therefore not read; `samplers.named_sampler` reads them.

    Attributes:
        timestep_spacing: None is diffusers' default for the sampler: leading for DDIM and PNDM, linspace for the others.
        steps_offset: Added to the timesteps of leading spacing.
        set_alpha_to_one: Whether DDIM and PNDM end at no noise, or at timestep 0. None: DDIM at no noise, PNDM at timestep 0.
        final_sigmas_type: Where Euler, DPM-Solver++ and UniPC end.
        lower_order_final: Whether multistep samplers end on a first-order step: UniPC always, DPM-Solver++ below 15 steps.
        rescale_betas_zero_snr: Whether the last timestep is made pure noise (arXiv:2305.08891, algorithm 1).
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = BetaSchedule.LINEAR
    prediction_type: PredictionType = PredictionType.EPSILON
    timestep_spacing: TimestepSpacing | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None
    final_sigmas_type: FinalSigma = FinalSigma.ZERO
    lower_order_final: bool = True
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise CheckpointError(f"num_train_timesteps must be at least 2, not {self.num_train_timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise CheckpointError(
                f"beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, not {self.beta_start} and {self.beta_end}"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == PredictionType.EPSILON:
            raise CheckpointError(
                "rescale_betas_zero_snr does not go with prediction_type epsilon: from pure noise, noise tells nothing"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the content of a `scheduler_config.json`; fields that are absent or null take diffusers' defaults.

        Latents are never clipped: an absent `clip_sample` counts as false.

        Raises:
            CheckpointError: A field that decides what the network means has a value that we do not have; it is named.
        """
        for name, only in _ONLY.items():
            if values.get(name) not in (None, only):
                raise CheckpointError(f"the noise schedule has {name}={values[name]!r}; only {only!r} is supported")
        names = [field.name for field in fields(cls) if values.get(field.name) is not None]
        return cls(**{name: _read(name, values[name]) for name in names})


_ONLY = {"trained_betas": None, "clip_sample": False, "thresholding": False, "timestep_type": "discrete"}

_ENUMS: dict[str, type[StrEnum]] = {
    "beta_schedule": BetaSchedule,
    "prediction_type": PredictionType,
    "timestep_spacing": TimestepSpacing,
    "final_sigmas_type": FinalSigma,
}


def _read(name: str, value: Any) -> Any:
    if name in _ENUMS:
        if isinstance(value, str) and value in list(_ENUMS[name]):
            return _ENUMS[name](value)
        wanted = "one of " + ", ".join(_ENUMS[name])
    elif name in ("num_train_timesteps", "steps_offset"):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        wanted = "a whole number"
    elif name in ("beta_start", "beta_end"):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        wanted = "a number"
    else:
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    raise CheckpointError(f"the noise schedule has {name}={value!r}; it must be {wanted}")


@dataclass(frozen=True)
class Level:
    """How noisy latents are: `signal * original + noise * epsilon`.

    The papers write alpha_t and sigma_t for these two, and lambda_t for `half_log_snr`.
    """

    signal: float
    noise: float

    @classmethod
    def of_alpha_cumprod(cls, alpha_cumprod: float) -> Self:
        """The level where `alpha_cumprod` of the variance is signal."""
        return cls(math.sqrt(alpha_cumprod), math.sqrt(1.0 - alpha_cumprod))

    @classmethod
    def of_sigma(cls, sigma: float) -> Self:
        """The level where noise over signal is `sigma`."""
        signal = 1.0 / math.sqrt(sigma**2 + 1.0)
        return cls(signal, sigma * signal)

    @property
    def sigma(self) -> float:
        """Noise over signal."""
        return self.noise / self.signal

    @property
    def half_log_snr(self) -> float:
        """Half the logarithm of the signal-to-noise ratio; infinite where there is no noise."""
        return math.log(self.signal / self.noise) if self.noise else math.inf


CLEAN = Level(1.0, 0.0)

LEAST_ALPHA_CUMPROD = 2.0**-24
"""Stands for 0 where a sampler counts in sigmas, which would be infinite there."""


@lru_cache(maxsize=16)
def alphas_cumprod(config: ScheduleConfig) -> Float32:
    """The share of signal in the variance at each training timestep, (num_train_timesteps,), falling, in [0, 1]. Read-only.

    In float32 and in this order of operations, because the networks were trained with, and diffusers computes, exactly these
    numbers: from a float64 table, some of Karras' timesteps would be rounded to their neighbours.
    """
    alphas = np.float32(1.0) - _betas(config)
    cumulative = _cumulative_product(alphas)
    if config.rescale_betas_zero_snr:
        cumulative = _cumulative_product(_alphas_ending_in_noise(cumulative))
    cumulative.flags.writeable = False
    return cumulative


def _betas(config: ScheduleConfig) -> Float32:
    if config.beta_schedule == BetaSchedule.LINEAR:
        return _ramp(config.beta_start, config.beta_end, config.num_train_timesteps)
    roots = _ramp(math.sqrt(config.beta_start), math.sqrt(config.beta_end), config.num_train_timesteps)
    return roots * roots


def _ramp(start: float, stop: float, count: int) -> Float32:
    """Evenly spaced, counted from both ends and rounded once, as torch.linspace does in float32."""
    first, last = np.float32(start), np.float32(stop)
    step = float((last - first) / np.float32(count - 1))
    index = np.arange(count)
    return np.where(index < count // 2, float(first) + step * index, float(last) - step * (count - 1 - index)).astype(np.float32)


def _cumulative_product(alphas: Float32) -> Float32:
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _alphas_ending_in_noise(cumulative: Float32) -> Float32:
    """Algorithm 1 of arXiv:2305.08891: shifts the signal to 0 at the last timestep, and scales it to what it was at the first."""
    signal = np.sqrt(cumulative)
    stretched = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    variance = stretched * stretched
    alphas = np.concatenate([variance[:1], variance[1:] / variance[:-1]])
    # Through beta, as training code keeps betas: 1 - (1 - alpha) is not alpha in float32.
    return np.float32(1.0) - (np.float32(1.0) - alphas)


def level_at(config: ScheduleConfig, timestep: int) -> Level:
    """The level of latents at a training timestep."""
    return Level.of_alpha_cumprod(float(alphas_cumprod(config)[timestep]))


@lru_cache(maxsize=16)
def sigma_table(config: ScheduleConfig) -> Float64:
    """Noise over signal at each training timestep, (num_train_timesteps,), rising. Read-only."""
    alphas = np.maximum(alphas_cumprod(config), np.float32(LEAST_ALPHA_CUMPROD))
    sigmas = np.sqrt((np.float32(1.0) - alphas) / alphas).astype(np.float64)
    sigmas.flags.writeable = False
    return sigmas


def sigmas_at(config: ScheduleConfig, timesteps: Float64) -> Float64:
    """Noise over signal at timesteps, whole or between two, same shape."""
    table = sigma_table(config)
    return np.interp(timesteps, np.arange(len(table)), table)


def final_level(config: ScheduleConfig) -> Level:
    """Where samplers that count in sigmas end."""
    if config.final_sigmas_type == FinalSigma.ZERO:
        return CLEAN
    return Level.of_sigma(float(sigma_table(config)[0]))
