"""A gateway in this process, in front of fake stages."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
from fastapi import FastAPI
from starlette.types import Message

from tests.fakes import FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder
from triptych.gateway.app import create_app
from triptych.gateway.settings import GatewaySettings
from triptych.pipeline import Pipeline


@dataclass
class Stages:
    """Three fakes, and gateways in front of them."""

    text_encoder: FakeTextEncoder = field(default_factory=FakeTextEncoder)
    diffusion: FakeDiffusion = field(default_factory=FakeDiffusion)
    decoder: FakeDecoder = field(default_factory=FakeDecoder)
    image_encoder: FakeImageEncoder | None = None

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(self.text_encoder, self.diffusion, self.decoder, self.image_encoder)

    def app(self, **settings: Any) -> FastAPI:
        return create_app(GatewaySettings(**settings), {"": self.pipeline})

    def client(self, **settings: Any) -> httpx2.AsyncClient:
        return client_of(self.app(**settings))


def client_of(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1")


def events_of(text: str) -> Iterator[tuple[str, Any]]:
    """Server-sent events as (name, data)."""
    for block in text.strip().split("\n\n"):
        name, data = (line.partition(": ")[2] for line in block.split("\n"))
        yield name, json.loads(data)


async def until(condition: Callable[[], object]) -> None:
    """Lets other tasks run until something holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


class Connection:
    """A connection of a caller that posts to /generate and closes when it likes, which `ASGITransport` cannot do."""

    def __init__(
        self, app: FastAPI, body: dict[str, Any], *, accept: str = "application/json", name: str = "", idempotency_key: str = ""
    ) -> None:
        self.sent: list[Message] = []
        self._closed = asyncio.Event()
        self._incoming: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        headers = [(b"content-type", b"application/json"), (b"accept", accept.encode()), (b"x-request-id", name.encode())]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/generate",
            "raw_path": b"/generate",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 12345),
            "server": ("127.0.0.1", 8000),
        }
        if idempotency_key:
            scope["headers"] = [*headers, (b"idempotency-key", idempotency_key.encode())]
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._incoming:
            return self._incoming.pop(0)
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def close(self) -> None:
        """Closes the connection and waits until the app is done with it."""
        self._closed.set()
        await self.task

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None
