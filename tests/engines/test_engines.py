from __future__ import annotations

import subprocess
import sys

import pytest

from triptych.engines import get_engine
from triptych.errors import EngineError


def test_an_unknown_engine_is_refused_with_those_that_there_are():
    with pytest.raises(EngineError, match="no engine 'torch'; there are openvino, tensorflow, jax"):
        get_engine("torch")


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "triptych.engines.openvino", raising=False)
    with pytest.raises(EngineError, match=r"needs openvino, which is not installed: install the extra openvino"):
        get_engine("openvino")


def test_a_second_backend_in_one_process_is_refused():
    import keras

    assert keras.config.backend() == "openvino"
    with pytest.raises(EngineError, match="Keras runs on openvino in this process already; the engine jax needs"):
        get_engine("jax")


def test_the_room_imports_no_engine(root):
    code = (
        "import sys, triptych.engines, triptych.engines.exactness; "
        "assert not sys.modules.keys() & {'keras', 'openvino', 'tensorflow', 'jax'}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
