"""The short form of `faults.py`: a tiny real model, and each kind of fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import disturbed
from tests.chaos.proxy import Fault
from tests.shared_folder import shared_folder
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(600)


def test_whatever_befalls_a_connection_no_request_is_lost(tmp_path: Path) -> None:
    model = {"model": write_tiny_model(tmp_path / "model"), "cache": shared_folder() / "networks"}
    outcome, done = disturbed(
        tmp_path, tuple(Fault), share=0.01, stop_every=None, requests=24, concurrency=8, num_steps=50, seed=1, model=model
    )
    print(outcome, done)  # noqa: T201 - shown where it fails
    outcome.check()
    assert sum(done.values()) > 0
    assert outcome.resumed > 0
