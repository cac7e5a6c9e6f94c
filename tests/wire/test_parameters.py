from __future__ import annotations

import pytest

from triptych.errors import InvalidValue
from triptych.wire.open_inference import Scalar
from triptych.wire.parameters import Parameters


def read(values: dict[str, Scalar]) -> tuple[object, ...]:
    parameters = Parameters(values)
    read = (
        parameters.flag("flag", default=False),
        parameters.integer("integer", default=3, minimum=1, maximum=9),
        parameters.number("number", default=0.5, minimum=0, maximum=2),
        parameters.text("text", default="b"),
        parameters.choice("choice", ("c", "d")),
        parameters.optional_integer("count", minimum=2, maximum=5),
    )
    parameters.finish()
    return read


def test_absent_parameters_have_their_defaults() -> None:
    assert read({}) == (False, 3, 0.5, "b", None, None)


def test_present_parameters_are_read() -> None:
    values = {"flag": True, "integer": 9, "number": 2, "text": "a" * 64, "choice": "c", "count": 2}
    assert read(values) == (True, 9, 2.0, "a" * 64, "c", 2)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"flag": 1}, "flag must be true or false"),
        ({"integer": 0}, "integer must be a whole number from 1 to 9"),
        ({"integer": 10}, "integer must be a whole number from 1 to 9"),
        ({"integer": 3.0}, "integer must be a whole number"),
        ({"integer": True}, "integer must be a whole number"),
        ({"integer": "3"}, "integer must be a whole number"),
        ({"number": 2.5}, "number must be a number from 0 to 2"),
        ({"number": -1}, "number must be a number from 0 to 2"),
        ({"number": True}, "number must be a number"),
        ({"number": "1"}, "number must be a number"),
        ({"number": 10**400}, "number must be a number"),
        ({"text": 1}, "text must be a text of at most 64 characters"),
        ({"text": "a" * 65}, "text must be a text of at most 64 characters"),
        ({"choice": "a"}, "choice must be one of c, d"),
        ({"choice": 1}, "choice must be one of c, d"),
        ({"count": 1}, "count must be a whole number from 2 to 5"),
        ({"steps": 3}, "there is no parameter 'steps'; there are flag, integer, number, text, choice, count"),
    ],
)
def test_what_is_impossible_is_refused(values: dict[str, Scalar], sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence) as refused:
        read(values)
    assert refused.value.param == next(iter(values))
