"""A compiled network: called with any number of rows, it runs only batch sizes that it was compiled for and may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.engines.memory import PassingMemory
from triptych.errors import EngineError

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""Inputs of exactly one of the batch sizes to outputs that nobody else writes to."""

# What a call costs beside its rows, in rows, as long as nobody has measured: between a small network, where it is three rows,
# and one of Stable Diffusion's size on a CPU, where it is hardly any.
_ROWS_OF_A_CALL = 2.0

# What was measured of two ways to run the same rows may differ by so much without meaning anything.
_NOISE = 1.1


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """One input of a network: the shape of a row, without the batch, and numpy's name of the type.

    Attributes:
        below: Values of this input are from 0 up to this, without it; None is standard normal. Decides what the network is
            tried with, and nothing else.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    below: int | None = None


@dataclass(frozen=True, kw_only=True)
class Exactness:
    """What is known of a compiled network's batch sizes.

    Attributes:
        batch_sizes: Those at which a row's bytes depend neither on its place, nor on its mates, nor on which of them it is.
        largest_difference: Between what any size gave a row and what these gave it.
        seconds: Of a call, by batch size.
    """

    batch_sizes: tuple[int, ...]
    largest_difference: float
    seconds: Mapping[int, float]


class CompiledNetwork:
    """Named arrays of B rows to named arrays of B rows. To be called by one thread at a time.

    Args:
        run: What the engine made.
        rows: What one row of each input looks like.
        batch_sizes: Those that `run` takes.
        from_cache: Whether it was read from disk instead of built.
        exactness_file: Where to keep what is found out of the batch sizes: a path for each network, precision, machine and list
            of batch sizes. None keeps nothing.
        give_back: Has the engine give back what memory it keeps for the next call.

    Attributes:
        exactness: None until it is known.
        usable_batch_sizes: Those that a call may run, ascending: all, until `use` says otherwise.
        keeps_memory: Whether the engine may keep, from one call to the next, the memory that it works in. Networks that take
            turns need not: together they take as much as the largest then, at a few hundredths of their time.
        call_bytes: Memory that a call of the largest batch size takes as long as it runs, its outputs included, as the warm-up
            measured it. What the engine keeps between calls is no part of it; what it gives back is, for all batch sizes.
    """

    def __init__(
        self,
        run: Run,
        rows: Mapping[str, RowSpec],
        batch_sizes: Sequence[int],
        *,
        from_cache: bool,
        exactness_file: Path | None = None,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.rows = dict(rows)
        self.batch_sizes = tuple(sorted(set(batch_sizes)))
        self.from_cache = from_cache
        self.exactness_file = exactness_file
        self.exactness: Exactness | None = None
        self.usable_batch_sizes = self.batch_sizes
        self.keeps_memory = True
        self.call_bytes = 0
        self._run = run
        self._give_back = give_back
        self._exactly = False
        self._costs: Mapping[int, float] = {size: size + _ROWS_OF_A_CALL for size in self.batch_sizes}
        self._splits: dict[int, list[int]] = {}
        self._warm: set[int] = set()

    def use(self, exactness: Exactness, *, exactly: bool) -> None:
        """Takes note of what is known of the batch sizes.

        Args:
            exactly: Run none but the exact ones from now on.

        Raises:
            EngineError: There are no exact ones, and only those may be run.
        """
        if exactly and not exactness.batch_sizes:
            tried = ", ".join(map(str, self.batch_sizes))
            raise EngineError(
                f"no batch size of {tried} gives a row the same bytes twice on this machine; choose other batch sizes, "
                "another precision or engine, or exact=false"
            )
        self.exactness = exactness
        self._exactly = exactly
        self.usable_batch_sizes = exactness.batch_sizes if exactly else self.batch_sizes
        self._costs = exactness.seconds
        self._splits.clear()

    @property
    def capacity(self) -> int:
        """Rows to gather for a call: the largest usable batch size. Where bytes may depend on it anyway, the largest worth having
        by the seconds measured: rows beyond would wait for each other, and then be run in smaller calls all the same.
        """
        if self._exactly:
            return self.usable_batch_sizes[-1]
        costs = {size: self._costs[size] for size in self.usable_batch_sizes}
        return max(size for size in costs if costs[size] <= _NOISE * sum(costs[call] for call in cheapest_calls(size, costs)))

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Evaluates the network, in the calls of usable batch sizes that cost least; the last is padded where it must be.

        Args:
            inputs: An array (B, ...) for each input, of its row's shape and type.
        """
        parts, start = [], 0
        try:
            for size in self._split(self._num_rows(inputs)):
                parts.append(self._run_padded({name: array[start : start + size] for name, array in inputs.items()}, size))
                start += size
        finally:
            if not self.keeps_memory:
                self._give_back()
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_exactly(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Evaluates the network for one of its batch sizes, as it is."""
        return self._run({name: np.ascontiguousarray(array) for name, array in inputs.items()})

    def try_out(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """As `run_exactly`, before the first request.

        Raises:
            EngineError: The network does not run, or returns what is not a number.
        """
        outputs = self.run_exactly(inputs)
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise EngineError(f"the warm-up gave values in {name} that are no numbers; try another precision")
        self._warm.add(self._num_rows(inputs))
        return outputs

    def warm_up(self) -> None:
        """Tries out every batch size that was not, so that no request is the first, and measures the largest.

        Raises:
            EngineError: As `try_out`.
        """
        for size in self.batch_sizes:
            if size not in self._warm and size != self.batch_sizes[-1]:
                self._try_size(size)
        with PassingMemory() as passing:
            self._try_size(self.batch_sizes[-1])
            if not self.keeps_memory:
                self._give_back()
        self.call_bytes = passing.bytes

    def _try_size(self, size: int) -> None:
        self.try_out({name: np.zeros((size, *row.shape), row.dtype) for name, row in self.rows.items()})

    def _split(self, num_rows: int) -> list[int]:
        if num_rows not in self._splits:
            self._splits[num_rows] = cheapest_calls(num_rows, {size: self._costs[size] for size in self.usable_batch_sizes})
        return self._splits[num_rows]

    def _run_padded(self, inputs: Arrays, size: int) -> dict[str, NDArray[Any]]:
        num_rows = len(next(iter(inputs.values())))
        missing = size - num_rows
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


def cheapest_calls(num_rows: int, costs: Mapping[int, float]) -> list[int]:
    """Batch sizes of the calls that together take so many rows and cost least, the largest first; the last may be too large.

    Args:
        costs: Of a call, by batch size.
    """
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for rows in range(1, num_rows + 1):
        befores = [(size, *best[max(0, rows - size)]) for size in costs]
        choices = [(costs[size] + cost, [*calls, size]) for size, cost, calls in befores]
        best.append(min(choices, key=lambda choice: (choice[0], len(choice[1]))))
    return sorted(best[num_rows][1], reverse=True)


def mean_cost_of_a_row(sizes: Sequence[int], most_rows: int) -> float:
    """What a row costs, in rows, where calls of every number of rows are equally frequent.

    The same on every machine: it decides which bytes a machine gives.
    """
    costs = {size: size + _ROWS_OF_A_CALL for size in sizes}
    numbers = range(1, most_rows + 1)
    return sum(sum(costs[size] for size in cheapest_calls(rows, costs)) / rows for rows in numbers) / most_rows
