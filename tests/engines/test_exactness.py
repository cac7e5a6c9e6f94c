from __future__ import annotations

import numpy as np
import pytest

from triptych.engines import CompiledNetwork, RowSpec
from triptych.engines.exactness import find_exact_batch_sizes

SIZES = (1, 2, 4, 8, 16)


def same(x):
    return x


def by_size(x):
    return x + np.float32(1e-7 if len(x) < 4 else 0)


def by_place(x):
    return x + np.float32(1e-6) * (np.arange(len(x), dtype=np.float32)[:, None] == 5)


def by_mates(x):
    return x + np.float32(1e-6) * x.mean(axis=0) if len(x) == 8 else x


def every_size_by_itself(x):
    return x + np.float32(len(x))


@pytest.mark.parametrize(
    ("kernel", "exact"),
    [
        (same, (1, 2, 4, 8, 16)),
        (by_size, (4, 8, 16)),
        (by_place, (1, 2, 4)),
        (by_mates, (1, 2, 4, 16)),
        (every_size_by_itself, (16,)),
        (lambda x: np.random.default_rng().standard_normal(x.shape), ()),
    ],
)
def test_sizes_are_exact_where_neither_place_nor_mates_nor_size_matter(kernel, exact):
    network = CompiledNetwork(lambda inputs: {"y": kernel(inputs["x"])}, {"x": RowSpec(shape=(3,))}, SIZES, from_cache=False)
    rows = {"x": np.random.default_rng(0).uniform(1, 2, (20, 3)).astype(np.float32)}
    assert find_exact_batch_sizes(network, rows) == exact
