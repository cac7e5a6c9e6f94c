"""The promise that a picture's bytes depend on its request alone, on TensorFlow: alone in its file, as it takes long."""

from __future__ import annotations

import json

import pytest

from tests.stages.mixed_requests import check_mixed
from tests.stages.scripts import run_script


@pytest.mark.timeout(300)  # TensorFlow is slow to start
def test_requests_at_once_give_the_bytes_that_each_gives_alone(options, tmp_path):
    answer = json.loads(run_script("tests.stages.mixed_requests", "tensorflow", options.model, tmp_path))
    check_mixed(answer)
    assert max(answer["exact_batch_sizes"]) > 1
