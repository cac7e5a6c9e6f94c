"""How an outcome is told: as JSON, or as the picture itself."""

from __future__ import annotations

import base64
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from triptych.contract import StageName
from triptych.gateway.catalogue import StageAnswer, describe_stages
from triptych.gateway.previews import Preview
from triptych.gateway.work import Outcome

PIXELS_HEADER = "X-Triptych-Pixels-Sha256"


class GeneratedImage(BaseModel):
    """One picture."""

    b64_json: str = Field(description="The encoded file, base64.")
    seed: int = Field(description="What makes this picture again as the only one of a request.")


class Timings(BaseModel):
    """Where the time went."""

    queue_seconds: float = Field(description="Waiting for a turn at the gateway, or for a stage that was gone.")
    text_encoder_seconds: float
    diffusion_seconds: float
    decoder_seconds: float
    gateway_seconds: float = Field(description="Everything that was neither waiting nor a stage.")
    total_seconds: float


class PreviewImage(BaseModel):
    """What one picture looks like on its way."""

    b64_json: str = Field(description="A JPEG, base64.")


class PreviewAnswer(BaseModel):
    """The data of the event `preview`."""

    position: int | None
    num_evaluations: int | None
    images: list[PreviewImage]


class Receipt(BaseModel):
    """SHA-256 of what the stages handed on, and who they were: where two pictures differ, this tells from which stage on."""

    context: str = Field(description="Of the text encoder's contexts, float32.")
    latents: list[str] = Field(description="Of each picture's latents, float32.")
    pixels: list[str] | None = Field(description="Of each picture's pixels, uint8; null where the decoder does not tell.")
    decoded_in_float32: list[int] = Field(
        default=[],
        description="Pictures, counted from 0, that the decoder computed again in float32, because in the precision that its "
        "`numerics` name they were NaN or infinite.",
    )
    stages: dict[StageName, StageAnswer]


class GenerateAnswer(BaseModel):
    """The answer to `POST /generate` as JSON, and the data of the event `completed`."""

    id: str
    model: str
    images: list[GeneratedImage]
    parameters: dict[str, Any] = Field(description="What was done, every default filled in.")
    warnings: list[str]
    timings: Timings
    receipt: Receipt


def to_document(outcome: Outcome) -> GenerateAnswer:
    return GenerateAnswer(
        id=outcome.id,
        model=outcome.model,
        images=[
            GeneratedImage(b64_json=base64.b64encode(file).decode("ascii"), seed=seed)
            for file, seed in zip(_files(outcome), outcome.generated.seeds, strict=True)
        ],
        parameters=dict(outcome.parameters),
        warnings=[*outcome.warnings, *outcome.generated.warnings],
        timings=_timings(outcome),
        receipt=_receipt(outcome),
    )


def preview_document(preview: Preview) -> PreviewAnswer:
    return PreviewAnswer(
        position=preview.progress.position,
        num_evaluations=preview.progress.num_evaluations,
        images=[PreviewImage(b64_json=base64.b64encode(file).decode("ascii")) for file in preview.images],
    )


def json_response(outcome: Outcome) -> Response:
    return Response(to_document(outcome).model_dump_json(), headers=_headers(outcome), media_type="application/json")


def image_response(outcome: Outcome) -> Response:
    (file,) = _files(outcome)
    (digest,) = outcome.generated.digests.pixels or (None,)
    receipt = {} if digest is None else {PIXELS_HEADER: digest}
    return Response(file, headers=_headers(outcome) | receipt, media_type=f"image/{outcome.output_format}")


def _files(outcome: Outcome) -> tuple[bytes, ...]:
    assert isinstance(outcome.generated.images, tuple), "the gateway asks for encoded files"
    return outcome.generated.images


def _receipt(outcome: Outcome) -> Receipt:
    digests = outcome.generated.digests
    return Receipt(
        context=digests.context,
        latents=list(digests.latents),
        pixels=None if digests.pixels is None else list(digests.pixels),
        decoded_in_float32=list(outcome.generated.float32_rows),
        stages=describe_stages(outcome.identities),
    )


def _timings(outcome: Outcome) -> Timings:
    stages = {f"{stage}_seconds": seconds for stage, seconds in outcome.generated.seconds.items()}
    total = outcome.ended - outcome.arrived
    gateway = total - outcome.queue_seconds - sum(stages.values())
    return Timings(queue_seconds=outcome.queue_seconds, gateway_seconds=gateway, total_seconds=total, **stages)


def _headers(outcome: Outcome) -> dict[str, str]:
    milliseconds = {name.removesuffix("_seconds"): 1000 * seconds for name, seconds in _timings(outcome)}
    return {
        "X-Triptych-Id": outcome.id,
        "X-Triptych-Seed": str(outcome.generated.seeds[0]),
        "Server-Timing": ", ".join(f"{name};dur={duration:.1f}" for name, duration in milliseconds.items()),
    }
