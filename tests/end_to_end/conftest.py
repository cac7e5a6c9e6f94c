from __future__ import annotations

import pytest

from tests.end_to_end.real_services import TinyModel
from tests.shared_folder import shared_folder
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Compiled once for all tests with real processes."""
    return TinyModel(write_tiny_model(tmp_path_factory.mktemp("model")), shared_folder() / "networks")
