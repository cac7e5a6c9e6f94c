"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)."""

from __future__ import annotations

from triptych.sampling.schedule import Float32


def guide(unconditional: Float32, conditional: Float32, guidance_scale: float) -> Float32:
    """The prediction led away from the unconditional one; at scale 1 it is the conditional one, and no second half is needed.

    Args:
        unconditional, conditional: Predictions for the same latents, float32 of the same shape.
        guidance_scale: The paper's w + 1.
    """
    return unconditional + guidance_scale * (conditional - unconditional)
