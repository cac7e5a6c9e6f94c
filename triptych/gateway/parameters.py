"""What a caller of `/generate` may ask for, and what is made of it for a certain model."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from triptych.contract import ImageFormat
from triptych.errors import InvalidValue
from triptych.gateway.registry import Identities
from triptych.pipeline import GenerateRequest
from triptych.wire.json_text import parse_object

ALIASES: Mapping[str, tuple[str, ...]] = {
    "num_steps": ("num_inference_steps", "steps"),
    "guidance_scale": ("unconditional_guidance_scale",),
    "num_images": ("batch_size",),
}
"""Names that users of other services type, and the field that each stands for."""

DRAWN_SEEDS = 2**32
"""A drawn seed is below this, so that JavaScript, whose numbers end at 2^53, keeps it exactly."""


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
        int | None, Allowed("a whole number from 1 to 8"), Field(ge=1, le=8, description="How many pictures; 1 by default.")
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
    previews: Annotated[
        int | None,
        Allowed("a whole number from 0 to 20"),
        Field(
            ge=0,
            le=20,
            description="How many `preview` events at most, while the picture is being made; only as `text/event-stream`.",
        ),
    ] = None


NAMES = frozenset(GenerateBody.model_fields).union(*ALIASES.values())


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A request as it is carried out: every default filled in, every value one that the model takes."""

    model: str
    prompt: str
    negative_prompt: str
    num_steps: int
    guidance_scale: float
    seed: int
    width: int
    height: int
    num_images: int
    sampler: str
    output_format: ImageFormat
    truncate: bool
    long_prompt: bool

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def to_request(self) -> GenerateRequest:
        fields = self.as_json()
        del fields["model"], fields["output_format"]
        request = GenerateRequest(**fields, image_format=self.output_format)
        is_png = self.output_format is ImageFormat.PNG
        return replace(request, image_texts=self._image_texts(request.seeds)) if is_png else request

    def _image_texts(self, seeds: tuple[int, ...]) -> tuple[str, ...]:
        """For each picture what makes it again, and nothing that changes between two runs: equal requests, equal bytes."""
        shared = self.as_json()
        del shared["num_images"], shared["output_format"]
        for flag in ("truncate", "long_prompt"):
            if not shared[flag]:
                del shared[flag]
        return tuple(json.dumps(shared | {"seed": seed}, sort_keys=True, ensure_ascii=False) for seed in seeds)


def parse_body(raw: bytes) -> GenerateBody:
    """Reads the JSON body of a request.

    Raises:
        MalformedRequest: It is no JSON object.
        InvalidValue: A field is unknown, missing or impossible; names the first one at fault as the caller wrote it.
    """
    document = parse_object(memoryview(raw), what="the body")
    _refuse_unknown(document)
    fields, written_as = _resolve_aliases(document)
    try:
        return GenerateBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise _sentence(error.errors(include_url=False)[0], written_as) from None


def resolve(body: GenerateBody, model: str, identities: Identities) -> Parameters:
    """Fills in the model's defaults and refuses what it does not take.

    Raises:
        InvalidValue: Names the field at fault and what is allowed.
    """
    diffusion = identities.diffusion
    width, height = _resolve_size(body, identities.sizes)
    return Parameters(
        model=model,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        num_steps=body.num_steps or diffusion.default_num_steps,
        guidance_scale=diffusion.default_guidance_scale if body.guidance_scale is None else body.guidance_scale,
        seed=secrets.randbelow(DRAWN_SEEDS) if body.seed is None else body.seed,
        width=width,
        height=height,
        num_images=body.num_images or 1,
        sampler=_resolve_sampler(body.sampler, diffusion.samplers),
        output_format=ImageFormat(body.output_format or ImageFormat.PNG),
        truncate=bool(body.truncate),
        long_prompt=bool(body.long_prompt),
    )


def _resolve_size(body: GenerateBody, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    default_width, default_height = sizes[0]
    width = default_width if body.width is None else body.width
    height = default_height if body.height is None else body.height
    if (width, height) in sizes:
        return width, height
    allowed = ", ".join(f"{w}x{h}" for w, h in sizes)
    raise InvalidValue(
        f"{_cut(f'{width}x{height}')} is not a size this model takes (width x height); it takes {allowed}",
        param="height" if any(width == w for w, _ in sizes) else "width",
    )


def _resolve_sampler(sampler: str | None, samplers: tuple[str, ...]) -> str:
    if sampler is None:
        return samplers[0]
    if sampler not in samplers:
        raise InvalidValue(f"sampler must be one of {', '.join(samplers)}, not {_shown(sampler)}", param="sampler")
    return sampler


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
            raise InvalidValue(f"there is no field {_shown(name)}; a request takes {known}", param=_cut(name))


def _sentence(error: ErrorDetails, written_as: Mapping[str, str]) -> InvalidValue:
    name = str(error["loc"][0])
    written = written_as.get(name, name)
    allowed = next(mark.words for mark in GenerateBody.model_fields[name].metadata if isinstance(mark, Allowed))
    if error["type"] == "missing":
        return InvalidValue(f"{written} is required: {allowed}", param=written)
    if error["type"] in ("string_too_long", "string_too_short"):
        return InvalidValue(f"{written} must be {allowed}, and has {len(error['input'])}", param=written)
    return InvalidValue(f"{written} must be {allowed}, not {_shown(error['input'])}", param=written)


def _shown(value: object) -> str:
    """A value as JSON, short and printable whatever the caller sent."""
    return _cut(json.dumps(value))


def _cut(text: str, length: int = 60) -> str:
    printable = text.encode("utf-8", "backslashreplace").decode()
    return printable if len(printable) <= length else f"{printable[:length]}..."
