"""The short form of `kills.py`: a tiny real model, a few requests, a few kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import cluster
from tests.chaos.kills import killing
from tests.shared_folder import shared_folder
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(600)


def test_no_request_is_lost_and_every_picture_is_the_same(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with cluster(tmp_path, replicas=2, model=model, cache=shared_folder() / "networks") as running:
        outcome, killed = killing(running, requests=30, concurrency=8, num_steps=100, seconds=1.5, seed=0)
    print(outcome)  # noqa: T201 - shown where it fails
    outcome.check()
    assert killed > 2
    assert outcome.resumed > 0, "nobody was killed in the middle of a picture"
