from __future__ import annotations

import asyncio
import hashlib
import io
import math
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.tiny_models import FACTS, SIZES, VAE
from triptych.contract import DecodeRequest, ImageFormat
from triptych.errors import InvalidValue, StageFailed, StageNotReady, StageTimeout
from triptych.stages.decoder import DecoderStage


@pytest.fixture(scope="module")
def stage(options) -> Iterator[DecoderStage]:
    stage = DecoderStage(options)
    stage.start()
    yield stage
    stage.close()


def some_latents(rows: int, height: int = 4, width: int = 4, seed: int = 0):
    return np.random.default_rng(seed).standard_normal((rows, height, width, 4)).astype(np.float32)


async def decode(stage, latents, image_format=None, image_texts=(), **arguments):
    request = DecodeRequest(latents=latents, image_format=image_format, image_texts=image_texts)
    return (await stage.decode(request, **arguments)).images


async def test_it_says_who_it_is(stage):
    identity = await stage.identity()
    assert identity.latent_space == FACTS.latent_space
    assert (identity.latent_channels, identity.downsampling) == (4, 8)
    assert identity.scaling_factor == VAE.scaling_factor
    assert identity.sizes == SIZES


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 8)])
async def test_latents_become_pixels_eight_times_as_large(stage, height, width):
    pixels = await decode(stage, some_latents(3, height, width))
    assert pixels.shape == (3, 8 * height, 8 * width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 10


async def test_a_picture_is_the_same_whatever_its_company(stage):
    latents = some_latents(7)
    together = await decode(stage, latents)
    for row in (0, 3, 6):
        np.testing.assert_array_equal(await decode(stage, latents[row : row + 1]), together[row : row + 1])


async def test_latents_as_they_come_from_the_wire_are_decoded(stage):
    """Read-only, and not aligned to the size of a number."""
    latents = some_latents(2)
    body = memoryview(b"odd" + latents.tobytes())
    received = np.frombuffer(body, np.float32, offset=3).reshape(latents.shape)
    assert not received.flags.writeable
    assert not received.flags.aligned
    np.testing.assert_array_equal(await decode(stage, received), await decode(stage, latents))


async def test_files_hold_the_pixels_and_the_texts(stage):
    latents = some_latents(2)
    pixels = await decode(stage, latents)
    files = await decode(stage, latents, ImageFormat.PNG, ("first", "second"))
    assert isinstance(files, tuple)
    for file, picture, text in zip(files, pixels, ("first", "second"), strict=True):
        image = Image.open(io.BytesIO(file))
        np.testing.assert_array_equal(np.asarray(image), picture)
        assert image.info == {"triptych": text}


async def test_the_pixels_digests_are_told_whatever_they_travel_as(stage):
    latents = some_latents(2)
    pixels = await decode(stage, latents)
    wanted = tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels)
    for image_format in (None, ImageFormat.PNG, ImageFormat.JPEG):
        decoded = await stage.decode(DecodeRequest(latents=latents, image_format=image_format))
        assert decoded.pixels_sha256 == wanted


async def test_files_without_texts_have_none(stage):
    (file,) = await decode(stage, some_latents(1), ImageFormat.PNG)
    assert Image.open(io.BytesIO(file)).info == {}
    (file,) = await decode(stage, some_latents(1), ImageFormat.JPEG)
    assert Image.open(io.BytesIO(file)).format == "JPEG"


@pytest.mark.parametrize(
    ("latents", "sentence"),
    [
        (some_latents(1, 4, 6), "a picture of 48x32; this decoder makes 32x32, 64x32"),
        (some_latents(1)[0], r"must be float32 \(B, H/8, W/8, 4\), not float32 \(4, 4, 4\)"),
        (some_latents(1)[..., :3], "must be float32"),
        (some_latents(0), "must be float32"),
        (some_latents(1).astype(np.float64), "not float64"),
    ],
)
async def test_latents_of_another_shape_are_refused(stage, latents, sentence):
    with pytest.raises(InvalidValue, match=sentence):
        await decode(stage, latents)


async def test_what_is_kept_is_in_the_file_to_the_bit_and_in_its_digest(stage):
    latents, original = some_latents(2), np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), np.uint8)
    mask = np.zeros((1, 32, 32), np.uint8)
    mask[:, 8:20, 5:30] = 255
    painted = await decode(stage, latents)
    request = DecodeRequest(latents=latents, image_format=ImageFormat.PNG, original=original, paste_mask=mask)
    decoded = await stage.decode(request)
    for file, digest, picture in zip(decoded.images, decoded.pixels_sha256, painted, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(file)))
        np.testing.assert_array_equal(pixels, np.where(mask[0, ..., None] == 255, picture, original[0]))
        assert digest == hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"original": np.zeros((1, 32, 32, 3), np.uint8)}, "original and paste_mask go together; paste_mask is missing"),
        ({"paste_mask": np.zeros((1, 32, 32), np.uint8)}, "go together; original is missing"),
        ({"original": np.zeros((1, 32, 64, 3), np.uint8)}, r"original must be uint8 \(2 or 1, 32, 32, 3\)"),
        ({"paste_mask": np.zeros((3, 32, 32), np.uint8)}, r"paste_mask must be uint8 \(2 or 1, 32, 32\), not uint8 \(3,"),
        ({"paste_mask": np.zeros((1, 32, 32), np.float32)}, "not float32"),
    ],
)
async def test_pixels_to_keep_that_do_not_fit_are_refused(stage, changes, sentence):
    with pytest.raises(InvalidValue, match=sentence):
        await stage.decode(DecodeRequest(latents=some_latents(2), **changes))


async def test_texts_must_be_as_many_as_pictures(stage):
    with pytest.raises(InvalidValue, match="1 image_texts for 2 pictures"):
        await decode(stage, some_latents(2), ImageFormat.PNG, ("one",))


async def test_pictures_that_are_no_numbers_are_our_failure(stage):
    with pytest.raises(StageFailed, match="computed NaN or infinity"):
        await decode(stage, np.full((1, 4, 4, 4), np.nan, np.float32))


async def test_two_requests_at_once_both_succeed(stage):
    latents = some_latents(1, seed=1), some_latents(1, seed=2)
    one, other = await asyncio.gather(*(decode(stage, each) for each in latents))
    np.testing.assert_array_equal(one, await decode(stage, latents[0]))
    np.testing.assert_array_equal(other, await decode(stage, latents[1]))


async def test_past_the_deadline_there_is_no_picture(stage):
    with pytest.raises(StageTimeout, match="the decoder stage"):
        await decode(stage, some_latents(1), deadline=0.0)


async def test_told_to_stop_it_sends_away_whom_it_cannot_answer_in_time(options):
    stage = DecoderStage(options)
    await asyncio.to_thread(stage.start)
    stage._worker._patience = 0.05
    with stage._worker._working:  # as a call would hold it
        decoding = asyncio.create_task(decode(stage, some_latents(1)))
        await asyncio.sleep(0.01)
        stage.stop(hand_back_all_at=math.inf)
        with pytest.raises(StageNotReady, match="the decoder stage is stopping"):
            await asyncio.wait_for(decoding, 10)
        await asyncio.to_thread(stage.close)
        assert stage.is_at_work, "so its service knows that it must end without it"
