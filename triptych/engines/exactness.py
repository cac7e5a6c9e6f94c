"""Which batch sizes give a row the same bytes, whatever its place and its mates.

Kernels are chosen by shape, and a sum in another order is another number. Found by trying, once for each compiled network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from triptych.engines.compiled import Arrays, CompiledNetwork


def find_exact_batch_sizes(network: CompiledNetwork, rows: Arrays) -> tuple[int, ...]:
    """The most batch sizes that agree with themselves and with each other, byte for byte; of equally many, the larger.

    Costs three calls of each size.

    Args:
        network: Already warm.
        rows: Inputs like those of requests, all different; more rows than the largest batch size.
    """
    groups: list[dict[int, bytes]] = []
    sizes_of_groups: list[list[int]] = []
    for size in network.batch_sizes:
        results = _results(network, rows, size)
        if results is None:
            continue
        for group, sizes in zip(groups, sizes_of_groups, strict=True):
            if all(group.get(row, content) == content for row, content in results.items()):
                group.update(results)
                sizes.append(size)
                break
        else:
            groups.append(results)
            sizes_of_groups.append([size])
    best = max(sizes_of_groups, key=_rank, default=[])
    return tuple(best)


def _rank(sizes: list[int]) -> tuple[int, int]:
    return len(sizes), sizes[-1]


def _results(network: CompiledNetwork, rows: Arrays, size: int) -> dict[int, bytes] | None:
    """What each row gave at this size; None where one gave different things."""
    results: dict[int, bytes] = {}
    for numbers in _arrangements(len(next(iter(rows.values()))), size):
        outputs = network.run_exactly({name: array[numbers] for name, array in rows.items()})
        for place, number in enumerate(numbers.tolist()):
            content = b"".join(array[place].tobytes() for _, array in sorted(outputs.items()))
            if results.setdefault(number, content) != content:
                return None
    return results


def _arrangements(num_rows: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Row 0 first, last and in the middle, among others in changing order: so all sizes have at least one row in common."""
    generator = np.random.default_rng(size)
    for place in (0, size - 1, size // 2):
        mates = generator.permutation(np.arange(1, num_rows))[: size - 1]
        yield np.insert(mates, place, 0)
