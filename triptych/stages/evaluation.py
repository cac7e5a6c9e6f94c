"""Rows that are being denoised, and one network evaluation for any number of them.

A row is all that there is to know of a picture in the making. Rows of different requests, plans and positions may share a call:
whoever calls `evaluate` decides which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from triptych.contract import Float32
from triptych.sampling.guidance import guide
from triptych.sampling.inpainting import put_back
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.plan import Plan

Network = Callable[[Mapping[str, Float32]], Mapping[str, Float32]]
"""`latents` (N, h, w, C and extra channels), `timestep` (N,) and `context` (N, T, D) to `prediction` (N, h, w, C)."""

Shape = tuple[tuple[int, ...], tuple[int, ...]]
"""Of a row's latents and of its context."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What of a picture is to stay, and where.

    Attributes:
        original: Its latents, float32 (h, w, C).
        mask: 1 where to paint and 0 where to keep, float32 (h, w, 1).
    """

    original: Float32
    mask: Float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One picture in the making.

    Attributes:
        latents: float32 (h, w, C).
        sampler_state: float32 (n, h, w, C).
        position: Evaluations of the plan that are done.
        context: float32 (T, D).
        unconditional_context: Same shape; None without guidance.
        guided: The positions at which there is guidance; None is all.
        seed: Of all its noise.
        known: What is put back after every evaluation; None is nothing.
        extra_channels: What the network sees beside the latents, float32 (h, w, n); None where it sees nothing else.
        predicted_original: The latents without noise as the last evaluation saw them; None before the first.
    """

    plan: Plan
    latents: Float32
    sampler_state: Float32
    position: int
    context: Float32
    unconditional_context: Float32 | None
    guidance_scale: float
    seed: int
    guided: range | None = None
    known: Known | None = None
    extra_channels: Float32 | None = None
    predicted_original: Float32 | None = None

    @property
    def is_guided(self) -> bool:
        """Whether the next evaluation is led away from the unconditional context."""
        return self.unconditional_context is not None and (self.guided is None or self.position in self.guided)

    @property
    def halves(self) -> int:
        """Rows of the network that the next evaluation takes: one, or two with guidance."""
        return 2 if self.is_guided else 1

    @property
    def halves_left(self) -> int:
        """Rows of the network that all evaluations to come take."""
        left = range(self.position, self.plan.num_evaluations)
        if self.unconditional_context is None:
            return len(left)
        guided = left if self.guided is None else range(max(left.start, self.guided.start), min(left.stop, self.guided.stop))
        return len(left) + len(guided)

    @property
    def shape(self) -> Shape:
        """Rows of equal shapes can share a call."""
        return self.latents.shape, self.context.shape

    @property
    def is_finished(self) -> bool:
        return self.position == self.plan.num_evaluations

    @property
    def network_input(self) -> Float32:
        latents = self.plan.network_input(self.latents, self.position)
        return latents if self.extra_channels is None else np.concatenate([latents, self.extra_channels], axis=-1)

    @property
    def timestep(self) -> np.float32:
        timestep: np.float32 = self.plan.timesteps[self.position]
        return timestep

    def advance(self, prediction: Float32) -> Row:
        """The row after the evaluation that gave this prediction (h, w, C), guidance included."""
        noise = None
        if self.plan.needs_noise(self.position):
            noise = normal(self.seed, Purpose.ANCESTRAL, self.position, self.latents.shape)
        latents, sampler_state = self.plan.advance(self.latents, self.sampler_state, self.position, prediction, noise)
        return replace(
            self,
            latents=latents if self.known is None else self._with_known(self.known, latents),
            sampler_state=sampler_state,
            position=self.position + 1,
            predicted_original=self.plan.predicted_original(self.latents, self.position, prediction),
        )

    def _with_known(self, known: Known, latents: Float32) -> Float32:
        noise = normal(self.seed, Purpose.KNOWN_REGION, self.position, latents.shape)
        return put_back(latents, self.plan, self.position + 1, known.original, known.mask, noise)


def evaluate(network: Network, rows: Sequence[Row]) -> list[Row]:
    """The rows, each one evaluation further, by one call of the network.

    The unconditional halves go in the same call, behind the rows. A row without guidance at its position has none.
    """
    guided = [row for row in rows if row.is_guided]
    both = [*rows, *guided]
    contexts = [*(row.context for row in rows), *(row.unconditional_context for row in guided)]
    predictions: Float32 = network(
        {
            "latents": np.stack([row.network_input for row in both]),
            "timestep": np.array([row.timestep for row in both], np.float32),
            "context": np.stack(contexts),  # type: ignore[arg-type]
        }
    )["prediction"]
    unconditional = iter(predictions[len(rows) :])
    return [
        row.advance(guide(next(unconditional), prediction, row.guidance_scale) if row.is_guided else prediction)
        for row, prediction in zip(rows, predictions, strict=False)
    ]
