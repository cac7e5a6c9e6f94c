"""What every test stands on: a backend, a bounded number of threads, and folders of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports keras or a numerical library: they read these once. Few threads, because tests share the machine.
os.environ.setdefault("KERAS_BACKEND", "openvino")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several
    os.environ |= {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}

import pytest
import structlog

from tests.shared_folder import shared_folder

shared_folder()  # made here, the workers of this run inherit it

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that only this test sees; no setting of the developer's shell leaks in, and no model or job of theirs."""
    for name in list(os.environ):
        if name.startswith("TRIPTYCH_") or name == "MODEL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRIPTYCH_MODELS_FILE", str(tmp_path / "models.toml"))
    monkeypatch.setenv("TRIPTYCH_MODELS_FOLDER", str(tmp_path / "models"))
    monkeypatch.setenv("TRIPTYCH_QUANTIZED_FOLDER", str(tmp_path / "quantized"))
    monkeypatch.setenv("TRIPTYCH_JOBS_DATABASE", str(tmp_path / "jobs.sqlite3"))
    monkeypatch.setenv("TRIPTYCH_JOBS_STORE", str(tmp_path / "jobs"))
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRIPTYCH_CACHE_FOLDER", str(folder))
    return folder


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test may configure logging as a service does, for its whole process: the next test finds it as it was."""
    configure = structlog.configure
    # A logger that keeps its configuration from its first use would keep this test's for ever.
    monkeypatch.setattr(structlog, "configure", lambda **options: configure(**{**options, "cache_logger_on_first_use": False}))
    loggers = [logging.getLogger(name) for name in ("", "uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(each.handlers[:], each.level, each.propagate) for each in loggers]
    yield
    structlog.reset_defaults()
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers[:] = handlers
        each.setLevel(level)
        each.propagate = propagate


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT
