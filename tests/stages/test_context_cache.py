from __future__ import annotations

import numpy as np

from triptych.stages.context_cache import ContextCache


def context(value: float):
    return np.full((2, 3), value, np.float32)


def test_what_was_kept_is_found():
    cache = ContextCache(2)
    cache.keep({b"a": context(1)})
    np.testing.assert_array_equal(cache.get(b"a"), context(1))
    assert cache.get(b"b") is None


def test_what_was_not_asked_for_longest_goes_first():
    cache = ContextCache(2)
    cache.keep({b"a": context(1), b"b": context(2)})
    cache.get(b"a")
    cache.keep({b"c": context(3)})
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert len(cache) == 2


def test_a_kept_context_holds_no_larger_array():
    batch = np.zeros((8, 2, 3), np.float32)
    cache = ContextCache(1)
    cache.keep({b"a": batch[3]})
    kept = cache.get(b"a")
    assert kept is not None
    assert kept.base is None


def test_a_cache_of_none_keeps_nothing():
    cache = ContextCache(0)
    cache.keep({b"a": context(1)})
    assert len(cache) == 0
