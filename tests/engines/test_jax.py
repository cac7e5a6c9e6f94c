from __future__ import annotations

from tests.engines.other_process import run_toy
from tests.engines.test_precision import CHOICES_ON_THIS_CPU, HALF

OUTPUTS = {"context": ["float32", [7, 6, 3]], "prediction": ["float32", [7, 4, 4, 3]]}


def test_it_computes_what_the_network_says_built_and_from_disk(cache_folder):
    built = run_toy("jax", "float32,bfloat16", cache_folder)
    exact, rounded = built["float32"], built["bfloat16"]

    assert exact["outputs"] == rounded["outputs"] == OUTPUTS
    assert exact["error"] < 1e-5
    assert 1e-4 < rounded["error"] < 0.1
    assert not exact["from_cache"]
    assert exact["exact_batch_sizes"]
    assert (built["device"], built["choices"]) == ("cpu", {"auto": "float32", **CHOICES_ON_THIS_CPU, "float16": HALF})

    loaded = run_toy("jax", "float32,bfloat16", cache_folder)

    assert loaded["float32"] == {**exact, "from_cache": True}
    assert loaded["bfloat16"] == {**rounded, "from_cache": True}
    assert not loaded["keras"]
