"""Which training timesteps a plan visits, from the noisiest down.

The names and their formulas are those of Lin et al. 2023 (arXiv:2305.08891, table 2), as diffusers rounds them, and keras-cv's.
"""

from __future__ import annotations

import numpy as np

from triptych.errors import InvalidValue
from triptych.sampling.schedule import Float64, ScheduleConfig, TimestepSpacing, sigma_table

RHO = 7.0
"""The exponent of Karras et al. 2022 (arXiv:2206.00364, section 3)."""


def spaced_timesteps(
    config: ScheduleConfig, num_steps: int, *, default: TimestepSpacing, leave_out_last: bool = False, whole: bool = True
) -> Float64:
    """The timesteps of a plan, falling, (num_steps,); that of keras-cv 0.8 may give some more.

    Args:
        default: The spacing where the configuration names none.
        leave_out_last: Space one timestep more and leave the least noisy out, as multistep samplers do.
        whole: Round linspace's to whole timesteps.

    Raises:
        InvalidValue: There is no such spacing of so many steps.
    """
    _check_num_steps(config, num_steps)
    count = config.num_train_timesteps
    points = num_steps + 1 if leave_out_last else num_steps
    match config.timestep_spacing or default:
        case TimestepSpacing.LINSPACE:
            rising = np.linspace(0, count - 1, points)
            timesteps = (np.round(rising) if whole else rising.astype(np.float32).astype(np.float64))[::-1][:num_steps]
        case TimestepSpacing.LEADING:
            timesteps = (np.arange(points, dtype=np.float64) * (count // points))[::-1][:num_steps] + config.steps_offset
        case TimestepSpacing.TRAILING:
            timesteps = _trailing(count, num_steps)
        case TimestepSpacing.KERAS_CV:
            timesteps = np.round(np.arange(num_steps) * ((count - 1) / max(num_steps - 1, 1)))[::-1]
        case TimestepSpacing.KERAS_CV_0_8:
            timesteps = np.arange(1, count, count // num_steps, dtype=np.float64)[::-1]
    _check_distinct(config, num_steps, timesteps)
    return timesteps


def _trailing(count: int, num_steps: int) -> Float64:
    """Steps back from the end in the float64 arithmetic of numpy.arange, which decides how ties are rounded.

    numpy.arange itself gives one element too many for some numbers of steps (61, 103, 121, 122 ...): a timestep of -1.
    """
    stride = (count - count / num_steps) - count
    return np.round(count + stride * np.arange(num_steps)) - 1


def _check_num_steps(config: ScheduleConfig, num_steps: int) -> None:
    if not 1 <= num_steps <= config.num_train_timesteps:
        raise InvalidValue(f"num_steps must be between 1 and {config.num_train_timesteps}, not {num_steps}", param="num_steps")


def _check_distinct(config: ScheduleConfig, num_steps: int, timesteps: Float64) -> None:
    if not (np.all(np.diff(timesteps) < 0) and timesteps[0] < config.num_train_timesteps and timesteps[-1] >= 0):
        raise InvalidValue(
            f"num_steps {num_steps} is too many for this sampler: the model has {config.num_train_timesteps} timesteps",
            param="num_steps",
        )


def karras_sigmas(config: ScheduleConfig, num_steps: int) -> Float64:
    """Sigmas that are evenly spaced in their seventh root, falling, (num_steps,) (arXiv:2206.00364, eq. 5).

    Raises:
        InvalidValue: `num_steps` is not between 1 and the number of training timesteps.
    """
    _check_num_steps(config, num_steps)
    table = sigma_table(config)
    least, most = float(table[0]) ** (1 / RHO), float(table[-1]) ** (1 / RHO)
    sigmas: Float64 = (most + np.linspace(0, 1, num_steps) * (least - most)) ** RHO
    return sigmas


def timesteps_of_sigmas(config: ScheduleConfig, sigmas: Float64) -> Float64:
    """The whole timesteps whose noise is nearest, same shape: interpolated in the logarithm of sigma, and rounded."""
    logarithms = np.log(sigma_table(config))
    return np.round(np.interp(np.log(sigmas), logarithms, np.arange(len(logarithms))))
