from __future__ import annotations

import numpy as np
import pytest

from tests.engines.test_memory import wait_until_seen
from triptych.engines import CompiledNetwork, Exactness, RowSpec, compiled
from triptych.engines.compiled import cheapest_calls
from triptych.engines.memory import PassingMemory, resident_bytes
from triptych.errors import EngineError

ROWS = {"x": RowSpec(shape=(2,)), "n": RowSpec(shape=(), dtype="int32")}


class Recorder:
    """A network that adds its inputs, and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, inputs):
        assert all(array.flags.c_contiguous for array in inputs.values())
        self.calls.append(len(inputs["x"]))
        self.last = inputs
        return {"y": inputs["x"] + inputs["n"][:, None]}


def inputs(num_rows: int):
    return {"x": np.arange(2 * num_rows, dtype=np.float32).reshape(num_rows, 2), "n": np.arange(num_rows, dtype=np.int32)}


@pytest.mark.parametrize(
    ("num_rows", "calls"),
    [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (5, [4, 1]), (7, [4, 4]), (8, [4, 4]), (10, [4, 4, 2])],
)
def test_only_its_batch_sizes_are_run(num_rows, calls):
    run = Recorder()
    network = CompiledNetwork(run, ROWS, (4, 1, 2), from_cache=False)

    outputs = network(inputs(num_rows))

    assert run.calls == calls
    np.testing.assert_array_equal(outputs["y"], inputs(num_rows)["x"] + inputs(num_rows)["n"][:, None])


@pytest.mark.parametrize(
    ("num_rows", "exact", "calls"),
    [(1, (1,), [1]), (3, (1,), [1, 1, 1]), (1, (2,), [2]), (5, (1, 2), [2, 2, 1]), (5, (2, 4), [4, 2]), (16, (1, 4), [4] * 4)],
)
def test_only_exact_batch_sizes_are_run(num_rows, exact, calls):
    run = Recorder()
    network = CompiledNetwork(run, ROWS, (1, 2, 4, 8), from_cache=False)
    network.use(Exactness(batch_sizes=exact, largest_difference=0.5, seconds={1: 1, 2: 2, 4: 4, 8: 1}), exactly=True)

    outputs = network(inputs(num_rows))

    assert network.usable_batch_sizes == exact
    assert run.calls == calls
    np.testing.assert_array_equal(outputs["y"], inputs(num_rows)["x"] + inputs(num_rows)["n"][:, None])


def test_where_exactness_is_not_wanted_all_sizes_are_run():
    run = Recorder()
    network = CompiledNetwork(run, ROWS, (1, 2, 4), from_cache=False)
    network.use(Exactness(batch_sizes=(1,), largest_difference=0.5, seconds={1: 1, 2: 1, 4: 1}), exactly=False)
    network(inputs(4))
    assert run.calls == [4]


@pytest.mark.parametrize(
    ("seconds", "exactly", "capacity", "calls_of_eight"),
    [
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 2.4}, False, 8, [8]),  # the larger, the cheaper a row
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 5.0}, False, 4, [4, 4]),  # eight at once are too many for this machine
        ({1: 1.0, 2: 2.5, 4: 6.0, 8: 20.0}, False, 1, [1] * 8),
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 3.3}, False, 8, [4, 4]),  # as good as equal
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 2.4}, True, 4, [4, 4]),  # eight is not exact
        ({1: 1.0, 2: 1.2, 4: 9.0, 8: 2.4}, True, 4, [2, 2, 2, 2]),  # only exact=false gives up company
    ],
)
def test_calls_and_capacity_follow_the_seconds_that_were_measured(seconds, exactly, capacity, calls_of_eight):
    run = Recorder()
    network = CompiledNetwork(run, ROWS, (1, 2, 4, 8), from_cache=False)
    assert network.capacity == 8
    network.use(Exactness(batch_sizes=(1, 2, 4), largest_difference=0.5, seconds=seconds), exactly=exactly)
    network(inputs(8))
    assert (network.capacity, run.calls) == (capacity, calls_of_eight)


def test_a_network_without_an_exact_size_is_refused_unless_that_is_wanted():
    network = CompiledNetwork(Recorder(), ROWS, (1, 2), from_cache=False)
    nothing = Exactness(batch_sizes=(), largest_difference=0.5, seconds={1: 1, 2: 1})
    with pytest.raises(EngineError, match=r"no batch size of 1, 2 gives a row the same bytes twice .* or exact=false"):
        network.use(nothing, exactly=True)
    network.use(nothing, exactly=False)
    assert network.usable_batch_sizes == (1, 2)


@pytest.mark.parametrize(
    ("num_rows", "costs", "calls"),
    [
        (3, {1: 1, 2: 2, 4: 4}, [2, 1]),
        (3, {1: 10, 2: 11, 4: 18}, [4]),
        (7, {1: 1, 2: 1.4, 4: 2.5, 8: 5.1}, [4, 2, 1]),
        (7, {1: 1, 2: 1.5, 4: 2.5, 8: 4.9}, [8]),
        (9, {4: 4, 8: 6}, [8, 4]),
        (100, {1: 1, 16: 5}, [16] * 6 + [1] * 4),
    ],
)
def test_the_calls_that_cost_least(num_rows, costs, calls):
    assert cheapest_calls(num_rows, costs) == calls


def test_padding_repeats_the_last_row():
    run = Recorder()
    CompiledNetwork(run, ROWS, (4,), from_cache=False)(inputs(3))
    np.testing.assert_array_equal(run.last["n"], [0, 1, 2, 2])


def test_strided_inputs_arrive_contiguous():
    network = CompiledNetwork(Recorder(), ROWS, (3,), from_cache=False)
    strided = {"x": np.ones((2, 3), np.float32).T, "n": np.arange(6, dtype=np.int32)[::2]}
    np.testing.assert_array_equal(network(strided)["y"], [[1, 1], [3, 3], [5, 5]])


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": np.zeros((1, 2), np.float32)},
        {"x": np.zeros((1, 3), np.float32), "n": np.zeros(1, np.int32)},
        {"x": np.zeros((1, 2), np.float64), "n": np.zeros(1, np.int32)},
        {"x": np.zeros((2, 2), np.float32), "n": np.zeros(1, np.int32)},
        {"x": np.zeros((0, 2), np.float32), "n": np.zeros(0, np.int32)},
    ],
)
def test_inputs_that_are_not_its_own_are_our_mistake(wrong):
    with pytest.raises(AssertionError):
        CompiledNetwork(Recorder(), ROWS, (1, 2), from_cache=False)(wrong)


def test_warming_up_runs_every_batch_size():
    run = Recorder()
    CompiledNetwork(run, ROWS, (1, 2, 4), from_cache=False).warm_up()
    assert run.calls == [1, 2, 4]


@pytest.mark.parametrize("tried", [(), (1, 2, 4)])
def test_the_warm_up_measures_the_memory_of_a_call_of_the_largest(monkeypatch, tried):
    run = Recorder()
    measured: list[int] = []

    class Watch(PassingMemory):
        def __exit__(self, *exception):
            super().__exit__(*exception)
            self.bytes, measured[:] = 123, run.calls[self.before :]

        def __enter__(self):
            self.before = len(run.calls)
            return super().__enter__()

    monkeypatch.setattr(compiled, "PassingMemory", Watch)
    network = CompiledNetwork(run, ROWS, (1, 2, 4), from_cache=False)
    for size in tried:
        network.try_out({name: np.zeros((size, *row.shape), row.dtype) for name, row in ROWS.items()})
    assert network.call_bytes == 0
    network.warm_up()
    assert (network.call_bytes, measured) == (123, [4])


@pytest.mark.parametrize("keeps_memory", [True, False])
def test_what_takes_turns_gives_back_what_the_engine_keeps(keeps_memory):
    kept = 64 * 2**20
    engine: list[np.ndarray] = []

    def run(filled):
        engine[:] = engine or [np.ones(kept, np.uint8)]
        return {"y": filled["x"]}

    network = CompiledNetwork(run, ROWS, (1, 2), from_cache=False, give_back=engine.clear)
    network.keeps_memory = keeps_memory
    network.try_out(inputs(1))
    network.warm_up()
    assert bool(engine) is keeps_memory
    assert (network.call_bytes > kept // 2) is not keeps_memory  # what is given back is part of a call
    network(inputs(3))
    assert bool(engine) is keeps_memory


def test_a_larger_call_takes_more_memory(monkeypatch):
    """What a call has only meanwhile, and what it returns; not what stays."""
    mebibyte = 2**20  # arrays of 32 and more are given back as soon as they are freed
    watching: list[PassingMemory] = []
    kept: list[np.ndarray] = []

    class Watch(PassingMemory):
        def __enter__(self):
            watching.append(self)
            return super().__enter__()

    def run(inputs):
        rows = len(inputs["x"])
        scratch = np.ones(rows * 48 * mebibyte, np.uint8)
        outputs = np.ones((rows, 10 * mebibyte), np.float32)
        if watching:
            kept.append(np.ones(64 * mebibyte, np.uint8))
            wait_until_seen(watching[-1], resident_bytes() - 2 * mebibyte)
        assert scratch[-1] == 1
        return {"y": outputs}

    monkeypatch.setattr(compiled, "PassingMemory", Watch)
    measured = []
    for batch_sizes in ((1,), (1, 2)):
        watching.clear()
        network = CompiledNetwork(run, ROWS, batch_sizes, from_cache=False)
        network.warm_up()
        measured.append(network.call_bytes / mebibyte)
    assert 72 < measured[0] < 104  # 88
    assert 152 < measured[1] < 200  # 176


def test_a_network_that_returns_no_numbers_fails_its_warm_up():
    network = CompiledNetwork(lambda inputs: {"y": np.full(1, np.nan)}, ROWS, (1,), from_cache=False)
    with pytest.raises(EngineError, match="values in y that are no numbers"):
        network.warm_up()
