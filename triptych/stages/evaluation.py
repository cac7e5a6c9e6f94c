"""Rows that are being denoised, and one network evaluation for any number of them.

A row is all that there is to know of a picture in the making. Rows of different requests, plans and positions may share a call,
if they are of one kind: whoever calls `evaluate` decides which.

Where a row reuses features (Ma et al. 2023, arXiv:2312.00858), the whole U-Net is computed at every `cache_interval`-th position
and where guidance begins, as the unconditional half has no features before. At all others it is the shallow U-Net, on what the
last whole one found out. Features are the one thing that is not in a state: a row is resumed where its next evaluation is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from triptych.checkpoints.checkpoint import UNetPart
from triptych.contract import Float32
from triptych.sampling.guidance import guide
from triptych.sampling.inpainting import put_back
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.plan import Plan

Network = Callable[[Mapping[str, Float32]], Mapping[str, Float32]]
"""`latents` (N, h, w, C and extra channels), `timestep` (N,) and `context` (N, T, D) to `prediction` (N, h, w, C).

One whose features are reused also gives `features` (N, h, w, F), and a shallow one takes them.
"""

Shape = tuple[tuple[int, ...], tuple[int, ...]]
"""Of a row's latents and of its context."""

Kind = tuple[Shape, UNetPart]
"""What the rows of a call have in common."""


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
        cache_interval: Positions from one at which the whole network is computed to the next; 1 computes no other.
        features: What the last whole evaluation found out, float32 (h, w, F): of the conditional half, and of the unconditional
            one where there was one. None of them where the next evaluation is whole.
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
    cache_interval: int = 1
    features: tuple[Float32, ...] = ()
    known: Known | None = None
    extra_channels: Float32 | None = None
    predicted_original: Float32 | None = None

    @property
    def is_guided(self) -> bool:
        """Whether the next evaluation is led away from the unconditional context."""
        return self.position in self._guided

    @property
    def _guided(self) -> range:
        """The positions that have an unconditional half."""
        if self.unconditional_context is None:
            return range(0)
        return range(self.plan.num_evaluations) if self.guided is None else self.guided

    @property
    def part(self) -> UNetPart:
        """What of the network the next evaluation computes."""
        return UNetPart.SHALLOW if self._is_shallow_at(self.position) else UNetPart.WHOLE

    def _is_shallow_at(self, position: int) -> bool:
        is_last = position == self.plan.num_evaluations
        return position % self.cache_interval != 0 and position not in self._guided[:1] and not is_last

    @property
    def is_resumable(self) -> bool:
        """Whether a state says all that there is to know of it: it needs no features, or is finished."""
        return self.part is UNetPart.WHOLE

    @property
    def halves(self) -> int:
        """Rows of the network that the next evaluation takes: one, or two with guidance."""
        return 2 if self.is_guided else 1

    @property
    def halves_left(self) -> int:
        """Rows of the network that all evaluations to come take."""
        return sum(map(len, self._halves_left))

    @property
    def whole_halves_left(self) -> int:
        """Those of them that take the whole network."""
        return sum(map(self._whole_of, self._halves_left))

    @property
    def _halves_left(self) -> tuple[range, range]:
        """The positions to come, and those of them with guidance."""
        left, guided = range(self.position, self.plan.num_evaluations), self._guided
        return left, range(max(left.start, guided.start), min(left.stop, guided.stop))

    def _whole_of(self, positions: range) -> int:
        """How many of these take the whole network; counted, because a plan may have 100,000 of them."""
        if not positions:
            return 0
        first, last = (-(-end // self.cache_interval) for end in (positions.start, positions.stop))
        return last - first + sum(start in positions and start % self.cache_interval != 0 for start in self._guided[:1])

    @property
    def shape(self) -> Shape:
        return self.latents.shape, self.context.shape

    @property
    def kind(self) -> Kind:
        """Rows of one kind can share a call."""
        return self.shape, self.part

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
            features=self.features if self._is_shallow_at(self.position + 1) else (),
            predicted_original=self.plan.predicted_original(self.latents, self.position, prediction),
        )

    def _with_known(self, known: Known, latents: Float32) -> Float32:
        noise = normal(self.seed, Purpose.KNOWN_REGION, self.position, latents.shape)
        return put_back(latents, self.plan, self.position + 1, known.original, known.mask, noise)


def evaluate(network: Network, rows: Sequence[Row]) -> list[Row]:
    """The rows, which are of one kind, each one evaluation further, by one call of the network.

    The unconditional halves go in the same call, behind the rows. A row without guidance at its position has none.
    """
    guided = [row for row in rows if row.is_guided]
    both = [*rows, *guided]
    contexts = [*(row.context for row in rows), *(row.unconditional_context for row in guided)]
    inputs: dict[str, Float32] = {
        "latents": np.stack([row.network_input for row in both]),
        "timestep": np.array([row.timestep for row in both], np.float32),
        "context": np.stack(contexts),  # type: ignore[arg-type]
    }
    if rows[0].part is UNetPart.SHALLOW:
        inputs["features"] = np.stack([*(row.features[0] for row in rows), *(row.features[1] for row in guided)])
    outputs = network(inputs)
    behind = iter(range(len(rows), len(both)))
    return [_advance(row, outputs, [place, next(behind)] if row.is_guided else [place]) for place, row in enumerate(rows)]


def _advance(row: Row, outputs: Mapping[str, Float32], halves: Sequence[int]) -> Row:
    """The row one evaluation further.

    Args:
        halves: Where in the outputs they are: the conditional one, and with guidance the other.
    """
    prediction, *unconditional = (outputs["prediction"][half] for half in halves)
    if unconditional:
        prediction = guide(unconditional[0], prediction, row.guidance_scale)
    after = row.advance(prediction)
    if after.is_resumable or row.part is UNetPart.SHALLOW:
        return after
    # Copies: a view would hold what all other rows of the call found, for as long as this one is kept.
    return replace(after, features=tuple(outputs["features"][half].copy() for half in halves))
