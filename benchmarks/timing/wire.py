"""What a hop between gateway and stage takes: our binary tensors against base64 in JSON, which is how the ancestor sent them.

Both carry the same arrays, those of one guided picture at 512x512, over the same loopback connection. A hop is counted from
arrays at one end to arrays at the other; HTTP itself is left out, as it is the same for both.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stand_in import CONTEXT_SHAPE, HEIGHT, LATENTS_SHAPE, WIDTH, StandInDecoder, StandInDiffusion, StandInTextEncoder
from triptych.contract import (
    Decoded,
    DecodeRequest,
    Denoised,
    DenoiseRequest,
    Encoded,
    EncodeRequest,
    ImageFormat,
)
from triptych.wire import decoder, diffusion, text_encoder
from triptych.wire.open_inference import (
    Body,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

_REPEATS, _WARM_UPS = 40, 5
_ACKNOWLEDGED = b"."


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one message is written and read."""

    write: Callable[[], bytes]
    read: Callable[[bytes], Any]


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One message between gateway and stage, in both formats. The bytes are of the body."""

    hop: str
    array_bytes: int
    binary_bytes: int
    binary_microseconds: float
    base64_bytes: int
    base64_microseconds: float


def measure_hops() -> list[dict[str, Any]]:
    """Medians over repeats, the two formats in turn."""
    with _listener() as connection:
        return [asdict(_measure(hop, arrays, ours, theirs, connection)) for hop, arrays, ours, theirs in _messages()]


def _measure(hop: str, array_bytes: int, ours: Format, theirs: Format, connection: socket.socket) -> Hop:
    times: dict[int, list[float]] = {0: [], 1: []}
    for repeat in range(_WARM_UPS + _REPEATS):
        for number, each in enumerate((ours, theirs)):
            seconds = _carry(each, connection)
            if repeat >= _WARM_UPS:
                times[number].append(1e6 * seconds)
    return Hop(
        hop=hop,
        array_bytes=array_bytes,
        binary_bytes=len(ours.write()),
        binary_microseconds=statistics.median(times[0]),
        base64_bytes=len(theirs.write()),
        base64_microseconds=statistics.median(times[1]),
    )


def _carry(message: Format, connection: socket.socket) -> float:
    started = time.perf_counter()
    content = message.write()
    connection.sendall(len(content).to_bytes(4, "little") + content)
    assert connection.recv(1) == _ACKNOWLEDGED
    message.read(content)
    return time.perf_counter() - started


@contextmanager
def _listener() -> Iterator[socket.socket]:
    """A connection over loopback whose other end reads each message whole and says so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_listen, args=(server,), daemon=True)
        thread.start()
        with socket.create_connection(server.getsockname()) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection
        thread.join()


def _listen(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as messages:
        while head := messages.read(4):
            messages.read(int.from_bytes(head, "little"))
            connection.sendall(_ACKNOWLEDGED)


def _messages() -> Iterator[tuple[str, int, Format, Format]]:
    """Of one guided picture: the hop's name, the bytes of its arrays, and both formats."""
    rng = np.random.default_rng(0)
    contexts = rng.standard_normal((2, *CONTEXT_SHAPE), np.float32)
    latents = rng.standard_normal((1, *LATENTS_SHAPE), np.float32)
    file = StandInDecoder().file
    prompts = EncodeRequest(prompts=("a red circle on a blue background", ""))
    denoise = DenoiseRequest(
        context=contexts[:1],
        unconditional_context=contexts[1:],
        seeds=np.array([1], np.uint64),
        width=WIDTH,
        height=HEIGHT,
        sampler="ddim",
        num_steps=20,
        guidance_scale=7.5,
    )
    decode = DecodeRequest(latents=latents, image_format=ImageFormat.PNG)
    scalars = {"width": WIDTH, "height": HEIGHT, "sampler": "ddim", "num_steps": 20, "guidance_scale": 7.5}
    encoder_identity = asyncio.run(StandInTextEncoder().identity())
    diffusion_identity = asyncio.run(StandInDiffusion().identity())
    decoder_identity = asyncio.run(StandInDecoder().identity())
    yield (
        "prompts to text encoder",
        sum(map(len, prompts.prompts)),
        _request(lambda: text_encoder.write_request(prompts), lambda read: text_encoder.read_request(read, encoder_identity)),
        _in_json({"prompts": list(prompts.prompts)}),
    )
    yield (
        "contexts back",
        contexts.nbytes,
        _response(
            lambda: text_encoder.write_response(Encoded(context=contexts)),
            lambda read: text_encoder.read_response(read, prompts),
        ),
        _in_json({}, context=contexts[:1], unconditional_context=contexts[1:]),
    )
    yield (
        "contexts to diffusion",
        contexts.nbytes + denoise.seeds.nbytes,
        _request(lambda: diffusion.write_request(denoise), lambda read: diffusion.read_request(read, diffusion_identity)),
        _in_json({**scalars, "seed": 1}, context=contexts[:1], unconditional_context=contexts[1:]),
    )
    yield (
        "latents back",
        latents.nbytes,
        _response(
            lambda: diffusion.write_response(Denoised(latents=latents)), lambda read: diffusion.read_response(read, denoise)
        ),
        _in_json({}, latents=latents),
    )
    yield (
        "latents to decoder",
        latents.nbytes,
        _request(lambda: decoder.write_request(decode), lambda read: decoder.read_request(read, decoder_identity)),
        _in_json({"image_format": "png"}, latents=latents),
    )
    yield (
        "picture back",
        len(file),
        _response(lambda: decoder.write_response(Decoded(images=(file,))), lambda read: decoder.read_response(read, decode)),
        _in_json({}, image=np.frombuffer(file, np.uint8)),
    )


def _request(write: Callable[[], Any], read: Callable[[Any], Any]) -> Format:
    length = encode_request(write()).header_length
    return Format(write=lambda: _content(encode_request(write())), read=lambda content: read(decode_request(content, length)))


def _response(write: Callable[[], Any], read: Callable[[Any], Any]) -> Format:
    length = encode_response(write()).header_length
    return Format(write=lambda: _content(encode_response(write())), read=lambda content: read(decode_response(content, length)))


def _content(body: Body) -> bytes:
    return body.content


def _in_json(scalars: dict[str, Any], **arrays: NDArray[Any]) -> Format:
    """Raw numbers in base64 within JSON, without dtype or shape: who reads them has to know."""
    kinds = {name: (array.dtype, array.shape) for name, array in arrays.items()}

    def write() -> bytes:
        texts = {name: base64.b64encode(array.tobytes()).decode("ascii") for name, array in arrays.items()}
        return json.dumps(scalars | texts).encode()

    def read(content: bytes) -> dict[str, Any]:
        fields = json.loads(content)
        for name, (dtype, shape) in kinds.items():
            fields[name] = np.frombuffer(base64.b64decode(fields[name]), dtype).reshape(shape)
        return dict(fields)

    return Format(write=write, read=read)
