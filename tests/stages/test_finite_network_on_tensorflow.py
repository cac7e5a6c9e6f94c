"""A decoder that overflows in float16 for real: alone in its file, as it takes long."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.stages.overflowing import LARGE
from tests.stages.scripts import run_script


@pytest.mark.timeout(300)  # TensorFlow is slow to start
def test_what_float16_cannot_hold_is_decoded_in_float32(options, tmp_path):
    answer = json.loads(run_script("tests.stages.overflowing", options.model, tmp_path))
    half, whole = answer["half"], answer["whole"]

    assert (half["precision"], half["float32_rows"], half["counted"], half["alone"]) == ("float16", list(LARGE), 2, True)
    assert (whole["precision"], whole["float32_rows"], whole["counted"]) == ("float32", [], 0)
    levels = np.abs(np.array(half["pixels"]) - np.array(whole["pixels"]))
    assert levels.max() <= 2  # float16 has eleven binary digits
