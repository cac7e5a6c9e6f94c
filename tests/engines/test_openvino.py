from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from tests.engines.other_process import run_toy
from tests.engines.toy_network import compile_toy, expected, refuse_to_build, toy_inputs, toy_source, weights
from triptych.engines import NetworkSource, Precision, get_engine, hardware
from triptych.engines.cache import keep_bytes, kept_bytes
from triptych.engines.exactness import find_exactness
from triptych.engines.openvino import _CAPABILITIES
from triptych.errors import CheckpointError, EngineError

KERNELS = [array.size for name, array in weights().items() if name != "bias"]
CACHED = replace(toy_source(), build=refuse_to_build)


@pytest.fixture(scope="module")
def engine():
    return get_engine("openvino", threads=2)


@pytest.fixture(scope="module")
def template(engine, tmp_path_factory) -> Path:
    """A cache with the toy network in it. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("template")
    compile_toy(engine, folder)
    return folder


@pytest.fixture
def filled(template, cache_folder) -> Path:
    return Path(shutil.copytree(template, cache_folder))


def compiled_files(cache_folder: Path) -> list[Path]:
    return sorted(cache_folder.glob("toy-openvino-*/compiled/*"))


@pytest.mark.parametrize("half", [True, False])
def test_it_computes_what_the_network_says(engine, cache_folder, half):
    network = compile_toy(engine, cache_folder, source=toy_source(half=half))
    network.warm_up()
    inputs = toy_inputs(7)
    outputs = network(inputs)
    for name, wanted in expected(inputs, half=half).items():
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=1e-5)


def test_outputs_are_not_overwritten_by_the_next_call(engine, filled):
    network = compile_toy(engine, filled, source=CACHED)
    first = network(toy_inputs(2, seed=1))["prediction"]
    kept = first.copy()
    network(toy_inputs(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_a_start_from_disk_gives_the_same_bytes(engine, cache_folder):
    built = compile_toy(engine, cache_folder)
    loaded = compile_toy(engine, cache_folder, source=CACHED)
    assert (built.from_cache, loaded.from_cache) == (False, True)
    assert len(compiled_files(cache_folder)) == 3
    for num_rows in (1, 2, 3):
        inputs = toy_inputs(num_rows)
        np.testing.assert_array_equal(built(inputs)["prediction"], loaded(inputs)["prediction"])


def test_a_start_from_disk_imports_no_keras(filled):
    answer = run_toy("openvino", "float32", filled)
    assert answer["float32"]["from_cache"]
    assert answer["float32"]["error"] < 1e-5
    assert not answer["keras"]


def test_another_batch_size_or_precision_needs_no_building(engine, filled):
    network = compile_toy(engine, filled, source=CACHED, batch_sizes=(2, 3))
    assert network.batch_sizes == (2, 3)
    assert network(toy_inputs(3))["context"].shape == (3, 6, 3)
    assert len(compiled_files(filled)) == 4


def test_other_weights_are_another_network(engine, filled):
    network = compile_toy(engine, filled, source=toy_source(key="retrained"))
    assert not network.from_cache


def test_a_damaged_compilation_is_made_anew(engine, filled):
    for path in compiled_files(filled):
        path.write_bytes(path.read_bytes()[:-1])
    assert all(kept_bytes(path) is None for path in compiled_files(filled))

    network = compile_toy(engine, filled, source=CACHED)

    np.testing.assert_allclose(network(toy_inputs(1))["context"], expected(toy_inputs(1))["context"], rtol=1e-5)
    assert all(kept_bytes(path) is not None for path in compiled_files(filled))


def test_a_compilation_that_openvino_refuses_is_made_anew(engine, filled, caplog):
    for path in compiled_files(filled):
        keep_bytes(path, b"of another version")
    with caplog.at_level(logging.WARNING):
        network = compile_toy(engine, filled, source=CACHED)
    assert "cannot be read and is compiled anew" in caplog.text
    assert network(toy_inputs(1))["context"].shape == (1, 6, 3)


def test_of_a_large_network_only_the_graph_is_kept(engine, cache_folder, monkeypatch):
    monkeypatch.setattr("triptych.engines.openvino._LARGE", 1000)
    compile_toy(engine, cache_folder)
    again = compile_toy(engine, cache_folder, source=CACHED)
    assert again(toy_inputs(3))["context"].shape == (3, 6, 3)
    assert compiled_files(cache_folder) == []


def test_weights_are_kept_as_openvino_wants_to_map_them(engine, filled):
    (graph,) = filled.glob("toy-openvino-*/network.xml")
    operations = ov.Core().read_model(graph).get_ops()
    large = [each for each in operations if each.get_type_name() == "Constant" and each.data.size in KERNELS]
    assert sorted(each.data.size for each in large) == sorted(KERNELS)
    for constant in large:
        (user,) = constant.output(0).get_target_inputs()
        assert constant.get_element_type() == ov.Type.f32
        assert user.get_node().get_type_name() in ("Convolution", "Gather")


def test_rows_do_not_depend_on_their_mates(engine, filled):
    assert find_exactness(compile_toy(engine, filled, source=CACHED), toy_inputs(6)).batch_sizes == (1, 2, 4)


@pytest.mark.parametrize(("has_bfloat16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_the_best_precision_is_that_of_the_cpu(engine, monkeypatch, has_bfloat16, precision):
    monkeypatch.setattr("triptych.engines.openvino.has_bfloat16", lambda: has_bfloat16)
    assert engine.choose_precision("auto") == precision


@pytest.mark.parametrize(
    ("wanted", "has_bfloat16", "taken"),
    [("bfloat16", False, "float32"), ("float16", True, "bfloat16"), ("float16", False, "float32")],
)
def test_what_the_cpu_lacks_gives_way_to_the_next_best(engine, monkeypatch, caplog, wanted, has_bfloat16, taken):
    monkeypatch.setattr("triptych.engines.openvino._CAPABILITIES", {**_CAPABILITIES, Precision.FLOAT16: "lacking"})
    monkeypatch.setattr("triptych.engines.openvino.has_bfloat16", lambda: has_bfloat16)
    assert engine.choose_precision(wanted) == taken
    assert [record.message for record in caplog.records] == [
        f"this machine does not compute in {wanted}: the next best is taken, {taken}"
    ]


def test_a_precision_that_there_is_not_is_refused_with_those_that_there_are(engine):
    assert engine.choose_precision("float32") == "float32"
    with pytest.raises(EngineError, match=r"openvino has no precision 'int4'; choose float32, .* or auto"):
        engine.choose_precision("int4")


def test_it_says_who_it_is(engine):
    assert (engine.name, engine.device) == ("openvino", "cpu")
    assert engine.version.count(".") >= 2
    assert hardware.instruction_set() in ("amx_bf16", "avx512_bf16") or engine.choose_precision("auto") == "float32"


def test_an_error_of_the_building_goes_to_the_caller(engine, cache_folder):
    def fail():
        raise CheckpointError("there are no weights")

    with pytest.raises(CheckpointError, match="there are no weights"):
        compile_toy(engine, cache_folder, source=NetworkSource(name="toy", build=fail, key={}))
    assert list(cache_folder.iterdir()) == []
