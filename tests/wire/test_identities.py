from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes import DECODER, DIFFUSION, TEXT_ENCODER
from triptych.contract import DecoderIdentity, DiffusionIdentity, Task, TextEncoderIdentity
from triptych.errors import MalformedRequest
from triptych.wire.identities import from_parameters, to_parameters
from triptych.wire.open_inference import Scalar


def test_identities_come_back() -> None:
    warnings = ("the model recommends X, Y or Z; ddim is used", "and more")
    inpainting = replace(DIFFUSION, tasks=(Task.TEXT_TO_IMAGE, Task.INPAINTING), warnings=warnings)
    assert from_parameters(TextEncoderIdentity, to_parameters(TEXT_ENCODER)) == TEXT_ENCODER
    assert from_parameters(DiffusionIdentity, to_parameters(inpainting)) == inpainting
    assert from_parameters(DecoderIdentity, to_parameters(DECODER)) == DECODER


def test_numerics_of_an_int8_network_come_back_and_others_tell_nothing_of_it() -> None:
    numerics = replace(DECODER.numerics, precision="int8", float_precision="bfloat16", quantized="a" * 64)
    quantized = replace(DECODER, numerics=numerics)
    parameters = to_parameters(quantized)
    assert (parameters["numerics_float_precision"], parameters["numerics_quantized"]) == ("bfloat16", "a" * 64)
    assert from_parameters(DecoderIdentity, parameters) == quantized
    assert not {"numerics_float_precision", "numerics_quantized"} & to_parameters(DECODER).keys()


def test_parameters_are_scalars_under_names_that_clients_allow() -> None:
    parameters = to_parameters(DIFFUSION)
    assert (parameters["exact"], parameters["exact_batch_sizes"]) == (True, "1,2,4")
    assert parameters["sizes"] == "64x64,96x64,64x96"
    assert parameters["samplers"] == "ddim,euler"
    assert parameters["numerics_instruction_set"] == "none"
    for name, value in parameters.items():
        assert type(value) in (bool, int, float, str)
        assert not name.startswith(("sequence_", "triton_"))
        assert name not in ("priority", "timeout", "headers")


def test_a_stage_that_does_not_say_whether_it_is_exact_claims_nothing() -> None:
    parameters = {name: value for name, value in to_parameters(DIFFUSION).items() if "exact" not in name}
    assert from_parameters(DiffusionIdentity, parameters) == replace(DIFFUSION, exact=False, exact_batch_sizes=())


def test_a_whole_number_is_a_number() -> None:
    parameters = to_parameters(DIFFUSION) | {"default_guidance_scale": 7}
    assert from_parameters(DiffusionIdentity, parameters).default_guidance_scale == 7.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text_space": None}, "the metadata has no parameter text_space"),
        ({"numerics_device": None}, "the metadata has no parameter numerics_device"),
        ({"numerics_quantized": 5}, "numerics_quantized in the metadata is no str"),
        ({"context_width": "768"}, "context_width in the metadata is no int"),
        ({"context_width": True}, "context_width in the metadata is no int"),
        ({"default_guidance_scale": "7"}, "default_guidance_scale in the metadata is no float"),
        ({"sizes": "64"}, "sizes in the metadata cannot be read: '64'"),
        ({"sizes": "64x64x64"}, "sizes in the metadata cannot be read"),
        ({"exact": "yes"}, "exact in the metadata is no bool"),
        ({"exact_batch_sizes": "1,two"}, "exact_batch_sizes in the metadata cannot be read: '1,two'"),
        ({"tasks": "painting"}, "tasks in the metadata cannot be read: 'painting'"),
    ],
)
def test_an_identity_that_cannot_be_read_is_refused(changes: dict[str, Scalar], sentence: str) -> None:
    with pytest.raises(MalformedRequest, match=sentence):
        from_parameters(DiffusionIdentity, to_parameters(DIFFUSION) | changes)
