"""Keras, on the backend of the process's one engine. It reads its backend once, when it is imported."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triptych.errors import EngineError

# Of stages that start side by side one imports Keras, and the others find it whole.
_choosing = threading.RLock()


def choose_backend(backend: str) -> None:
    """Has Keras run on that backend, whoever imports it; TensorFlow does so by itself.

    Raises:
        EngineError: It runs on another backend in this process already.
    """
    with _choosing:
        if "keras" not in sys.modules:
            os.environ["KERAS_BACKEND"] = backend
        elif (current := sys.modules["keras"].config.backend()) != backend:
            raise EngineError(f"Keras runs on {current} in this process already; the engine {backend} needs a process of its own")


def import_keras(backend: str) -> Any:
    """Keras, to build a network with.

    Raises:
        EngineError: It is not installed, or runs on another backend in this process already.
    """
    with _choosing:
        choose_backend(backend)
        try:
            import keras
        except ModuleNotFoundError as error:
            raise EngineError(
                f"the network must be built, which needs {error.name}, which is not installed: install the extra {backend}"
            ) from error
        return keras


@contextmanager
def dtype_policy(keras: Any, precision: str) -> Iterator[None]:
    """Layers made inside compute in that precision, with weights in float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
