"""What half precision cannot hold is computed again in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.contract import StageName
from triptych.errors import StageFailed, StartError

Arrays = Mapping[str, NDArray[Any]]
Network = Callable[[Arrays], Arrays]

IN_FLOAT32 = "in_float32"
"""The output, bool (B,), that says which rows were computed again."""

_log = logging.getLogger(__name__)


class FiniteNetwork:
    """A network in half precision, and in its place, for rows that are NaN or infinite there, one in float32.

    That one is made when it is first needed, because most networks never need it, and it takes time and memory: the rows that
    need it wait, and so does whoever comes after them. Which rows those are depends on nothing but the rows themselves.
    For one thread at a time.

    Args:
        network: As the stage runs it.
        make_float32: Makes the same network in float32; None where `network` is that already.
        name: What it is called in logs.
        precision: Of `network`, for sentences.

    Attributes:
        float32_rows: That were computed again so far.
    """

    def __init__(self, network: Network, make_float32: Callable[[], Network] | None, *, name: str, precision: str) -> None:
        self.float32_rows = 0
        self._network = network
        self._make_float32 = make_float32
        self._name = name
        self._precision = precision
        self._float32: Network | None = None
        self._failure: StartError | None = None

    def __call__(self, inputs: Arrays) -> Arrays:
        """The network's outputs, and `IN_FLOAT32`.

        Raises:
            StageFailed: The network in float32 cannot be had.
        """
        outputs = self._network(inputs)
        # What comes in as NaN stays so.
        again = _finite_rows(inputs) & ~_finite_rows(outputs) & (self._make_float32 is not None)
        if not again.any():
            return {**outputs, IN_FLOAT32: again}
        repeated = self._in_float32()({name: array[again] for name, array in inputs.items()})
        self.float32_rows += int(again.sum())
        mended = {name: array.copy() for name, array in outputs.items()}
        for name, array in mended.items():
            array[again] = repeated[name]
        return {**mended, IN_FLOAT32: again}

    def _in_float32(self) -> Network:
        if self._failure is not None:  # what failed once takes as long to fail again
            raise self._failed(self._failure)
        if self._float32 is None:
            assert self._make_float32 is not None, "nothing is computed again where there is nothing better"
            _log.warning(
                "the %s gave NaN or infinity in %s: what does is computed again in float32, for which it is compiled now, once",
                *(self._name, self._precision),
            )
            try:
                self._float32 = self._make_float32()
            except StartError as error:
                _log.error("the %s cannot be compiled in float32: %s", self._name, error)
                self._failure = error
                raise self._failed(error) from error
        return self._float32

    def _failed(self, error: StartError) -> StageFailed:
        return StageFailed(
            f"the {self._name} computed NaN or infinity in {self._precision}, and cannot be compiled in float32: {error.message}",
            stage=StageName.DECODER,
        )


def _finite_rows(arrays: Arrays) -> NDArray[np.bool_]:
    """Which rows are finite in all arrays, (B,)."""
    rows = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays.values()]
    finite: NDArray[np.bool_] = np.logical_and.reduce(rows)
    return finite
