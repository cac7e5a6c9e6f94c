from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from triptych.contract import StageName
from triptych.stages.calibration import Outcome


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command has asked for; the U-Net is there already, the decoder is made."""
    asked: list[dict[str, Any]] = []

    def quantize(options: Any, stages: Any, *, on_progress: Any, **told: Any) -> Iterator[Outcome]:
        asked.append({"model": options.model, "precision": options.precision, "stages": stages, **told})
        on_progress(0, 2)
        unet = "unet_shallow" if options.feature_reuse else "unet"
        yield Outcome(name=unet, inputs="32x32", folder=Path("/q/unet-int8-0"), was_there=True)
        yield Outcome(name="vae_decoder", inputs="32x32", folder=Path("/q/vae_decoder-int8-1"), was_there=False)

    monkeypatch.setattr("triptych.stages.calibration.quantize_model", quantize)
    return asked


def test_it_says_what_is_quantized_now_and_what_was(run: Run, asked: list[dict[str, Any]], monkeypatch: Any) -> None:
    monkeypatch.setenv("TRIPTYCH_PRECISION", "int8")  # for the service; the pictures to go by are made in float
    ended = run("quantize", "vignette")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "the unet of vignette for 32x32 is quantized already; remove /q/unet-int8-0 to have it done anew",
        "the vae_decoder of vignette for 32x32 is quantized: /q/vae_decoder-int8-1",
    ]
    assert ended.err == "pictures to go by: 2\n"
    both = [StageName.DIFFUSION, StageName.DECODER]
    assert asked == [{"model": "vignette", "precision": "auto", "stages": both, "samples": 128, "prompts": None}]


def test_the_networks_of_feature_reuse_are_asked_for_as_a_stage_asks(
    run: Run, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_FEATURE_REUSE", "true")
    assert run("quantize", "vignette").out.startswith("the unet_shallow of vignette for 32x32 is quantized already;")


def test_a_stage_samples_and_prompts_may_be_chosen(run: Run, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\n\n  a blue sun \n", encoding="utf-8")
    assert run("quantize", "vignette", "--stage", "decoder", "--samples", 9, "--prompts", "prompts.txt").code == 0
    assert (asked[0]["stages"], asked[0]["samples"]) == ([StageName.DECODER], 9)
    assert asked[0]["prompts"] == ("a red star", "a blue sun")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "prompts.txt cannot be read: No such file or directory"),
        (b"\xff", "prompts.txt cannot be read: it is not UTF-8 text"),
        (b" \n\n", "prompts.txt has no prompts, of which it wants one a line"),
    ],
)
def test_prompts_that_are_none_are_one_sentence(
    run: Run, asked: list[dict[str, Any]], tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    ended = run("quantize", "vignette", "--prompts", "prompts.txt")
    assert (ended.code, ended.err, asked) == (1, f"error: {sentence}\n", [])


def test_another_engine_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_ENGINE", "jax")
    ended = run("quantize", "vignette")
    assert (ended.code, ended.err) == (1, "error: int8 is for the engine openvino, not for jax\n")
