"""Frames and bodies that are almost right: each is read or refused with a sentence, and takes no more memory than it brought.

`python -m tests.fuzz.codec --cases 100000` tries that many; `test_codec.py` a few of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fakes import DECODER, DIFFUSION, TEXT_ENCODER
from triptych.errors import CallerError
from triptych.wire import decoder, diffusion, text_encoder
from triptych.wire.datatypes import bytes_tensor
from triptych.wire.frames import Frame, FrameReader, Kind, encode_frame, error_frame, read_refusal
from triptych.wire.metadata import ANY, TensorSpec
from triptych.wire.open_inference import (
    Body,
    InferRequest,
    InferResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

MAX_GROWTH_BYTES = 8 * 2**20
PORTION = 10_000
KEPT = 2000

CONTEXT = np.full((1, 77, 768), 0.5, np.float32)
LATENTS = np.full((1, 8, 8, 4), 0.5, np.float32)
STATE = TensorSpec(name="latents", datatype="FP32", shape=(ANY, ANY, ANY, 4))

REQUESTS: Mapping[str, tuple[InferRequest, Callable[[InferRequest], object]]] = {
    "text_encoder": (
        InferRequest(inputs={"prompt": bytes_tensor([b"a red circle", b""])}, parameters={"truncate": True}, id="7"),
        lambda request: text_encoder.read_request(request, TEXT_ENCODER),
    ),
    "diffusion": (
        InferRequest(
            inputs={"context": CONTEXT, "unconditional_context": CONTEXT, "seed": np.array([7], np.uint64)},
            parameters={"num_steps": 4, "guidance_scale": 7.5, "sampler": "ddim"},
        ),
        lambda request: diffusion.read_request(request, DIFFUSION),
    ),
    "decoder": (
        InferRequest(inputs={"latents": LATENTS}, parameters={"image_format": "png"}),
        lambda request: decoder.read_request(request, DECODER),
    ),
}
RESPONSE = InferResponse(model_name="decoder", outputs={"images": np.zeros((1, 4, 4, 3), np.uint8)}, id="7")
STREAM = b"".join(
    encode_frame(frame)
    for frame in (
        Frame(
            kind=Kind.PROGRESS,
            response=InferResponse(model_name="m", outputs={}, parameters={"position": 1, "num_evaluations": 2}),
        ),
        Frame(kind=Kind.STATE, response=InferResponse(model_name="m", outputs={"latents": LATENTS})),
        Frame(kind=Kind.RESULT, response=InferResponse(model_name="m", outputs={"latents": LATENTS})),
    )
)
REFUSED = encode_frame(error_frame(CallerError("no", param="prompt"), model_name="m"))

ODD_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        2**64,
        10**30,
        0.5,
        1e308,
        -0.0,
        "",
        "x",
        "FP32",
        "BYTES",
        "\ud800",
        "prompt",
        "result",
    ),
    *([], {}, [[]], [0], [-1], [2**40, 2**40], {"binary_data_size": 2**40}, {"shared_memory_region": "r"}, "latents", "\x00"),
)


@dataclass(frozen=True)
class Message:
    """What is sent, as which kind."""

    kind: str
    content: bytes
    header_length: int | None = None


def _message(kind: str, body: Body) -> Message:
    return Message(kind, body.content, body.header_length)


SEEDS = (
    *(_message(kind, encode_request(request)) for kind, (request, _) in REQUESTS.items()),
    _message("response", encode_response(RESPONSE)),
    _message("response", encode_response(RESPONSE, is_binary=lambda _: False)),
    Message("frames", STREAM),
    Message("frames", REFUSED),
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """A right message with a few wrong bytes, or a few wrong values in its header; or with a length that lies."""
    message = draw(st.sampled_from(SEEDS))
    if draw(st.booleans()):
        message = _with_odd_values(message, draw)
    content = bytearray(message.content)
    for _ in range(draw(st.integers(0, 4))):
        _change(content, draw)
    length = message.header_length
    if message.kind != "frames" and draw(st.integers(0, 4)) == 0:
        length = draw(st.none() | st.integers(0, len(content) + 10))
    return Message(message.kind, bytes(content), length)


def _change(content: bytearray, draw: st.DrawFn) -> None:
    """Overwrites, inserts, removes or repeats a few bytes, most often near the front, where the header is."""
    near = len(content) if draw(st.booleans()) else min(len(content), 400)
    start = draw(st.integers(0, near))
    piece = draw(st.binary(max_size=8))
    match draw(st.sampled_from(["overwrite", "insert", "remove", "repeat", "cut"])):
        case "overwrite":
            content[start : start + len(piece)] = piece
        case "insert":
            content[start:start] = piece
        case "remove":
            del content[start : start + draw(st.integers(1, 64))]
        case "repeat":
            content[start:start] = content[start : start + draw(st.integers(1, 64))]
        case "cut":
            del content[start:]


def _with_odd_values(message: Message, draw: st.DrawFn) -> Message:
    """The message with another value somewhere in its first header, whose length is right."""
    is_framed = message.kind == "frames"
    length = struct.unpack_from("<I", message.content)[0] if is_framed else message.header_length or len(message.content)
    begin = 4 if is_framed else 0
    header = json.loads(message.content[begin : begin + length])
    at = draw(st.sampled_from(list(_places(header))))
    at[0][at[1]] = draw(st.sampled_from(ODD_VALUES))
    text = json.dumps(header).encode()
    rest = message.content[begin + length :]
    if is_framed:
        return Message(message.kind, struct.pack("<I", len(text)) + text + rest)
    return Message(message.kind, text + rest, None if message.header_length is None else len(text))


def _places(value: Any) -> Any:
    """Every container and key or index under a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def read(message: Message) -> int:
    """Reads a message as whoever gets it does.

    Returns:
        Bytes of the tensors that were made of it.

    Raises:
        CallerError: It is refused, in one sentence.
    """
    if message.kind == "frames":
        return _read_frames(message.content)
    if message.kind == "response":
        return _size(decode_response(message.content, message.header_length).outputs)
    request = decode_request(message.content, message.header_length)
    REQUESTS[message.kind][1](request)
    return _size(request.inputs)


def _read_frames(content: bytes) -> int:
    reader = FrameReader({Kind.STATE: (STATE,), Kind.RESULT: (STATE,)}, limit=2**20)
    size = 0
    for start in range(0, len(content), 777):
        for frame in reader.feed(content[start : start + 777]):
            size += _size(frame.response.outputs)
            if frame.kind is Kind.ERROR:
                read_refusal(frame)
    return size


def _size(tensors: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in tensors.values())


def check(message: Message) -> None:
    """Raises where a message does anything but be read, or refused in one short sentence."""
    try:
        size = read(message)
    except CallerError as refusal:
        _check_refusal(refusal)
        return
    # An element of a BYTES tensor takes four bytes on the wire, and eight here.
    assert size <= 8 * len(message.content)


def _check_refusal(refusal: CallerError) -> None:
    assert 400 <= refusal.status < 500 or refusal.status == 501
    assert len(refusal.message) < 1000
    assert "\n" not in refusal.message


def try_messages(cases: int, tried: deque[Message] | None = None) -> None:
    """Tries that many, and keeps the latest. The first that does what it must not is shown as small as it can be made."""

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(messages())
    def try_one(message: Message) -> None:
        if tried is not None:
            tried.append(message)
        check(message)

    try_one()


def growth_over(tried: Sequence[Message], times: int) -> int:
    """Bytes that this process holds more after some messages were read again and again; of hypothesis it has nothing."""

    def read_all(times: int) -> int:
        for _ in range(times):
            for message in tried:
                check(message)
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    return -read_all(1) + read_all(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    cases = parser.parse_args().cases
    started = time.monotonic()
    tried: deque[Message] = deque(maxlen=KEPT)
    for done in range(0, cases, PORTION):  # in portions, since hypothesis remembers what it has tried
        try_messages(min(PORTION, cases - done), tried)
    seconds = time.monotonic() - started
    growth = growth_over(tried, times=20)
    sys.stdout.write(f"{cases} messages in {seconds:.0f} s: each was read or refused\n")
    sys.stdout.write(f"{len(tried)} of them 20 times more: {growth / 2**20:.1f} MiB more held\n")
    assert growth < MAX_GROWTH_BYTES


if __name__ == "__main__":
    main()
