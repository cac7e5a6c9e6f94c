"""What a network's prediction says about the original latents and about the noise in them.

These formulas and the samplers' are linear in the arrays, and are written for arrays of any shape: latents, or the unit vectors
by which `plan.py` finds their coefficients.
"""

from __future__ import annotations

from triptych.sampling.schedule import Float64, Level, PredictionType


def predicted_original(prediction_type: PredictionType, latents: Float64, prediction: Float64, level: Level) -> Float64:
    """The latents without their noise, as the prediction has it.

    Args:
        latents: At `level`.
        prediction: The network's output for them, after guidance, same shape.
        level: The noise in `latents`.
    """
    match prediction_type:
        case PredictionType.EPSILON:
            return (latents - level.noise * prediction) / level.signal
        case PredictionType.V_PREDICTION:
            return level.signal * latents - level.noise * prediction
        case PredictionType.SAMPLE:
            return prediction


def predicted_noise(prediction_type: PredictionType, latents: Float64, prediction: Float64, level: Level) -> Float64:
    """The noise in the latents (the papers' epsilon), as the prediction has it; arguments as for `predicted_original`."""
    match prediction_type:
        case PredictionType.EPSILON:
            return prediction
        case PredictionType.V_PREDICTION:
            return level.signal * prediction + level.noise * latents
        case PredictionType.SAMPLE:
            return (latents - level.signal * prediction) / level.noise
