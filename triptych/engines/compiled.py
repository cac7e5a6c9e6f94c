"""A compiled network: called with any number of rows, it runs only the batch sizes that it was compiled for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.errors import EngineError

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""Inputs of exactly one of the batch sizes to outputs that nobody else writes to."""


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """One input of a network: the shape of a row, without the batch, and numpy's name of the type."""

    shape: tuple[int, ...]
    dtype: str = "float32"


class CompiledNetwork:
    """Named arrays of B rows to named arrays of B rows. To be called by one thread at a time.

    Args:
        run: What the engine made.
        rows: What one row of each input looks like.
        batch_sizes: Those that `run` takes.
        from_cache: Whether it was read from disk instead of built.
    """

    def __init__(self, run: Run, rows: Mapping[str, RowSpec], batch_sizes: Sequence[int], *, from_cache: bool) -> None:
        self.rows = dict(rows)
        self.batch_sizes = tuple(sorted(set(batch_sizes)))
        self.from_cache = from_cache
        self._run = run

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Evaluates the network, padded up to the next batch size; in several calls where B is above the largest.

        Args:
            inputs: An array (B, ...) for each input, of its row's shape and type.
        """
        parts = [self._run_padded(part) for part in self._split(inputs)]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_exactly(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Evaluates the network for one of its batch sizes, as it is."""
        return self._run({name: np.ascontiguousarray(array) for name, array in inputs.items()})

    def warm_up(self) -> None:
        """Runs every batch size once, so that no request is the first.

        Raises:
            EngineError: The network does not run, or returns what is not a number.
        """
        for size in self.batch_sizes:
            outputs = self.run_exactly({name: np.zeros((size, *row.shape), row.dtype) for name, row in self.rows.items()})
            for name, array in outputs.items():
                if not np.isfinite(array).all():
                    raise EngineError(f"the warm-up gave values in {name} that are no numbers; try another precision")

    def _split(self, inputs: Arrays) -> Iterator[Arrays]:
        num_rows, largest = self._num_rows(inputs), self.batch_sizes[-1]
        if num_rows <= largest:
            yield inputs
            return
        for start in range(0, num_rows, largest):
            yield {name: array[start : start + largest] for name, array in inputs.items()}

    def _run_padded(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        num_rows = self._num_rows(inputs)
        missing = next(size for size in self.batch_sizes if size >= num_rows) - num_rows
        if not missing:
            return self.run_exactly(inputs)
        padded = {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in inputs.items()}
        return {name: array[:num_rows] for name, array in self.run_exactly(padded).items()}

    def _num_rows(self, inputs: Arrays) -> int:
        assert inputs.keys() == self.rows.keys(), f"inputs {sorted(inputs)} where the network has {sorted(self.rows)}"
        counts = {len(array) for array in inputs.values()}
        assert len(counts) == 1 and counts != {0}, f"inputs of {sorted(counts)} rows"
        for name, array in inputs.items():
            row = self.rows[name]
            assert array.shape[1:] == row.shape and array.dtype == row.dtype, f"{name} is {array.dtype} {array.shape}"
        return counts.pop()
