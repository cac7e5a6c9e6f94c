from __future__ import annotations

from importlib import metadata

import pytest

from triptych.engines import get_engine
from triptych.engines.distributions import installed_version, refuse_two_tensorflows
from triptych.errors import EngineError


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Makes these distributions, and no others, look installed."""

    def fake(*names: str) -> None:
        def version(name: str) -> str:
            if name not in names:
                raise metadata.PackageNotFoundError(name)
            return "2.21.0"

        monkeypatch.setattr(metadata, "version", version)

    return fake


@pytest.mark.parametrize("names", [(), ("tensorflow",), ("tensorflow-cpu", "openvino")])
def test_one_tensorflow_or_none_is_fine(install, names):
    install(*names)
    refuse_two_tensorflows()


def test_two_tensorflows_are_refused(install):
    install("tensorflow", "tensorflow-cpu")
    with pytest.raises(EngineError, match="both installed and overwrite each other's files: pip uninstall"):
        refuse_two_tensorflows()


def test_no_engine_starts_beside_two_tensorflows(install):
    install("tensorflow", "tensorflow-cpu")
    with pytest.raises(EngineError, match="both installed"):
        get_engine("openvino")


def test_a_version_is_that_of_the_metadata(install):
    install("keras")
    assert installed_version("keras") == "2.21.0"
    assert installed_version("jax") is None
