from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from triptych.engines import CompiledNetwork, Exactness, RowSpec
from triptych.engines.exactness import exactness_file, exactness_of, example_rows, find_exactness

SIZES = (1, 2, 4, 8, 16)
ROWS = {"x": RowSpec(shape=(3,))}


def network_of(kernel, path=None, sizes=SIZES) -> CompiledNetwork:
    return CompiledNetwork(lambda inputs: {"y": kernel(inputs["x"])}, ROWS, sizes, from_cache=False, exactness_file=path)


def refuse_to_run(x):
    raise AssertionError("the batch sizes were tried although the answer is kept")


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


def at_random(x):
    return np.random.default_rng().standard_normal(x.shape)


@pytest.mark.parametrize(
    ("kernel", "exact", "difference"),
    [
        (same, (1, 2, 4, 8, 16), 0),
        (by_size, (4, 8, 16), 1e-7),
        (by_place, (1, 2, 4), 1e-6),
        (by_mates, (1, 2, 4, 16), 2e-6),
        # What any request pays for rows that nobody asked for decides: neither 1 nor 16.
        (every_size_by_itself, (4,), 12),
        (at_random, (), 5),
    ],
)
def test_sizes_are_exact_where_neither_place_nor_mates_nor_size_matter(kernel, exact, difference):
    rows = {"x": np.random.default_rng(0).uniform(1, 2, (20, 3)).astype(np.float32)}
    exactness = find_exactness(network_of(kernel), rows)
    assert exactness.batch_sizes == exact
    assert difference / 3 <= exactness.largest_difference <= difference * 3
    assert sorted(exactness.seconds) == list(SIZES)


@pytest.mark.parametrize(
    ("size", "kernel", "exact"),
    [
        (1, same, (1,)),
        (1, at_random, ()),
        (2, same, (2,)),
        (2, lambda x: x + np.float32(1e-6) * np.arange(2, dtype=np.float32)[:, None], ()),
        (2, lambda x: x + np.float32(1e-6) * x.mean(axis=0), ()),
    ],
)
def test_the_one_size_of_a_large_network_is_tried_in_two_calls(size, kernel, exact):
    calls = []

    def counted(x):
        calls.append(len(x))
        return kernel(x)

    network = network_of(counted, sizes=(size,))
    assert find_exactness(network, example_rows(ROWS, 6)).batch_sizes == exact
    assert calls == [size, size]


def test_it_is_found_out_once(tmp_path, caplog):
    path = exactness_file(tmp_path, "a machine", SIZES)
    with caplog.at_level(logging.INFO):
        found = exactness_of(network_of(by_size, path))
    assert found.batch_sizes == (4, 8, 16)
    assert "those that are exact are (4, 8, 16); the others differ by 1.2e-07" in caplog.text
    assert os.listdir(path.parent) == [path.name]

    assert exactness_of(network_of(refuse_to_run, path)) == found


def test_another_machine_finds_out_for_itself(tmp_path):
    exactness_of(network_of(by_size, exactness_file(tmp_path, "a machine")))
    assert exactness_of(network_of(same, exactness_file(tmp_path, "another machine"))).batch_sizes == SIZES


def test_a_damaged_note_is_made_anew(tmp_path):
    path = exactness_file(tmp_path, "a machine")
    exactness_of(network_of(by_size, path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert isinstance(exactness_of(network_of(by_size, path)), Exactness)
    assert len(path.read_bytes()) > len(whole) - 20


def test_examples_are_what_inputs_may_be():
    rows = {"tokens": RowSpec(shape=(5,), dtype="int32", below=7), "x": RowSpec(shape=(2, 2)), "t": RowSpec(shape=(), below=1000)}
    examples = example_rows(rows, 40)
    assert {name: (array.shape, array.dtype.name) for name, array in examples.items()} == {
        "tokens": ((40, 5), "int32"),
        "x": ((40, 2, 2), "float32"),
        "t": ((40,), "float32"),
    }
    assert set(examples["tokens"].ravel()) == set(range(7))
    assert 0 < examples["t"].max() < 1000
    assert -5 < examples["x"].min() < 0
