from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.stages.overflowing import LARGE, overflowing_latents
from triptych.contract import DecodeRequest, EncodeImagesRequest
from triptych.engines import CompiledNetwork, Engine, Precision, get_engine
from triptych.errors import EngineError, StageFailed
from triptych.stages.decoder import DecoderStage
from triptych.stages.finite_network import IN_FLOAT32, Arrays, FiniteNetwork
from triptych.stages.image_encoder import ImageEncoderStage


def square(inputs: Arrays, dtype: type = np.float32) -> Arrays:
    with np.errstate(over="ignore"):
        return {"square": np.square(inputs["x"].astype(dtype)).astype(np.float32)}


class Squares:
    """A network that squares: in float16 it overflows from 256 on. `made` counts the networks in float32."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.made = 0
        self.repeated: list[Any] = []
        self._failure = failure
        self.network = FiniteNetwork(lambda inputs: square(inputs, np.float16), self._make, name="squarer", precision="float16")

    def _make(self) -> Any:
        self.made += 1
        if self._failure is not None:
            raise self._failure
        return self._in_float32

    def _in_float32(self, inputs: Arrays) -> Arrays:
        self.repeated.append(inputs["x"].ravel().tolist())
        return square(inputs)


def column(*values: float) -> Arrays:
    return {"x": np.array(values, np.float32)[:, None]}


def test_only_rows_that_are_not_finite_are_computed_again(caplog):
    squares = Squares()
    with caplog.at_level(logging.WARNING):
        first = squares.network(column(2, 300, 3, 1000))
        second = squares.network(column(400))
    assert first["square"].ravel().tolist() == [4, 90000, 9, 1e6]
    assert first[IN_FLOAT32].tolist() == [False, True, False, True]
    assert second["square"].ravel().tolist() == [160000]
    assert (squares.repeated, squares.network.float32_rows) == ([[300, 1000], [400]], 3)
    assert squares.made == 1
    (record,) = caplog.records
    assert record.message.startswith("the squarer gave NaN or infinity in float16: what does is computed again in float32")


def test_as_long_as_all_is_finite_there_is_no_second_network(caplog):
    squares = Squares()
    assert squares.network(column(2, 3))[IN_FLOAT32].tolist() == [False, False]
    assert (squares.made, squares.network.float32_rows, caplog.records) == (0, 0, [])


def test_what_comes_in_as_nan_and_what_float32_cannot_hold_either_stay_so():
    squares = Squares()
    outputs = squares.network(column(np.nan, 1e30))
    assert np.isfinite(outputs["square"]).tolist() == [[False], [False]]
    assert squares.repeated == [[np.float32(1e30).item()]]


def test_outputs_that_cannot_be_written_to_are_mended():
    def read_only(inputs: Arrays) -> Arrays:
        outputs = square(inputs, np.float16)
        outputs["square"].flags.writeable = False
        return outputs

    network = FiniteNetwork(read_only, lambda: square, name="squarer", precision="float16")
    assert network(column(300, 2))["square"].ravel().tolist() == [90000, 4]


def test_a_network_that_cannot_be_had_in_float32_is_tried_once():
    squares = Squares(failure=EngineError("there is no memory left"))
    for _ in range(2):
        with pytest.raises(StageFailed, match="in float16, and cannot be compiled in float32: there is no memory"):
            squares.network(column(300))
    assert squares.made == 1
    assert squares.network(column(3))["square"].item() == 9


# With the tiny decoder


class NarrowEngine:
    """OpenVINO, with a float16 that any CPU has: it is float32, after what comes in was squeezed through float16."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def choose_precision(self, wanted: str) -> Precision:
        return Precision(wanted)

    def compile(self, source: Any, rows: Any, *, precision: Precision, **options: Any) -> CompiledNetwork:
        network = self._engine.compile(source, rows, precision=Precision.FLOAT32, **options)
        if precision is Precision.FLOAT32:
            return network

        def run(inputs: dict[str, Any]) -> dict[str, Any]:
            with np.errstate(over="ignore"):
                halves = {name: array.astype(np.float16).astype(np.float32) for name, array in inputs.items()}
            return network.run_exactly(halves)

        return CompiledNetwork(run, rows, network.batch_sizes, from_cache=network.from_cache)


@pytest.fixture(scope="module")
def stages(options) -> Iterator[tuple[DecoderStage, DecoderStage]]:
    """In half precision and in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "triptych.stages.networks.get_engine", lambda name, **arguments: NarrowEngine(get_engine(name, **arguments))
        )
        stages = [DecoderStage(replace(options, precision=each)) for each in ("float16", "float32")]
        for stage in stages:
            stage.start()
    yield stages[0], stages[1]
    for stage in stages:
        stage.close()


async def test_a_picture_that_half_precision_cannot_hold_is_float32s_own_whoever_its_mates_are(stages):
    half, whole = stages
    latents = overflowing_latents(5)
    before = half.float32_rows
    together = await half.decode(DecodeRequest(latents=latents))
    at_once = await asyncio.gather(*(half.decode(DecodeRequest(latents=latents[row : row + 1])) for row in range(5)))
    in_float32 = await whole.decode(DecodeRequest(latents=latents))

    assert together.float32_rows == LARGE
    assert [each.float32_rows for each in at_once] == [(), (0,), (), (), ()]
    assert together.pixels_sha256 == tuple(digest for each in at_once for digest in each.pixels_sha256)
    same = [one == other for one, other in zip(together.pixels_sha256, in_float32.pixels_sha256, strict=True)]
    assert same[LARGE[0]]
    assert half.float32_rows - before == 2
    assert (in_float32.float32_rows, whole.float32_rows) == ((), 0)
    assert (await half.identity()).numerics.precision == "float16"


async def test_a_picture_that_float32_cannot_hold_either_fails_alone(stages):
    half, _ = stages
    latents = overflowing_latents(2)
    latents[1] = np.float32(3e38)
    requests = DecodeRequest(latents=latents[1:]), DecodeRequest(latents=latents[:1])
    answers: list[Any] = await asyncio.gather(*map(half.decode, requests), return_exceptions=True)
    failed, made = answers
    assert isinstance(failed, StageFailed)
    assert "computed NaN or infinity" in failed.message
    assert made.float32_rows == ()


async def test_an_image_encoder_without_trouble_counts_nothing(options):
    stage = ImageEncoderStage(options)
    assert stage.float32_rows == 0
    stage.start()
    await stage.encode_images(EncodeImagesRequest(images=np.zeros((1, 32, 32, 3), np.uint8)))
    assert stage.float32_rows == 0
    stage.close()
