"""What people type and what they get is in no log: not at the gateway, not at a stage, and not where something goes wrong."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from tests.gateway.panels import DECODER, DIFFUSION, TEXT_ENCODER, LiveGateway, gateway, panels
from triptych.serving.logs import configure_logging

__all__ = ["gateway", "panels"]  # fixtures

PROMPT = "a zebra-striped submarine called Wilhelmina"
OTHER = "periwinkle marmalade"


def picture() -> str:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def test_neither_prompts_nor_pictures_are_logged(gateway: LiveGateway, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json", log_level="info")
    sent = picture()
    told = {"prompt": PROMPT, "negative_prompt": OTHER, "image": sent}
    async with gateway.running() as running:
        made = await running.generate(**told)
        assert made.status_code == 200, made.text
        stream = await running.client.post("/generate", json=told, headers={"Accept": "text/event-stream"})
        assert "completed" in stream.text
        too_long = await running.generate(prompt=f"{PROMPT} " * 20)
        no_field = await running.generate(**{PROMPT: 1})
        no_model = await running.generate(model=PROMPT)
        no_picture = await running.generate(image=base64.b64encode(PROMPT.encode()).decode())
        assert [each.status_code for each in (too_long, no_field, no_model, no_picture)] == [422, 422, 404, 422]
        for port in (TEXT_ENCODER, DIFFUSION, DECODER):
            # A bug whose message quotes what it was given.
            gateway.panels.stages[port].failure = ValueError(f"cannot do {PROMPT}")
            assert (await running.generate(prompt=f"{PROMPT} {port}")).status_code == 502
            gateway.panels.stages[port].failure = None
    captured = capsys.readouterr()
    log = captured.err + captured.out
    assert "/v2/models/{model}/infer" in log  # the stages'
    assert "/generate" in log  # the gateway's
    assert "ValueError" in log
    for secret in ("Wilhelmina", "periwinkle", sent[100:140], made.json()["images"][0]["b64_json"][100:140]):
        assert secret not in log
