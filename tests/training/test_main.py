"""One command divides its minutes among the stages, and multiplies the rows of all of them."""

from __future__ import annotations

import sys
from typing import Any

import keras
import pytest

from training.__main__ import SHARES, STAGES, main

Calls = dict[str, dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the stages are called with, instead of running them; and the precision that they ran at."""
    made: Calls = {}
    precisions: list[str] = []
    monkeypatch.setattr(keras.mixed_precision, "set_global_policy", precisions.append)

    def recorder(stage: str) -> Any:
        def record(*_: object, **values: object) -> None:
            made[stage] = {**values, "precision": precisions[-1]}

        return record

    functions = {
        "tokenizer": "train_tokenizer",
        "vae": "train_vae",
        "latents": "cache_latents",
        "text": "train_text",
        "unet": "train_unet",
        "masked-latents": "cache_masked_latents",
        "inpainting": "train_inpainting",
        "decoder": "train_decoder",
        "tiny-decoder": "train_tiny_decoder",
        "release": "release",
    }
    for stage, function in functions.items():
        monkeypatch.setattr(f"training.{stage.replace('-', '_')}.{function}", recorder(stage))
    return made


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    main()


def test_all_stages_run_in_order_within_the_minutes(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "all", "--minutes", "28", "--times", "8", "--train-text", "--precision", "mixed_bfloat16")
    assert tuple(calls) == STAGES
    assert {stage: calls[stage]["minutes"] for stage in SHARES} == pytest.approx({stage: 28 * s for stage, s in SHARES.items()})
    assert 0.8 < sum(SHARES.values()) < 0.9
    assert {stage: calls[stage]["rows"] for stage in ("vae", "text", "unet", "inpainting", "decoder", "tiny-decoder")} == {
        "vae": 64,
        "text": 768,
        "unet": 256,
        "inpainting": 256,
        "decoder": 32,
        "tiny-decoder": 128,
    }
    assert calls["unet"]["train_text"]
    assert {stage: calls[stage]["precision"] for stage in ("unet", "release")} == {"unet": "mixed_bfloat16", "release": "float32"}


def test_one_stage_has_all_the_minutes(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "vae", "--minutes", "5", "--rows", "16", "--rate", "0.001")
    assert calls["vae"]["minutes"] == 5 and calls["vae"]["rows"] == 16 and calls["vae"]["rate"] == 0.001
    assert list(calls) == ["vae"]


def test_what_is_of_one_stage_is_refused_for_all(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "all", "--rate", "0.001")
    assert "of one stage" in capsys.readouterr().err
    assert not calls
