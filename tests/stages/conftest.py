from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared_folder import shared_folder
from tests.stages.options import Options
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def options(tiny_model) -> Options:
    """With a cache folder that all tests share, so that each network is built once."""
    return Options(model=str(tiny_model), cache_folder=shared_folder() / "networks")
