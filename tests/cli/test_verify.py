from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.cli.conftest import Run
from tests.fakes import FakeDiffusion, FakeTextEncoder, with_profile
from tests.gateway.running import Stages
from tests.gateway.served import served
from triptych.cli.processes import free_ports
from triptych.contract import Denoised

PROMPT = "a red circle on a naïve background"


@pytest.fixture(scope="module")
def url():
    """A gateway in front of fake stages that work."""
    with served(Stages().app()) as address:
        yield address


@pytest.fixture
def picture(run: Run, url: str, tmp_path: Path) -> Path:
    """The second of two pictures, as `generate` writes it, with its receipt."""
    ended = run("generate", PROMPT, "--url", url, "--num-images", 2, "--seed", 2**64 - 1, "-o", "a.png", "--receipt", "a.json")
    assert ended.code == 0
    return tmp_path / "a-1.png"


def doctor(path: Path, **parameters: Any) -> None:
    """Makes one pixel another; keeps the text, or changes its parameters."""
    image = Image.open(path)
    pixels = np.array(image)
    pixels[3, 4, 1] ^= 128
    info = PngInfo()
    info.add_text("triptych", json.dumps({**json.loads(image.info["triptych"]), **parameters}))
    Image.fromarray(pixels).save(path, pnginfo=info)


def test_a_picture_is_what_its_parameters_make(run: Run, url: str, picture: Path) -> None:
    ended = run("verify", picture, "--gateway", url)
    assert ended.code == 0
    assert ended.out.endswith(f"{picture} is the same, byte for byte\n")


def test_a_picture_of_a_long_prompt_is_what_its_parameters_make(run: Run, tmp_path: Path) -> None:
    stages = Stages(
        text_encoder=with_profile(FakeTextEncoder(), max_prompt_chunks=2),
        diffusion=with_profile(FakeDiffusion(), max_prompt_chunks=2),
    )
    with served(stages.app()) as address:
        assert run("generate", "word " * 100, "--url", address, "-o", "a.png").code == 1
        assert run("generate", "word " * 100, "--url", address, "--long-prompt", "-o", "a.png").code == 0
        ended = run("verify", "a.png", "--gateway", address)
    assert ended.code == 0
    assert "the same, byte for byte" in ended.out
    assert [request.long_prompt for request in stages.text_encoder.asked][-2:] == [True, True]


def test_a_picture_that_reused_features_is_made_again_with_the_same_interval(run: Run, tmp_path: Path) -> None:
    stages = Stages(diffusion=with_profile(FakeDiffusion(), takes_cache_interval=True))
    with served(stages.app()) as address:
        assert run("generate", "x", "--url", address, "--cache-interval", 3, "-o", "a.png").code == 0
        ended = run("verify", "a.png", "--gateway", address)
    assert ended.code == 0
    assert "the same, byte for byte" in ended.out
    assert [request.cache_interval for request in stages.diffusion.asked] == [3, 3]


def test_a_file_that_was_written_anew_has_the_same_pixels(run: Run, url: str, picture: Path) -> None:
    image = Image.open(picture)
    info = PngInfo()
    info.add_text("triptych", image.info["triptych"])
    image.save(picture, compress_level=9, pnginfo=info)
    ended = run("verify", picture, "--gateway", url)
    assert ended.code == 0
    assert "the same in all its pixels" in ended.out


def test_a_doctored_picture_is_different(run: Run, url: str, picture: Path) -> None:
    doctor(picture)
    ended = run("verify", picture, "--gateway", url)
    assert ended.code == 1
    assert ended.out.endswith(f"{picture} is different: 1 of 4096 pixels, by up to 128 of 255 levels\n")


def test_by_its_receipt_a_doctored_picture_is_known_from_one_that_the_stages_make_differently(
    run: Run, url: str, picture: Path
) -> None:
    doctor(picture)
    ended = run("verify", picture, "--gateway", url, "--receipt", "a.json")
    assert ended.code == 1
    assert "context, latents, pixels are what the receipt says, so it is the file that changed" in ended.out


def test_the_stage_that_differs_is_named_by_the_receipt(run: Run, picture: Path) -> None:
    class Retrained(FakeDiffusion):
        async def denoise(self, request, *, deadline=None):
            async for event in super().denoise(request, deadline=deadline):
                yield Denoised(latents=event.latents + np.float32(0.5)) if isinstance(event, Denoised) else event

    stages = Stages(diffusion=with_profile(Retrained(), weights_digest="9" * 64))
    with served(stages.app()) as url:
        ended = run("verify", picture, "--gateway", url, "--receipt", "a.json")
    assert ended.code == 1
    assert "the diffusion stage makes other latents now, and has other weights\n" in ended.out


def test_a_decoder_that_tells_no_pixels_leaves_the_question_open(run: Run, picture: Path) -> None:
    doctor(picture)
    stages = Stages()
    stages.decoder.tells_digests = False
    with served(stages.app()) as url:
        ended = run("verify", picture, "--gateway", url, "--receipt", "a.json")
    assert "context, latents are what the receipt says, so it is the file or the decoder that changed" in ended.out


def test_a_picture_of_another_size_is_different(run: Run, url: str, picture: Path) -> None:
    doctor(picture, width=96)
    ended = run("verify", picture, "--gateway", url)
    assert ended.code == 1
    assert "it has 64x64 pixels, and is made with 96x64" in ended.out


@pytest.mark.parametrize("text", [None, "hello", "[1]", '{"prompt": "x"}', '{"seed": 1}'])
def test_without_parameters_there_is_nothing_to_verify(run: Run, url: str, tmp_path: Path, text: str | None) -> None:
    info = PngInfo()
    if text is not None:
        info.add_text("triptych", text)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=info)
    ended = run("verify", "a.png", "--gateway", url)
    assert ended.code == 2
    assert ended.err == "error: a.png has no parameters in it from which it could be made again\n"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"model": "other"}, "there is no model 'other' here"),
        ({"num_steps": 1000}, "num_steps must be a whole number from 1 to 150"),
        ({"prompt": 5}, "prompt must be a text"),
        ({"request_id": "x"}, "has the parameter 'request_id', which this version does not know"),
    ],
)
def test_parameters_that_the_gateway_does_not_take(
    run: Run, url: str, picture: Path, parameters: dict[str, Any], sentence: str
) -> None:
    doctor(picture, **parameters)
    ended = run("verify", picture, "--gateway", url)
    assert ended.code == 2
    assert sentence in ended.err


def test_what_is_no_png_of_ours(run: Run, url: str, picture: Path, tmp_path: Path) -> None:
    image = Image.open(picture)
    info = PngInfo()
    info.add_text("triptych", image.info["triptych"])
    image.convert("RGBA").save(tmp_path / "rgba.png", pnginfo=info)
    (tmp_path / "text.png").write_text("hello")
    for name, sentence in (
        ("rgba.png", "no PNG of 8-bit RGB any more"),
        ("text.png", "it is no PNG"),
        ("missing.png", "cannot be read"),
    ):
        ended = run("verify", name, "--gateway", url)
        assert ended.code == 2
        assert sentence in ended.err


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"images": [{"seed": 1}], "receipt": {}}', '{"images": [{"seed": 0}], "receipt": {}}']
)
def test_a_receipt_of_something_else(run: Run, url: str, picture: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "b.json").write_text(content)
    ended = run("verify", picture, "--gateway", url, "--receipt", "b.json")
    assert ended.code == 2
    assert "b.json has no receipt of this picture" in ended.err


def test_no_gateway(run: Run, picture: Path) -> None:
    (port,) = free_ports(1)
    ended = run("verify", picture, "--gateway", f"http://127.0.0.1:{port}")
    assert ended.code == 2
    assert "no gateway answers at" in ended.err
