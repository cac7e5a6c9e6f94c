from __future__ import annotations

from typing import Any

from tests.fakes import FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.topology import local_gateway
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app


class CountingDecoder(FakeDecoder):
    float32_rows = 3


class CountingImageEncoder(FakeImageEncoder):
    float32_rows = 0


async def repeated(client: Any) -> list[str]:
    lines = (await client.get("/metrics")).text.splitlines()
    return [line for line in lines if line.startswith("triptych_float32_rows_total")]


COUNTED = ['triptych_float32_rows_total{stage="decoder"} 3.0', 'triptych_float32_rows_total{stage="image_encoder"} 0.0']


async def test_a_service_tells_how_many_rows_its_stages_computed_again(connect: Any) -> None:
    client = connect(stage_app(CountingDecoder(), StageSettings(), CountingImageEncoder()))
    assert await repeated(client) == COUNTED


async def test_a_stage_that_never_does_has_no_such_line(connect: Any) -> None:
    assert await repeated(connect(stage_app(FakeDiffusion(), StageSettings()))) == []


async def test_so_does_a_gateway_that_has_the_stages_in_its_own_process(connect: Any) -> None:
    stages = FakeTextEncoder(), FakeDiffusion(), CountingDecoder(), CountingImageEncoder()
    assert await repeated(connect(local_gateway(GatewaySettings(), *stages))) == COUNTED
