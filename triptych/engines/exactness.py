"""Which batch sizes give a row the same bytes, whatever its place and its mates.

Kernels are chosen by shape, and a sum in another order is another number. Found by trying, once for each compiled network, and
kept beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.engines.cache import keep_bytes, kept_bytes
from triptych.engines.compiled import Arrays, CompiledNetwork, Exactness, RowSpec, mean_cost_of_a_row

_log = logging.getLogger(__name__)

_SEED = 20
# So that the rows of the largest batch size have not always the same mates.
_SPARE_ROWS = 4

Results = dict[int, NDArray[np.float32]]
"""What the network gave each row: all outputs, one after the other."""


def exactness_file(folder: Path, *circumstances: object) -> Path:
    """Where `exactness_of` keeps what it found.

    Args:
        folder: Of the compiled network.
        circumstances: What chooses kernels beside the network: machine, precision, library, batch sizes.
    """
    return folder / "exactness" / hashlib.sha256(repr(circumstances).encode()).hexdigest()[:16]


def exactness_of(network: CompiledNetwork) -> Exactness:
    """What is known of the network's batch sizes: as it was kept, else found now and kept."""
    path = network.exactness_file
    if path is not None and (content := kept_bytes(path)) is not None:
        return _read(content.tobytes())
    started = time.monotonic()
    exactness = find_exactness(network, example_rows(network.rows, network.batch_sizes[-1] + _SPARE_ROWS))
    _log.info(
        "of the batch sizes %s those that are exact are %s; the others differ by %.2g at most; found in %.1f s",
        *(network.batch_sizes, exactness.batch_sizes, exactness.largest_difference, time.monotonic() - started),
    )
    if path is not None:
        keep_bytes(path, _written(exactness))
    return exactness


def example_rows(rows: Mapping[str, RowSpec], count: int) -> Arrays:
    """Inputs like those of requests, all different."""
    generator = np.random.default_rng(_SEED)

    def draw(row: RowSpec) -> NDArray[Any]:
        shape = (count, *row.shape)
        values = generator.standard_normal(shape) if row.below is None else generator.integers(0, row.below, shape)
        return values.astype(row.dtype)

    return {name: draw(row) for name, row in rows.items()}


def find_exactness(network: CompiledNetwork, rows: Arrays) -> Exactness:
    """Finds the batch sizes that agree with themselves and with each other, byte for byte.

    Where they fall into several groups, the group that is cheapest for requests of all sizes.
    Costs three calls of each size, and two of sizes 1 and 2. They are its warm-up.

    Args:
        network: A call of each size may be the first.
        rows: Inputs like those of requests, all different; more rows than the largest batch size.
    """
    groups: list[tuple[list[int], Results]] = []
    tried: list[Results] = []
    seconds: dict[int, float] = {}
    for size in network.batch_sizes:
        calls, seconds[size] = _try(network, rows, size)
        tried += calls
        results = _merged(calls)
        if results is None:
            continue
        for sizes, of_group in groups:
            if _agree(of_group, results):
                of_group.update(results)
                sizes.append(size)
                break
        else:
            groups.append(([size], results))
    most_rows = network.batch_sizes[-1]
    exact, reference = min(groups, key=lambda group: mean_cost_of_a_row(group[0], most_rows), default=([], {}))
    reference = reference or _first_of_each(tried)
    return Exactness(
        batch_sizes=tuple(exact),
        largest_difference=max((_difference(reference, results) for results in tried), default=0.0),
        seconds=seconds,
    )


def _try(network: CompiledNetwork, rows: Arrays, size: int) -> tuple[list[Results], float]:
    """What each call of this size gave, and the seconds of the fastest."""
    calls: list[Results] = []
    seconds: list[float] = []
    for numbers in _arrangements(len(next(iter(rows.values()))), size):
        inputs = {name: array[numbers] for name, array in rows.items()}
        started = time.perf_counter()
        outputs = network.try_out(inputs)
        seconds.append(time.perf_counter() - started)
        calls.append(
            {
                number: np.concatenate([array[place].ravel() for _, array in sorted(outputs.items())])
                for place, number in enumerate(numbers.tolist())
            }
        )
    return calls, min(seconds)


def _merged(calls: list[Results]) -> Results | None:
    """What each row gave; None where one gave different things."""
    merged: Results = {}
    for results in calls:
        if not _agree(merged, results):
            return None
        merged.update(results)
    return merged


def _first_of_each(calls: list[Results]) -> Results:
    return {number: array for results in reversed(calls) for number, array in results.items()}


def _agree(one: Results, other: Results) -> bool:
    return all(one[row].tobytes() == other[row].tobytes() for row in one.keys() & other.keys())


def _difference(one: Results, other: Results) -> float:
    return max((float(np.abs(one[row] - other[row]).max()) for row in one.keys() & other.keys()), default=0.0)


def _arrangements(num_rows: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Row 0 first, last and in the middle, each time among other mates: so all sizes have at least one row in common."""
    mates = np.random.default_rng(size).permutation(np.arange(1, num_rows))
    places = (0, size - 1, size // 2)
    for place in places if size > 2 else places[:2]:  # a third call of a large network takes seconds and would tell nothing new
        yield np.insert(mates[: size - 1], place, 0)
        mates = np.roll(mates, 1 - size)


def _written(exactness: Exactness) -> bytes:
    document = {
        "batch_sizes": exactness.batch_sizes,
        "largest_difference": exactness.largest_difference,
        "seconds": list(exactness.seconds.items()),
    }
    return json.dumps(document).encode()


def _read(content: bytes) -> Exactness:
    document = json.loads(content)
    return Exactness(
        batch_sizes=tuple(document["batch_sizes"]),
        largest_difference=document["largest_difference"],
        seconds=dict(document["seconds"]),
    )
