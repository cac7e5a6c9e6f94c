from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes import DECODER, DIFFUSION, TEXT_ENCODER
from triptych.contract import ImageFormat
from triptych.errors import CallerError, InvalidValue
from triptych.gateway.body import ALIASES, GenerateBody, parse_body
from triptych.gateway.parameters import SHALLOW_SHARE, Parameters, cost_of, resolve
from triptych.gateway.registry import Identities

IDENTITIES = Identities(text_encoder=TEXT_ENCODER, diffusion=DIFFUSION, decoder=DECODER)


def resolved(**fields: Any) -> Parameters:
    return resolve(parse_body(json.dumps({"prompt": "x", **fields}).encode()), "mine", IDENTITIES)


@pytest.mark.parametrize(
    ("given_size", "size"),
    [({}, (64, 64)), ({"width": 96}, (96, 64)), ({"height": 96}, (64, 96)), ({"width": 64, "height": 96}, (64, 96))],
)
def test_a_missing_side_is_the_default_ones(given_size: dict[str, int], size: tuple[int, int]) -> None:
    parameters = resolved(**given_size)
    assert (parameters.width, parameters.height) == size


def test_no_guidance_is_a_value_and_not_a_missing_one() -> None:
    assert resolved(guidance_scale=0).guidance_scale == 0.0


def test_the_limits_of_guidance_are_told_where_they_are_not_the_usual_ones() -> None:
    limited, usual = (
        resolved(seed=1, guidance_start=0.25, guidance_end=0.75),
        resolved(seed=1, guidance_start=0.0, guidance_end=1.0),
    )
    request = limited.to_request()
    assert (request.guidance_start, request.guidance_end) == (0.25, 0.75)
    assert {"guidance_start": 0.25, "guidance_end": 0.75}.items() <= json.loads(request.image_texts[0]).items()
    assert limited.as_json().keys() - usual.as_json().keys() == {"guidance_start", "guidance_end"}
    assert limited.work < usual.work


def test_guidance_does_not_end_before_it_starts() -> None:
    with pytest.raises(InvalidValue, match=r"no more than guidance_end, which is 0\.5, not 0\.6") as refused:
        resolved(guidance_start=0.6, guidance_end=0.5)
    assert refused.value.param == "guidance_start"


REUSING = replace(IDENTITIES, diffusion=replace(DIFFUSION, takes_cache_interval=True))


def test_an_interval_is_told_where_it_is_not_the_usual_one() -> None:
    reusing, usual = (
        resolve(GenerateBody(prompt="x", seed=1, num_steps=20, cache_interval=interval), "mine", REUSING) for interval in (5, 1)
    )
    request = reusing.to_request()
    assert request.cache_interval == 5
    assert json.loads(request.image_texts[0])["cache_interval"] == 5
    assert reusing.as_json().keys() - usual.as_json().keys() == {"cache_interval"}
    # Four whole evaluations and sixteen shallow ones.
    assert reusing.work / usual.work == pytest.approx((4 + 16 * SHALLOW_SHARE) / 20)


def test_an_interval_is_refused_where_the_stage_does_not_reuse_features() -> None:
    assert resolved(cache_interval=1).cache_interval == resolved().cache_interval == 1
    with pytest.raises(InvalidValue, match="whose diffusion stage does not reuse features, not 2") as refused:
        resolved(cache_interval=2)
    assert refused.value.param == "cache_interval"


@pytest.mark.parametrize(
    ("evaluations", "cost"), [(0, 0), (1, 1), (3, 1 + 2 * SHALLOW_SHARE), (4, 2 + 2 * SHALLOW_SHARE), (0.4, 0.4)]
)
def test_what_evaluations_cost(evaluations: float, cost: float) -> None:
    assert cost_of(evaluations, 3) == pytest.approx(cost)
    assert cost_of(evaluations, 1) == evaluations


def test_the_models_defaults_are_its_own() -> None:
    other = replace(DIFFUSION, default_num_steps=7, default_guidance_scale=1.5, samplers=("unipc",), sizes=((96, 64),))
    identities = Identities(text_encoder=TEXT_ENCODER, diffusion=other, decoder=DECODER)
    parameters = resolve(GenerateBody(prompt="x"), "mine", identities)
    assert (parameters.num_steps, parameters.guidance_scale) == (7, 1.5)
    assert (parameters.sampler, parameters.width, parameters.height) == ("unipc", 96, 64)


def test_the_text_of_a_picture_is_one_line_of_sorted_json_without_what_changes() -> None:
    request = resolved(seed=2**64 - 1, num_images=2, guidance_scale=3).to_request()
    assert request.image_texts == (
        '{"guidance_scale": 3.0, "height": 64, "model": "mine", "negative_prompt": "", "num_steps": 4, "prompt": "x", '
        '"sampler": "ddim", "seed": 18446744073709551615, "width": 64}',
        '{"guidance_scale": 3.0, "height": 64, "model": "mine", "negative_prompt": "", "num_steps": 4, "prompt": "x", '
        '"sampler": "ddim", "seed": 0, "width": 64}',
    )
    assert request.image_format is ImageFormat.PNG


def test_a_prompt_that_was_cut_is_cut_again() -> None:
    (text,) = resolved(seed=1, truncate=True).to_request().image_texts
    assert json.loads(text)["truncate"] is True


def test_a_long_prompt_is_long_again() -> None:
    request = resolved(seed=1, long_prompt=True).to_request()
    assert request.long_prompt
    assert request.to_encode().long_prompt
    assert json.loads(request.image_texts[0])["long_prompt"] is True


def test_every_alias_stands_for_a_field() -> None:
    assert set(ALIASES) <= set(GenerateBody.model_fields)
    assert not {alias for aliases in ALIASES.values() for alias in aliases} & set(GenerateBody.model_fields)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(), PLAIN, max_size=3)
fuzzed = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.sampled_from([*GenerateBody.model_fields, *(alias for each in ALIASES.values() for alias in each)]) | st.text()


@fuzzed
@given(st.dictionaries(NAMES, VALUES))
def test_whatever_is_sent_is_understood_or_refused_with_one_line(document: dict[str, Any]) -> None:
    try:
        parameters = resolve(parse_body(json.dumps(document).encode()), "mine", IDENTITIES)
    except CallerError as error:
        words, param = error.message, error.param
    else:
        words = param = ""
        assert 1 <= parameters.num_steps <= 150
        assert 0 <= parameters.seed < 2**64
        assert (parameters.width, parameters.height) in IDENTITIES.sizes
    assert "\n" not in words
    assert json.dumps([words, param], ensure_ascii=False).encode("utf-8"), "what goes into an answer must be encodable"


@fuzzed
@given(st.binary())
def test_any_bytes_are_understood_or_refused(raw: bytes) -> None:
    with pytest.raises(CallerError):
        parse_body(raw)


@pytest.mark.parametrize("name", ["prompt", "a\nb", "\ud800", "\x00", "\x1b[31m"])
def test_names_of_strangers_are_printable(name: str) -> None:
    with pytest.raises(InvalidValue) as error:
        parse_body(json.dumps({"prompt": "x", f"{name}?": 1}).encode())
    assert error.value.message.isprintable()
