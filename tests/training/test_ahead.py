"""Work done ahead comes in order, not too far ahead, and its errors come out."""

from __future__ import annotations

import operator

import pytest

from training.ahead import in_order


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(in_order(pow, [(i, 2) for i in range(20)], workers=workers)) == [i * i for i in range(20)]


def test_errors_come_out_where_the_result_would_have() -> None:
    results = in_order(operator.truediv, [(1, 1), (1, 0)])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_only_a_few_are_made_ahead() -> None:
    made: list[int] = []
    results = in_order(made.append, ((i,) for i in range(100)))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(made) < 10
