from __future__ import annotations

import logging

import pytest

from triptych.engines import hardware
from triptych.engines.precision import FLOATS, Precision, chosen_precision, precisions_of_cpu, precisions_of_gpu
from triptych.errors import EngineError

HALF = "bfloat16" if hardware.has_bfloat16() else "float32"
CHOICES_ON_THIS_CPU = {
    "float16": "float16" if hardware.has_float16() else HALF,
    "bfloat16": HALF,
    "float32": "float32",
}
"""What the engines take that go by the CPU's instructions alone."""


def choose(wanted: str, *offered: Precision) -> Precision:
    return chosen_precision(wanted, engine="toy", offered=offered, best=offered[0])


def test_what_the_machine_computes_in_is_taken_as_it_is(caplog):
    for precision in FLOATS:
        assert choose(precision, *FLOATS) is precision
    assert choose("auto", Precision.FLOAT16, Precision.FLOAT32) is Precision.FLOAT16
    assert caplog.records == []


@pytest.mark.parametrize(
    ("wanted", "offered", "taken"),
    [
        ("float16", (Precision.FLOAT32, Precision.BFLOAT16), Precision.BFLOAT16),
        ("float16", (Precision.FLOAT32,), Precision.FLOAT32),
        # A T4's: float16 would overflow where bfloat16 does not.
        ("bfloat16", (Precision.FLOAT16, Precision.FLOAT32), Precision.FLOAT32),
    ],
)
def test_the_next_best_is_taken_and_said_once(caplog, wanted, offered, taken):
    with caplog.at_level(logging.WARNING):
        assert choose(wanted, *offered) is taken
    (record,) = caplog.records
    assert record.message == f"this machine does not compute in {wanted}: the next best is taken, {taken}"


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(EngineError, match=r"the engine toy has no precision 'float8'; choose float32, bfloat16, .* or auto"):
        choose("float8", Precision.FLOAT32)


def test_int8_is_for_the_engine_that_has_it(caplog):
    with pytest.raises(EngineError, match="the engine toy has no precision 'int8'"):
        choose("int8", *FLOATS)
    offered = Precision.FLOAT32, Precision.BFLOAT16
    told = {"engine": "toy", "known": tuple(Precision), "best": Precision.FLOAT32}
    assert chosen_precision("int8", offered=(*offered, Precision.INT8), **told) is Precision.INT8
    assert caplog.records == []
    assert chosen_precision("int8", offered=offered, **told) is Precision.BFLOAT16
    assert "this machine does not compute in int8: the next best is taken, bfloat16" in caplog.text


@pytest.mark.parametrize(
    ("has_bfloat16", "has_float16", "precisions"),
    [
        (False, False, ("float32",)),
        (True, False, ("float32", "bfloat16")),
        (True, True, ("float32", "bfloat16", "float16")),
    ],
)
def test_a_cpu_computes_in_what_it_has_instructions_for(monkeypatch, has_bfloat16, has_float16, precisions):
    monkeypatch.setattr("triptych.engines.precision.has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr("triptych.engines.precision.has_float16", lambda: has_float16)
    assert precisions_of_cpu() == precisions


@pytest.mark.parametrize(("generation", "best"), [(7, "float16"), (8, "bfloat16"), (9, "bfloat16"), (None, "bfloat16")])
def test_of_gpus_the_older_ones_have_no_bfloat16(generation, best):
    offered = precisions_of_gpu(generation)
    assert offered[0] == best
    assert ("bfloat16" in offered) == (best == "bfloat16")
