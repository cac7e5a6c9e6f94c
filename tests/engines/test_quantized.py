from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines.toy_network import ROWS, toy_source
from triptych.engines import RowSpec
from triptych.engines.quantization import check_quantizer
from triptych.engines.quantized import FACTS, find_quantized, keep_quantized
from triptych.errors import EngineError

SOURCE = toy_source()


def save(folder: Path) -> None:
    (folder / "network.xml").write_text("<net/>", encoding="utf-8")
    (folder / "network.bin").write_bytes(b"weights")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "quantized"


def test_what_was_kept_is_found_by_network_and_shape(folder):
    kept, was_there = keep_quantized(folder, SOURCE, ROWS, save, {"samples": 3})
    assert not was_there
    assert find_quantized(folder, SOURCE, ROWS) == kept
    assert json.loads((kept.folder / FACTS).read_text(encoding="utf-8")) == {"samples": 3, "digest": kept.digest}
    assert find_quantized(folder, replace(SOURCE, key={"toy": "retrained"}), ROWS) is None
    assert find_quantized(folder, SOURCE, {**ROWS, "latents": RowSpec(shape=(8, 8, 2))}) is None


def test_what_is_there_stays(folder):
    kept, _ = keep_quantized(folder, SOURCE, ROWS, save, {})

    def refuse(unfinished: Path) -> None:
        raise AssertionError("it was quantized although it is there")

    assert keep_quantized(folder, SOURCE, ROWS, refuse, {}) == (kept, True)


def test_the_digest_is_the_graphs_own(folder):
    def save_other(unfinished: Path) -> None:
        save(unfinished)
        (unfinished / "network.bin").write_bytes(b"others!")

    kept, _ = keep_quantized(folder, SOURCE, ROWS, save, {"samples": 3})
    again, _ = keep_quantized(folder / "elsewhere", SOURCE, ROWS, save, {"samples": 4})
    other, _ = keep_quantized(folder / "other", SOURCE, ROWS, save_other, {"samples": 3})
    assert kept.digest == again.digest != other.digest


def test_a_crash_leaves_nothing_half_written(folder):
    def crash(unfinished: Path) -> None:
        save(unfinished)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_quantized(folder, SOURCE, ROWS, crash, {})
    assert list(folder.iterdir()) == []
    assert find_quantized(folder, SOURCE, ROWS) is None


def test_what_is_damaged_is_not_found(folder):
    kept, _ = keep_quantized(folder, SOURCE, ROWS, save, {})
    (kept.folder / "network.bin").write_bytes(b"weight")
    assert find_quantized(folder, SOURCE, ROWS) is None


def test_without_nncf_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr("triptych.engines.quantization.installed_version", lambda name: None)
    with pytest.raises(EngineError, match="quantizing needs nncf, which is not installed: install the extra quantize"):
        check_quantizer()
