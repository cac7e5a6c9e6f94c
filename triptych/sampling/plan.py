"""A denoising as data: the list of network evaluations that a sampler makes, and what each does to the latents.

Every sampler here is linear: an evaluation takes latents, sampler state, prediction and noise to new latents and new sampler
state by sums of multiples of whole arrays, with factors that depend on the position alone. So each sampler is written as its
paper writes it, `make_plan` applies it once to unit vectors, and what is left for the denoising loop is a small matrix for every
evaluation::

    latents'            | . . . . |   latents
    sampler_state[0]' = | . . . . | . sampler_state[0]
                                      prediction
                                      noise

The loop, for each position::

    prediction = network(plan.network_input(latents, position), plan.timesteps[position])
    noise = normal(seed, Purpose.ANCESTRAL, position, latents.shape) if plan.needs_noise(position) else None
    latents, sampler_state = plan.advance(latents, sampler_state, position, prediction, noise)

`latents`, `sampler_state` and `position` are the whole state of a denoising. Factors and arrays are float32, and only multiplied
and added, one after the other: a row's bytes do not depend on its batch-mates nor, where digests are equal, on the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from triptych.sampling.prediction import predicted_original
from triptych.sampling.schedule import Float32, Float64, Level, PredictionType

Terms = tuple[tuple[int, float], ...]
"""A sum: the inputs that take part, and their factors."""

Advance = Callable[[int, Float64, list[Float64], Float64, Float64], tuple[Float64, Sequence[Float64]]]
"""(position, latents, sampler state, prediction, noise) to (latents, sampler state): a sampler as its paper writes it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The network evaluations of one denoising; E of them, in steps, with n arrays of sampler state.

    Attributes:
        sampler: The name that users type.
        timesteps: What the network is told at each evaluation, float32 (E,); whole except for some of Euler's.
        steps: The step that each evaluation belongs to, E numbers rising from 0.
        state_arrays: n.
        initial_scale: Of the noise that a denoising starts from.
        input_scales: Of the latents that the network sees at each evaluation, (E,).
        levels: (signal, noise) of the latents before each evaluation and after the last, (E + 1, 2).
        transitions: What each evaluation does, (E, 1 + n, 1 + n + 2): rows are the new latents and state arrays, columns the
            latents, the state arrays, the prediction and the noise.
        originals: Factors of latents and prediction in the predicted original at each evaluation, (E, 2).
    """

    sampler: str
    timesteps: Float32
    steps: tuple[int, ...]
    state_arrays: int
    initial_scale: float
    input_scales: Float32
    levels: Float32
    transitions: Float32
    originals: Float32

    @property
    def num_evaluations(self) -> int:
        """E: how often the network is called."""
        return len(self.steps)

    @property
    def num_steps(self) -> int:
        """The number of steps that the evaluations make up."""
        return self.steps[-1] + 1

    def initial(self, noise: Float32) -> tuple[Float32, Float32]:
        """Latents and sampler state at position 0.

        Args:
            noise: Standard normal, float32 (..., h, w, channels).

        Returns:
            Latents of the same shape, and zeros (..., n, h, w, channels).
        """
        shape = (*noise.shape[:-3], self.state_arrays, *noise.shape[-3:])
        return self.initial_scale * noise, np.zeros(shape, np.float32)

    def network_input(self, latents: Float32, position: int) -> Float32:
        """What the network sees at `position`; the latents themselves where they need no scaling."""
        scale = self._input_scales[position]
        return latents if scale == 1.0 else scale * latents

    def needs_noise(self, position: int) -> bool:
        """Whether `advance` wants noise at `position`."""
        return self._needs_noise[position]

    def advance(
        self, latents: Float32, sampler_state: Float32, position: int, prediction: Float32, noise: Float32 | None = None
    ) -> tuple[Float32, Float32]:
        """Latents and sampler state at `position + 1`.

        Args:
            latents: At `position`, float32 (..., h, w, channels); one row, or rows that are all at this position.
            sampler_state: At `position`, float32 (..., n, h, w, channels).
            position: How many evaluations are done, 0 to E - 1.
            prediction: The network's output for `network_input(latents, position)`, after guidance, float32 like `latents`.
            noise: Standard normal, float32 like `latents`; may be None where `needs_noise` says no.
        """
        assert latents.dtype == sampler_state.dtype == prediction.dtype == np.float32, "samplers keep float32"
        state = [sampler_state[..., index, :, :, :] for index in range(self.state_arrays)]
        inputs = [latents, *state, prediction, noise]
        first, *others = self._terms[position]
        new_state = np.empty_like(sampler_state)
        for index, terms in enumerate(others):
            _add_up(terms, inputs, new_state[..., index, :, :, :])
        return _add_up(first, inputs, np.empty_like(latents)), new_state

    def predicted_original(self, latents: Float32, position: int, prediction: Float32) -> Float32:
        """The latents without noise as the prediction at `position` has them, VAE-scaled: a preview. Shapes as in `advance`."""
        of_latents, of_prediction = self._originals[position]
        return of_latents * latents + of_prediction * prediction

    def add_noise(self, original: Float32, noise: Float32, position: int) -> Float32:
        """Known latents as noisy as the plan's are at `position`; at `num_evaluations`, as noisy as the plan leaves them.

        Args:
            original: VAE-scaled latents without noise, float32 (..., h, w, channels).
            noise: Standard normal, float32, same shape.
            position: 0 to E.
        """
        signal, sigma = self._levels[position]
        return signal * original + sigma * noise

    def digest(self) -> str:
        """sha256 of everything that decides what the plan computes; two plans of equal digests are the same plan."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256(b"triptych plan 1")
        scalars = np.array([self.initial_scale, *self.steps], dtype=np.float32)
        for array in (scalars, self.timesteps, self.input_scales, self.levels, self.transitions, self.originals):
            content.update(repr(array.shape).encode())
            content.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return content.hexdigest()

    @cached_property
    def _needs_noise(self) -> tuple[bool, ...]:
        return tuple(bool(np.any(matrix[:, -1])) for matrix in self.transitions)

    # The same numbers as plain floats: they are read at every evaluation of every row, and make no array float64.

    @cached_property
    def _input_scales(self) -> list[float]:
        return [float(scale) for scale in self.input_scales]

    @cached_property
    def _levels(self) -> list[tuple[float, float]]:
        return [(float(signal), float(noise)) for signal, noise in self.levels]

    @cached_property
    def _originals(self) -> list[tuple[float, float]]:
        return [(float(of_latents), float(of_prediction)) for of_latents, of_prediction in self.originals]

    @cached_property
    def _terms(self) -> tuple[tuple[Terms, ...], ...]:
        return tuple(
            tuple(tuple((column, factor) for column, factor in enumerate(row) if factor) for row in matrix)
            for matrix in self.transitions.tolist()
        )


def _add_up(terms: Terms, inputs: Sequence[Float32 | None], out: Float32) -> Float32:
    if not terms:
        out.fill(0.0)
        return out
    (column, factor), *others = terms
    np.multiply(inputs[column], factor, out=out)  # type: ignore[arg-type]  # None only where noise is not needed
    for column, factor in others:
        out += factor * inputs[column]  # type: ignore[operator]
    return out


def trace(
    advance: Advance,
    *,
    sampler: str,
    prediction_type: PredictionType,
    timesteps: Float64,
    levels: Sequence[Level],
    state_arrays: int = 0,
    steps: Iterable[int] | None = None,
    initial_scale: float = 1.0,
    variance_exploding: bool = False,
) -> Plan:
    """The plan of a sampler: applies `advance` to unit vectors, once for each evaluation.

    Args:
        advance: Linear in its arrays; called in order of position.
        timesteps: Of the E evaluations.
        levels: Before each evaluation and after the last, E + 1.
        steps: Of each evaluation; None is one evaluation a step.
        variance_exploding: Whether the sampler's latents are `original + sigma * epsilon` instead of
            `signal * original + noise * epsilon` (Song et al. 2021, arXiv:2011.13456). The network sees the latter all the same.
    """
    count = len(timesteps)
    scales = [level.signal if variance_exploding else 1.0 for level in levels]
    latents, *state, prediction, noise = np.eye(state_arrays + 3)
    transitions, originals = [], []
    for position in range(count):
        new_latents, new_state = advance(position, latents, state, prediction, noise)
        transitions.append([new_latents, *new_state])
        original = predicted_original(prediction_type, scales[position] * latents, prediction, levels[position])
        originals.append([original[0], original[-2]])
    return Plan(
        sampler=sampler,
        timesteps=_float32(timesteps),
        steps=tuple(range(count) if steps is None else steps),
        state_arrays=state_arrays,
        initial_scale=initial_scale,
        input_scales=_float32(scales[:count]),
        levels=_float32([(level.signal / scale, level.noise / scale) for level, scale in zip(levels, scales, strict=True)]),
        transitions=_float32(transitions),
        originals=_float32(originals),
    )


def _float32(values: Any) -> Float32:
    array: Float32 = np.array(values, dtype=np.float32)
    assert np.all(np.isfinite(array)), "a plan has only finite factors"
    array.flags.writeable = False
    return array
