"""A request as it is carried out: what a caller sent, and for a certain model what was left to it."""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass, replace
from typing import Any

from triptych.contract import ImageFormat
from triptych.errors import InvalidValue
from triptych.gateway.body import GenerateBody, cut, shown
from triptych.gateway.editing import NO_PICTURES, Pictures, describe_edit, resolve_edit
from triptych.gateway.registry import Identities
from triptych.pipeline import Edit, GenerateRequest

SHALLOW_SHARE = 1 / 3
"""What an evaluation on features of an earlier one is taken to cost, in whole ones: only the stage measures it."""

DRAWN_SEEDS = 2**32
"""A drawn seed is below this, so that JavaScript, whose numbers end at 2^53, keeps it exactly."""


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
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    cache_interval: int = 1
    edit: Edit | None = None
    mask_blur: int = 0
    takes_masked_image: bool = False

    @property
    def work(self) -> float:
        """How much it asks of the diffusion stage: pixels, for each row of the network and each evaluation."""
        rows = self.num_images * (1 if self.guidance_scale == 1 else 1 + self.guidance_end - self.guidance_start)
        steps = self.num_steps if self.edit is None else self.num_steps * self.edit.strength * self.edit.num_resamples
        return max(1.0, cost_of(steps, self.cache_interval) * rows * self.width * self.height)

    def as_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in _PLAIN} | self._unusual
        return plain if self.edit is None else plain | describe_edit(self.edit, self.mask_blur)

    def to_request(self) -> GenerateRequest:
        fields = {name: getattr(self, name) for name in _PLAIN if name not in ("model", "output_format")} | self._unusual
        request = GenerateRequest(
            **fields, image_format=self.output_format, edit=self.edit, takes_masked_image=self.takes_masked_image
        )
        is_png = self.output_format is ImageFormat.PNG
        return replace(request, image_texts=self._image_texts(request.seeds)) if is_png else request

    @property
    def _unusual(self) -> dict[str, Any]:
        """What is told only where it is not as usual."""
        return {name: value for name, usual in _USUAL.items() if (value := getattr(self, name)) != usual}

    def _image_texts(self, seeds: tuple[int, ...]) -> tuple[str, ...]:
        """For each picture what makes it again, and nothing that changes between two runs: equal requests, equal bytes."""
        shared = self.as_json()
        del shared["num_images"], shared["output_format"]
        for flag in ("truncate", "long_prompt"):
            if not shared[flag]:
                del shared[flag]
        return tuple(json.dumps(shared | {"seed": seed}, sort_keys=True, ensure_ascii=False) for seed in seeds)


_USUAL = {"guidance_start": 0.0, "guidance_end": 1.0, "cache_interval": 1}
_TOLD_APART = (*_USUAL, "edit", "mask_blur", "takes_masked_image")
_PLAIN = tuple(name for name in Parameters.__annotations__ if name not in _TOLD_APART)


def cost_of(evaluations: float, cache_interval: int) -> float:
    """Of the first so many evaluations of a request, in whole ones."""
    whole = min(evaluations, math.ceil(evaluations / cache_interval))
    return whole + SHALLOW_SHARE * (evaluations - whole)


def draw_seed() -> int:
    return secrets.randbelow(DRAWN_SEEDS)


def resolve(body: GenerateBody, model: str, identities: Identities, pictures: Pictures = NO_PICTURES) -> Parameters:
    """Fills in the model's defaults and refuses what it does not take.

    Raises:
        InvalidValue: Names the field at fault and what is allowed.
    """
    diffusion = identities.diffusion
    edit = resolve_edit(body, pictures, identities)
    width, height = _resolve_size(body, identities.sizes, pictures.size)
    return Parameters(
        model=model,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        num_steps=body.num_steps or diffusion.default_num_steps,
        guidance_scale=diffusion.default_guidance_scale if body.guidance_scale is None else body.guidance_scale,
        seed=draw_seed() if body.seed is None else body.seed,
        width=width,
        height=height,
        num_images=body.num_images or 1,
        sampler=_resolve_sampler(body.sampler, diffusion.samplers),
        output_format=ImageFormat(body.output_format or ImageFormat.PNG),
        truncate=bool(body.truncate),
        long_prompt=bool(body.long_prompt),
        **_guidance_limits(body),
        cache_interval=_resolve_cache_interval(body.cache_interval, takes_it=diffusion.takes_cache_interval),
        edit=edit,
        mask_blur=body.mask_blur or 0,
        takes_masked_image=diffusion.takes_masked_image,
    )


def _resolve_size(
    body: GenerateBody, sizes: tuple[tuple[int, int], ...], size_of_image: tuple[int, int] | None
) -> tuple[int, int]:
    default_width, default_height = size_of_image or sizes[0]
    width = default_width if body.width is None else body.width
    height = default_height if body.height is None else body.height
    if size_of_image not in (None, (width, height)):
        raise InvalidValue(
            f"the image has {default_width}x{default_height} pixels, {width}x{height} are asked for; they must be the same",
            param="width" if width != default_width else "height",
        )
    if (width, height) in sizes:
        return width, height
    if size_of_image is not None:
        allowed = ", ".join(f"{w}x{h}" for w, h in sizes)
        raise InvalidValue(f"the image has {width}x{height} pixels; this model takes {allowed}", param="image")
    allowed = ", ".join(f"{w}x{h}" for w, h in sizes)
    raise InvalidValue(
        f"{cut(f'{width}x{height}')} is not a size this model takes (width x height); it takes {allowed}",
        param="height" if any(width == w for w, _ in sizes) else "width",
    )


def _guidance_limits(body: GenerateBody) -> dict[str, float]:
    start = 0.0 if body.guidance_start is None else body.guidance_start
    end = 1.0 if body.guidance_end is None else body.guidance_end
    if start > end:
        raise InvalidValue(
            f"guidance_start must be no more than guidance_end, which is {end:g}, not {start:g}", param="guidance_start"
        )
    return {"guidance_start": start, "guidance_end": end}


def _resolve_cache_interval(cache_interval: int | None, *, takes_it: bool) -> int:
    if cache_interval not in (None, 1) and not takes_it:
        raise InvalidValue(
            f"cache_interval must be 1 with this model, whose diffusion stage does not reuse features, not {cache_interval}",
            param="cache_interval",
        )
    return cache_interval or 1


def _resolve_sampler(sampler: str | None, samplers: tuple[str, ...]) -> str:
    if sampler is None:
        return samplers[0]
    if sampler not in samplers:
        raise InvalidValue(f"sampler must be one of {', '.join(samplers)}, not {shown(sampler)}", param="sampler")
    return sampler
