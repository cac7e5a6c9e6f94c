"""Tensors like Stable Diffusion's, and requests and responses that go over the wire and come back."""

from __future__ import annotations

import numpy as np

from triptych.wire.open_inference import (
    InferRequest,
    InferResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

CONTEXT = np.linspace(0, 1, 2 * 77 * 768, dtype=np.float32).reshape(2, 77, 768)
LATENTS = np.linspace(-1, 1, 2 * 8 * 12 * 4, dtype=np.float32).reshape(2, 8, 12, 4)


def over_the_wire(request: InferRequest) -> InferRequest:
    body = encode_request(request)
    return decode_request(body.content, body.header_length)


def back_over_the_wire(response: InferResponse) -> InferResponse:
    body = encode_response(response)
    return decode_response(body.content, body.header_length)


def assert_same(left: object, right: object) -> None:
    """Equal dataclasses, arrays compared by their bytes."""
    assert type(left) is type(right)
    for name, value in vars(left).items():
        other = vars(right)[name]
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.shape, value.tobytes()) == (other.dtype, other.shape, other.tobytes())
        else:
            assert value == other
