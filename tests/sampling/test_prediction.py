"""The three kinds of prediction say the same."""

from __future__ import annotations

import numpy as np
import pytest

from triptych.sampling.prediction import predicted_noise, predicted_original
from triptych.sampling.schedule import Level, PredictionType

ORIGINAL, NOISE = np.array([1.0, -2.0, 0.5]), np.array([0.3, 1.1, -0.7])
LEVEL = Level.of_sigma(1.7)
LATENTS = LEVEL.signal * ORIGINAL + LEVEL.noise * NOISE

PREDICTIONS = {
    PredictionType.EPSILON: NOISE,
    PredictionType.V_PREDICTION: LEVEL.signal * NOISE - LEVEL.noise * ORIGINAL,
    PredictionType.SAMPLE: ORIGINAL,
}


@pytest.mark.parametrize("prediction_type", PredictionType)
def test_a_perfect_prediction_gives_original_and_noise_back(prediction_type: PredictionType) -> None:
    prediction = PREDICTIONS[prediction_type]

    np.testing.assert_allclose(predicted_original(prediction_type, LATENTS, prediction, LEVEL), ORIGINAL, rtol=1e-12)
    np.testing.assert_allclose(predicted_noise(prediction_type, LATENTS, prediction, LEVEL), NOISE, rtol=1e-12)
