"""An optimizer that needs fewer samples: kernels move along orthogonal matrices, everything else as by AdamW."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

MOMENTUM = 0.95
STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Newton and Schulz's iteration, steep at zero (Jordan et al. 2024)
SCALE = 0.2  # so that an update is as large as one of AdamW, and its rates hold (Liu et al. 2025, arXiv:2502.16982)
AS_BY_ADAMW = ("conv_in", "conv_out", "text_model")  # what is nearest to the latents, and what can parse already


class Muon(keras.optimizers.AdamW):
    """Momentum made orthogonal (Jordan et al. 2024, "Muon"), for kernels of dense layers and convolutions.

    A convolution's kernel is a matrix of (all that it sees, channels that it makes).
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        # On TensorFlow the variable is the backend's own, which does not know its path.
        path = self._trainable_variables[index].path
        if len(variable.shape) < 2 or path.startswith(AS_BY_ADAMW):
            super().update_step(gradient, variable, learning_rate)
            return
        momentum = self._momentums[index]
        gradient = ops.cast(gradient, variable.dtype)
        self.assign(momentum, ops.add(ops.multiply(momentum, MOMENTUM), gradient))
        ahead = ops.add(gradient, ops.multiply(momentum, MOMENTUM))
        matrix = ops.reshape(ahead, (-1, variable.shape[-1]))
        size = SCALE * max(matrix.shape) ** 0.5
        update = ops.reshape(ops.cast(orthogonal(matrix), variable.dtype), variable.shape)
        self.assign_sub(variable, ops.multiply(update, ops.cast(learning_rate, variable.dtype) * size))


def orthogonal(matrix: Any) -> Any:
    """Nearly the nearest matrix whose rows or columns are orthonormal: singular values from about 0.7 to 1.2, of any shape."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = ops.transpose(matrix) if tall else matrix
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + 1e-7)
    x = ops.cast(x, keras.mixed_precision.global_policy().compute_dtype)
    for _ in range(STEPS):
        square = ops.matmul(x, ops.transpose(x))
        x = a * x + ops.matmul(b * square + c * ops.matmul(square, square), x)
    return ops.transpose(x) if tall else x
