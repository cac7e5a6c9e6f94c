"""The body of `POST /generate`: what a caller may send, as JSON or as a form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from triptych.contract import MOST_PICTURES
from triptych.errors import InvalidValue
from triptych.wire.json_text import parse_object

ALIASES: Mapping[str, tuple[str, ...]] = {
    "num_steps": ("num_inference_steps", "steps"),
    "guidance_scale": ("unconditional_guidance_scale",),
    "num_images": ("batch_size",),
}
"""Names that users of other services type, and the field that each stands for."""


@dataclass(frozen=True)
class Allowed:
    """What a field may be, in words that complete the sentence `num_steps must be ...`."""

    words: str


def _document_aliases(schema: dict[str, Any]) -> None:
    """An alias is a property of its own in the schema, as clients that read it would otherwise never send it."""
    properties = schema["properties"]
    for name, aliases in ALIASES.items():
        for alias in aliases:
            properties[alias] = properties[name] | {"description": f"Alias of `{name}`.", "title": alias, "deprecated": False}


class GenerateBody(BaseModel):
    """The body of `POST /generate`. Where a field is absent or null, the model's own default is used."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_document_aliases)

    prompt: Annotated[
        str,
        Allowed("a text of 1 to 4000 characters"),
        Field(min_length=1, max_length=4000, description="What the picture should show.", examples=["a red circle"]),
    ]
    negative_prompt: Annotated[
        str | None,
        Allowed("a text of at most 4000 characters"),
        Field(max_length=4000, description="What the picture should not show; empty by default."),
    ] = None
    num_steps: Annotated[
        int | None, Allowed("a whole number from 1 to 150"), Field(ge=1, le=150, description="Steps of denoising.")
    ] = None
    guidance_scale: Annotated[
        float | None,
        Allowed("a number from 0 to 30"),
        Field(ge=0, le=30, allow_inf_nan=False, description="How strongly the prompt leads; 1 is without guidance."),
    ] = None
    guidance_start: Annotated[
        float | None,
        Allowed("a number from 0 to 1"),
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="From which share of the steps on there is guidance; 0 by default. Steps without it take half as long.",
        ),
    ] = None
    guidance_end: Annotated[
        float | None,
        Allowed("a number from 0 to 1"),
        Field(ge=0, le=1, allow_inf_nan=False, description="Up to which share of the steps there is guidance; 1 by default."),
    ] = None
    cache_interval: Annotated[
        int | None,
        Allowed("a whole number from 1 to 150"),
        Field(
            ge=1,
            le=150,
            description="N: compute the whole U-Net at every N-th evaluation only, in between a small part of it on what the "
            "whole one found out; 1 by default, which is always. Faster, and another picture. `GET /models` says where it may "
            "be more, as `takes_cache_interval`.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Allowed("a whole number from 0 to 18446744073709551615"),
        Field(
            ge=0,
            lt=2**64,
            description="Of the first picture; picture i is made from seed + i modulo 2^64. Drawn below 2^32 by default.",
        ),
    ] = None
    width: Annotated[
        int | None, Allowed("a whole number of pixels"), Field(description="Pixels; `GET /models` lists the sizes.")
    ] = None
    height: Annotated[
        int | None, Allowed("a whole number of pixels"), Field(description="Pixels; `GET /models` lists the sizes.")
    ] = None
    num_images: Annotated[
        int | None,
        Allowed(f"a whole number from 1 to {MOST_PICTURES}"),
        Field(ge=1, le=MOST_PICTURES, description="How many pictures; 1 by default."),
    ] = None
    sampler: Annotated[
        str | None, Allowed("the name of a sampler; GET /samplers lists them"), Field(description="`GET /samplers` lists them.")
    ] = None
    model: Annotated[
        str | None, Allowed("the name of a model; GET /models lists them"), Field(description="`GET /models` lists them.")
    ] = None
    output_format: Annotated[
        Literal["png", "jpeg", "webp"] | None,
        Allowed("png, jpeg or webp"),
        Field(description="Of the pictures; png by default. Only a PNG carries its parameters as text."),
    ] = None
    truncate: Annotated[
        bool | None,
        Allowed("true or false"),
        Field(description="Cut a prompt that is too long for the model, with a warning, instead of refusing it."),
    ] = None
    long_prompt: Annotated[
        bool | None,
        Allowed("true or false"),
        Field(
            description="Let prompts be longer than the model's context, in chunks of it; "
            "`GET /models` says how many there may be, as `max_prompt_chunks`."
        ),
    ] = None
    image: Annotated[
        str | None,
        Allowed("a picture in base64 or as a data URL"),
        Field(description="A picture to change: PNG, JPEG or WebP in base64, as a data URL, or as a file of a form."),
    ] = None
    mask: Annotated[
        str | None,
        Allowed("a picture in base64 or as a data URL"),
        Field(description="Where to change it: white is painted anew, black is kept. Of the same size; sent like `image`."),
    ] = None
    strength: Annotated[
        float | None,
        Allowed("a number from 0 to 1"),
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="How much of the picture to change, as the share of the steps that are made; "
            "0.8 by default, and 1 with a mask: then what it covers is made anew.",
        ),
    ] = None
    num_resamples: Annotated[
        int | None,
        Allowed("a whole number from 1 to 20"),
        Field(
            ge=1,
            le=20,
            description="How often each step is made, so that what is painted and what is kept come to agree; 1 by default. "
            "For masks on models that were not made for inpainting.",
        ),
    ] = None
    mask_blur: Annotated[
        int | None,
        Allowed("a whole number from 0 to 64"),
        Field(
            ge=0,
            le=64,
            description="Pixels by which the mask's edges are softened where the picture is put together; 0 by default.",
        ),
    ] = None
    previews: Annotated[
        int | None,
        Allowed("a whole number from 0 to 20"),
        Field(
            ge=0,
            le=20,
            description="How many `preview` events at most, while the picture is being made; only as `text/event-stream`.",
        ),
    ] = None
    request_priority: Annotated[
        Literal["low", "normal", "high"] | None,
        Allowed("low, normal or high"),
        Field(description="Who goes first where many wait: `low`, `normal` or `high`; normal by default."),
    ] = None
    detach: Annotated[
        bool | None,
        Allowed("true or false"),
        Field(
            description="Go on when nobody waits for the answer any more; with an Idempotency-Key it can be asked for again. "
            "A job, of `POST /jobs`, always does."
        ),
    ] = None


NAMES = frozenset(GenerateBody.model_fields).union(*ALIASES.values())


def parse_form(fields: Mapping[str, Any]) -> GenerateBody:
    """Reads the fields of a form, where numbers are texts. Otherwise as `parse_body`."""
    return _validated(fields, strict=False)


def parse_body(raw: bytes) -> GenerateBody:
    """Reads the JSON body of a request.

    Raises:
        MalformedRequest: It is no JSON object.
        InvalidValue: A field is unknown, missing or impossible; names the first one at fault as the caller wrote it.
    """
    return _validated(parse_object(memoryview(raw), what="the body"), strict=True)


def _validated(document: Mapping[str, Any], *, strict: bool) -> GenerateBody:
    _refuse_unknown(document)
    fields, written_as = _resolve_aliases(document)
    try:
        return GenerateBody.model_validate({name: value for name, value in fields.items() if value is not None}, strict=strict)
    except ValidationError as error:
        raise _sentence(error.errors(include_url=False)[0], written_as) from None


def _resolve_aliases(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The document under our names, and how the caller wrote each name that has aliases."""
    fields, written_as = dict(document), {}
    for name, aliases in ALIASES.items():
        given = [spelling for spelling in (name, *aliases) if spelling in document]
        if len(given) > 1:
            raise InvalidValue(f"{' and '.join(given)} mean the same; give one of them", param=given[-1])
        if given:
            fields[name] = fields.pop(given[0])
            written_as[name] = given[0]
    return fields, written_as


def _refuse_unknown(document: Mapping[str, Any]) -> None:
    for name in document:
        if name not in NAMES:
            known = ", ".join(GenerateBody.model_fields)
            raise InvalidValue(f"there is no field {shown(name)}; a request takes {known}", param=cut(name))


def _sentence(error: ErrorDetails, written_as: Mapping[str, str]) -> InvalidValue:
    name = str(error["loc"][0])
    written = written_as.get(name, name)
    allowed = next(mark.words for mark in GenerateBody.model_fields[name].metadata if isinstance(mark, Allowed))
    if error["type"] == "missing":
        return InvalidValue(f"{written} is required: {allowed}", param=written)
    if error["type"] in ("string_too_long", "string_too_short"):
        return InvalidValue(f"{written} must be {allowed}, and has {len(error['input'])}", param=written)
    return InvalidValue(f"{written} must be {allowed}, not {shown(error['input'])}", param=written)


def shown(value: object) -> str:
    """A value as JSON, short and printable whatever the caller sent."""
    return cut(json.dumps(value))


def cut(text: str, length: int = 60) -> str:
    printable = text.encode("utf-8", "backslashreplace").decode()
    return printable if len(printable) <= length else f"{printable[:length]}..."
