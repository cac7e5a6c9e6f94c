"""Inpainting with any diffusion model: what is known is put back after every evaluation, as noisy as the rest is then.

The loop is RePaint's (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1, with jumps of one step): with `num_resamples` above 1
it goes back up by fresh noise and takes each step again, so that what is painted and what is known come to agree.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from triptych.sampling.plan import Plan
from triptych.sampling.schedule import Float32


def put_back(latents: Float32, plan: Plan, position: int, original: Float32, mask: Float32, noise: Float32 | None) -> Float32:
    """Latents at `position` with what is known in them: line 7 of the algorithm.

    Args:
        latents: After `plan.advance`, float32 (..., h, w, channels).
        position: 1 to E.
        original: VAE-scaled latents without noise, same shape.
        mask: 1 where to paint and 0 where `original` is kept, float32 (..., h, w, 1).
        noise: Standard normal, same shape as `latents`; may be None at E, where what is known has none.
    """
    known = original if noise is None or position == plan.num_evaluations else plan.add_noise(original, noise, position)
    return mask * latents + (1 - mask) * known


def resampled(plan: Plan, num_resamples: int) -> Plan:
    """The plan that makes every evaluation but the last `num_resamples` times.

    Before an evaluation is made again, its result is diffused back to where it started: line 10 of the algorithm. What a sampler
    remembers of earlier evaluations is kept for the last time alone. Evaluations that do not lead to less noise are made once.
    """
    last = plan.num_evaluations - 1
    times = [num_resamples if position < last and _falls(plan, position) else 1 for position in range(plan.num_evaluations)]
    order = [position for position, count in enumerate(times) for _ in range(count)]
    transitions = []
    for index, position in enumerate(order):
        is_last_time = index + 1 == len(order) or order[index + 1] != position
        transitions.append(plan.transitions[position] if is_last_time else _and_back(plan, position))
    return replace(
        plan,
        timesteps=plan.timesteps[order],
        steps=tuple(plan.steps[position] for position in order),
        input_scales=plan.input_scales[order],
        levels=plan.levels[[*order, plan.num_evaluations]],
        transitions=np.array(transitions, np.float32),
        originals=plan.originals[order],
    )


def _falls(plan: Plan, position: int) -> bool:
    (signal, noise), (next_signal, next_noise) = plan.levels[position : position + 2].tolist()
    return bool(noise * next_signal > next_noise * signal)


def _and_back(plan: Plan, position: int) -> Float32:
    """What an evaluation does when its result is diffused back to the level before it."""
    (signal, noise), (next_signal, next_noise) = plan.levels[position : position + 2].tolist()
    shrink = signal / next_signal
    fresh = math.sqrt(noise**2 - (shrink * next_noise) ** 2)
    there_and_back = np.eye(*plan.transitions[position].shape, dtype=np.float64)
    there_and_back[0] = shrink * plan.transitions[position][0].astype(np.float64)
    # Two independent noises are one, and one is drawn.
    there_and_back[0, -1] = math.hypot(there_and_back[0, -1], fresh)
    return there_and_back.astype(np.float32)
