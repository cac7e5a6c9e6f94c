"""What reaches a gateway's real socket and lies: about its size, its depth, its paths. It is refused, and nothing is touched."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import select
import socket
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import FakeImageEncoder
from tests.gateway.running import Stages
from tests.gateway.served import served

MAX_BODY_BYTES = 2**16
HEAD = b"POST /generate HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a gateway that reads 64 kB at most."""
    with served(Stages().app(max_body_bytes=MAX_BODY_BYTES)) as address:
        yield int(address.rpartition(":")[2])


def status_of(port: int, sent: bytes) -> int:
    """What is answered to some bytes, while the connection stays open for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        line = connection.makefile("rb").readline()
    return int(line.split()[1])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 1000000000000\r\n\r\n", 413),
        (b"Content-Length: 99999999999999999999999999\r\n\r\n", 400),
        (b"Content-Length: -1\r\n\r\n", 400),
        (b"Content-Length: 0x10\r\n\r\n", 400),
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 3, 413),
        (b"X-Long: " + b"x" * 2**20 + b"\r\n\r\n", 400),
    ],
    ids=["a-terabyte", "beyond-64-bits", "negative", "hexadecimal", "two-lengths", "contradicting", "chunk", "endless", "header"],
)
def test_a_size_that_lies_is_refused_before_more_is_read(port: int, headers: bytes, status: int) -> None:
    assert status_of(port, HEAD + headers) == status
    assert status_of(port, HEAD + b"Content-Length: 2\r\n\r\n{}") == 422


def dripping(address: str, head: bytes) -> bytes:
    """What is answered to a body of which a byte comes now and then, until the other side closes the connection."""
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        while not select.select([connection], [], [], 0.02)[0]:
            with contextlib.suppress(ConnectionError):  # it may close just now
                connection.sendall(b" ")
        return received(connection)


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes the connection, also where bytes that it has not read make that a reset."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(2**16):
            answer += part
    return answer


@pytest.mark.parametrize("path", [b"/generate", b"/jobs", b"/admin/swap"])
def test_a_body_that_drips_in_is_not_waited_for(tmp_path, path: bytes) -> None:
    kept = {"jobs_database": str(tmp_path / "jobs.sqlite3"), "jobs_store": str(tmp_path / "jobs")}
    with served(Stages().app(body_timeout_seconds=0.3, **kept)) as address:
        # Stages are exchanged by this machine alone, which must call the gateway by one of its own names.
        answer = dripping(address, HEAD.replace(b"/generate", path).replace(b"Host: gateway", b"Host: 127.0.0.1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("body_too_slow", "request_timeout_error")
    assert error["message"] == "the body was not all here after 0.3 s, which is as long as it is waited for"


# Names that are paths


@contextlib.contextmanager
def touched() -> Iterator[list[tuple[str, Any]]]:
    """What this process does to files meanwhile: those it opens, makes, moves or removes."""
    seen: list[tuple[str, Any]] = []
    watched.append(seen)
    try:
        yield seen
    finally:
        watched.remove(seen)


EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree")
watched: list[list[tuple[str, Any]]] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    # Python reads its own source where it describes an error.
    if watched and event in EVENTS and not str(arguments[0]).endswith(".py"):
        for seen in watched:
            seen.append((event, arguments[0]))


sys.addaudithook(_watch)

TRICKS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "file:///etc/passwd",
    "page.js%00.html",
    "con",
    "~root/.ssh/id_rsa",
]


@pytest.mark.parametrize("name", TRICKS)
async def test_a_path_where_a_name_belongs_is_not_followed(name: str) -> None:
    async with Stages().client() as client:
        await client.get("/models")
        with touched() as files:
            answers = [
                await client.post("/generate", json={"prompt": "x", "model": name}),
                await client.post("/generate", json={"prompt": "x", "sampler": name}),
                await client.get(f"/page/{name}"),
                await client.delete(f"/requests/{name}"),
                await client.post("/admin/swap", json={"stage": "decoder", "to": [name]}),
            ]
    # 409: this gateway has no topology file, so nothing can be swapped.
    assert {answer.status_code for answer in answers} <= {404, 405, 409, 422}
    assert files == []


def test_what_is_opened_would_be_seen(tmp_path) -> None:
    with touched() as files:
        (tmp_path / "a").write_text("x")
    assert files == [("open", str(tmp_path / "a"))]


# Pictures


def png(width: int, height: int, *, chunks: bytes = b"") -> bytes:
    """A picture that says it is this large; its data are a few bytes of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A compressed text of 100 MB beside a picture."""
    data = b"k\0\0" + zlib.compress(bytes(10**8), 9)
    return struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))


def flat(side: int) -> bytes:
    """A picture of one colour, whose file is a thousandth of its pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("picture", "status"),
    [
        (png(2**31 - 1, 2**31 - 1), 413),
        (png(100_000, 100_000), 413),
        (png(5000, 5000), 413),
        (png(0, 0), 422),
        (png(64, 64, chunks=text_bomb()), 422),
        (flat(5000), 413),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20), 422),
        (b"II*\0" + bytes(100), 422),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 100, 422),
    ],
    ids=["two-billion-wide", "hundred-thousand", "five-thousand", "nothing", "text", "flat", "gif", "tiff", "garbage"],
)
async def test_a_picture_bomb_is_refused_before_it_is_unpacked(picture: bytes, status: int) -> None:
    body = json.dumps({"prompt": "x", "image": base64.b64encode(picture).decode()}).encode()
    async with Stages(image_encoder=FakeImageEncoder()).client() as client:
        await client.post("/generate", content=body, headers={"Content-Type": "application/json"})
        tracemalloc.start()
        try:
            with touched() as files:
                response = await client.post("/generate", content=body, headers={"Content-Type": "application/json"})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == "image"
    assert peak < 8 * 2**20
    assert files == []
