"""Pictures that are changed, through the gateway."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.fakes import FakeDiffusion, FakeImageEncoder, with_profile
from tests.gateway.running import Stages
from triptych.contract import IMAGE_TEXT_KEYWORD, sha256_of

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
MASK = np.zeros((64, 96), np.uint8)
MASK[10:30, 40:70] = 255


def file_of(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def text_of(pixels: np.ndarray) -> str:
    return base64.b64encode(file_of(pixels)).decode()


def editing_stages(**changes: Any) -> Stages:
    return Stages(diffusion=with_profile(FakeDiffusion(), **changes), image_encoder=FakeImageEncoder())


def encoder_of(stages: Stages) -> FakeImageEncoder:
    assert stages.image_encoder is not None
    return stages.image_encoder


async def post(stages: Stages, **fields: Any) -> httpx2.Response:
    async with stages.client() as client:
        return await client.post("/generate", json={"prompt": "x", "seed": 1, **fields})


async def test_an_image_is_encoded_and_its_latents_are_denoised() -> None:
    stages = editing_stages()
    answer = (await post(stages, image=text_of(PIXELS), num_images=2)).json()
    assert (answer["parameters"]["width"], answer["parameters"]["height"]) == (96, 64)
    assert answer["parameters"]["strength"] == 0.8
    assert answer["parameters"]["image_sha256"] == sha256_of(PIXELS)
    assert "mask_sha256" not in answer["parameters"]
    (encoded,), (denoised,), (decoded,) = encoder_of(stages).asked, stages.diffusion.asked, stages.decoder.asked
    np.testing.assert_array_equal(encoded.images, PIXELS[None])
    assert encoded.seeds is None and not np.any(encoded.mask)
    expected = await FakeImageEncoder().encode_images(encoded)
    np.testing.assert_array_equal(denoised.init_latents, expected.latents)
    assert (denoised.mask, denoised.masked_image_latents, denoised.strength) == (None, None, 0.8)
    assert decoded.original is None
    assert len(answer["images"]) == 2


async def test_under_a_mask_what_is_kept_comes_back_to_the_bit() -> None:
    stages = editing_stages()
    response = await post(stages, image=text_of(PIXELS), mask=text_of(MASK), num_resamples=3)
    answer = response.json()
    assert {name: answer["parameters"][name] for name in ("strength", "num_resamples", "mask_blur")} == {
        "strength": 1.0,
        "num_resamples": 3,
        "mask_blur": 0,
    }
    assert answer["parameters"]["mask_sha256"] == sha256_of(MASK)
    assert answer["warnings"] == []
    (denoised,) = stages.diffusion.asked
    assert denoised.num_resamples == 3
    assert denoised.mask is not None
    assert denoised.mask[0, :, :, 0].tolist() == (MASK.reshape(8, 8, 12, 8).max(axis=(1, 3)) / 255).tolist()
    picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["b64_json"])))
    assert json.loads(picture.info[IMAGE_TEXT_KEYWORD])["mask_sha256"] == sha256_of(MASK)
    (decoded,) = stages.decoder.asked
    np.testing.assert_array_equal(decoded.original, PIXELS[None])
    np.testing.assert_array_equal(decoded.paste_mask, MASK[None])


async def test_a_blur_softens_what_is_pasted_and_nothing_else() -> None:
    stages = editing_stages()
    await post(stages, image=text_of(PIXELS), mask=text_of(MASK), mask_blur=4)
    (denoised,), (decoded,) = stages.diffusion.asked, stages.decoder.asked
    assert set(np.unique(denoised.mask)) == {0.0, 1.0}
    assert len(np.unique(decoded.paste_mask)) > 20


@pytest.mark.parametrize(
    ("fields", "rows", "has_init"),
    [
        ({}, 1, False),
        ({"image": text_of(PIXELS), "mask": text_of(MASK)}, 1, False),
        ({"image": text_of(PIXELS), "mask": text_of(MASK), "strength": 0.5}, 2, True),
        ({"image": text_of(PIXELS)}, 2, True),
    ],
    ids=["text alone", "mask", "mask and strength", "image"],
)
async def test_a_model_that_takes_masked_images_gets_them_with_every_request(
    fields: dict[str, Any], rows: int, has_init: bool
) -> None:
    stages = editing_stages(takes_masked_image=True)
    assert (await post(stages, **{"width": 96, **fields})).status_code == 200
    (encoded,), (denoised,) = encoder_of(stages).asked, stages.diffusion.asked
    assert len(encoded.images) == rows
    mask = MASK if "mask" in fields else np.full_like(MASK, 255)
    assert encoded.mask is not None
    np.testing.assert_array_equal(encoded.mask[-1], mask)
    latents = (await FakeImageEncoder().encode_images(encoded)).latents
    np.testing.assert_array_equal(denoised.masked_image_latents, latents[-1:])
    assert (denoised.init_latents is not None) == has_init
    if "mask" not in fields:
        assert np.all(denoised.mask == 1)


async def test_a_form_with_files_is_the_same_request() -> None:
    fields = {"prompt": "x", "seed": "1", "guidance_scale": "2.5", "mask_blur": "2", "truncate": "true"}
    stages = editing_stages()
    async with stages.client() as client:
        files = {"image": ("a.png", file_of(PIXELS)), "mask": ("b.png", file_of(MASK))}
        form = (await client.post("/generate", data=fields, files=files)).json()
        body = {"prompt": "x", "seed": 1, "guidance_scale": 2.5, "mask_blur": 2, "truncate": True}
        plain = (await client.post("/generate", json={**body, "image": text_of(PIXELS), "mask": text_of(MASK)})).json()
    assert form["parameters"] == plain["parameters"]
    assert form["images"] == plain["images"]


async def test_a_large_file_of_a_form_is_not_written_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("a read-only file system")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", fail)
    large = file_of(np.random.default_rng(1).integers(0, 256, (800, 800, 3), np.uint8))
    assert len(large) > 2**20
    async with editing_stages().client() as client:
        response = await client.post("/generate", data={"prompt": "x"}, files={"image": large})
    assert response.status_code == 422
    assert "the image has 800x800 pixels; this model takes" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("level", "warning"),
    [(255, "the mask is all white: all of the picture is painted anew"), (0, "the mask is all black: nothing is painted")],
)
async def test_a_mask_of_one_colour_is_done_and_said(level: int, warning: str) -> None:
    response = await post(editing_stages(), image=text_of(PIXELS), mask=text_of(np.full_like(MASK, level)))
    assert response.status_code == 200
    assert response.json()["warnings"][0].startswith(warning)


@pytest.mark.parametrize(
    ("fields", "status", "param", "sentence"),
    [
        ({"mask": text_of(MASK)}, 422, "mask", "there is no image"),
        ({"strength": 0.5}, 422, "strength", "there is no image"),
        ({"image": text_of(PIXELS), "mask_blur": 3}, 422, "mask_blur", "is about a mask, and there is none"),
        ({"image": text_of(PIXELS), "mask": text_of(MASK[:, :64])}, 422, "mask", "the mask has 64x64 pixels and the image 96x64"),
        ({"image": text_of(PIXELS), "width": 64}, 422, "width", "the image has 96x64 pixels, 64x64 are asked for"),
        ({"image": text_of(PIXELS[:40])}, 422, "image", "the image has 96x40 pixels; this model takes 64x64, 96x64, 64x96"),
        ({"image": text_of(PIXELS), "strength": 1.5}, 422, "strength", "strength must be a number from 0 to 1, not 1.5"),
        ({"image": text_of(PIXELS), "mask": text_of(MASK), "num_resamples": 0}, 422, "num_resamples", "from 1 to 20"),
        ({"image": text_of(PIXELS), "mask": text_of(MASK), "mask_blur": 65}, 422, "mask_blur", "from 0 to 64"),
        ({"image": 7}, 422, "image", "image must be a picture in base64 or as a data URL, not 7"),
        ({"image": "https://example.org/x.png"}, 422, "image", "addresses are not fetched"),
        ({"image": text_of(np.zeros((600, 600, 3), np.uint8))}, 413, "image", "at most 10000 are read"),
        ({"image": text_of(PIXELS)[:-400]}, 422, "image", "damaged"),
    ],
)
async def test_what_cannot_be_changed_is_refused(fields: dict[str, Any], status: int, param: str, sentence: str) -> None:
    stages = editing_stages()
    async with stages.client(max_image_pixels=10_000) as client:
        response = await client.post("/generate", json={"prompt": "x", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert sentence in error["message"]
    assert not encoder_of(stages).asked


@pytest.mark.parametrize(
    ("content", "kind", "status", "sentence"),
    [
        (b"--x\r\n", "multipart/form-data", 400, "the form cannot be read: Missing boundary"),
        (b"nonsense", "multipart/form-data; boundary=x", 400, "the form cannot be read"),
        (
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n' * 2 + b"--x--\r\n",
            "multipart/form-data; boundary=x",
            422,
            "prompt is in the form twice",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="prompt"; filename="a"\r\n\r\na\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            422,
            "prompt must be a field of the form and no file",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\nmany\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            422,
            "prompt is required",
        ),
    ],
)
async def test_a_form_that_is_none_is_refused(content: bytes, kind: str, status: int, sentence: str) -> None:
    async with editing_stages().client() as client:
        response = await client.post("/generate", content=content, headers={"Content-Type": kind})
    assert response.status_code == status
    assert sentence in response.json()["error"]["message"]


async def test_a_page_of_another_site_posts_no_forms() -> None:
    async with editing_stages().client() as client:
        response = await client.post(
            "/generate", files={"image": file_of(PIXELS)}, data={"prompt": "x"}, headers={"Sec-Fetch-Site": "cross-site"}
        )
    assert response.status_code == 403


@pytest.mark.parametrize("image_encoder", [None, with_profile(FakeImageEncoder(), latent_space="another")])
async def test_without_an_image_encoder_that_fits_no_picture_is_changed(image_encoder: FakeImageEncoder | None) -> None:
    stages = Stages(image_encoder=image_encoder)
    async with stages.client() as client:
        refused = await client.post("/generate", json={"prompt": "x", "image": text_of(PIXELS)})
        made = await client.post("/generate", json={"prompt": "x"})
        (model,) = (await client.get("/models")).json()["models"]
    assert refused.status_code == 422
    assert "no image encoder" in refused.json()["error"]["message"]
    assert made.status_code == 200
    assert model["abilities"]["tasks"] == ["text_to_image"]


async def test_a_model_that_needs_an_image_encoder_is_not_ready_without() -> None:
    stages = Stages(diffusion=with_profile(FakeDiffusion(), takes_masked_image=True))
    async with stages.client(stage_wait_seconds=0) as client:
        response = await client.post("/generate", json={"prompt": "x"})
    assert response.status_code == 503
    assert "wants masked images, and no image encoder is there" in response.json()["error"]["message"]
