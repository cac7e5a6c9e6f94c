"""One address before whole monoliths: `python -m benchmarks.timing.forwarder PORT PORT_BEHIND...`.

Each request goes to whoever has the fewest at work, as a load balancer's `least_conn` does. It reads heads and lengths
alone, so that what is measured is the monoliths. Answers must have a Content-Length.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass, field

HOST = "127.0.0.1"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Behind:
    """A monolith: the connections that are open to it and idle, and how many requests it has."""

    port: int
    at_work: int = 0
    idle: list[Streams] = field(default_factory=list)

    async def exchange(self, message: bytes) -> bytes:
        """The whole answer to a whole request."""
        self.at_work += 1
        try:
            reader, writer = await self._connect()
            writer.write(message)
            answer = await read_message(reader)
            self.idle.append((reader, writer))
            return answer
        finally:
            self.at_work -= 1

    async def _connect(self) -> Streams:
        """An idle connection, unless the other side has closed it meanwhile: servers do so after some seconds."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(HOST, self.port, limit=2**20)


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """Head and body of a request or an answer.

    Raises:
        asyncio.IncompleteReadError: The other side has closed.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    length = next((int(value) for name, _, value in fields if name == b"content-length"), 0)
    return head + await reader.readexactly(length)


class Forwarder:
    """Answers for several monoliths. It is ready when all of them are."""

    def __init__(self, ports: list[int]) -> None:
        self.behind = [Behind(port) for port in ports]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, one request after the other."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await read_message(reader)
                writer.write(await self._answer(message))
                await writer.drain()
        writer.close()

    async def _answer(self, message: bytes) -> bytes:
        if not message.startswith(b"GET /health/ready "):
            return await min(self.behind, key=lambda each: each.at_work).exchange(message)
        try:
            answers = [await each.exchange(message) for each in self.behind]
        except (OSError, asyncio.IncompleteReadError):
            return b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        return next((answer for answer in answers if b" 200 " not in answer.partition(b"\r\n")[0]), answers[0])


async def forward(port: int, ports: list[int]) -> None:
    """Listens until the process ends."""
    forwarder = Forwarder(ports)
    server = await asyncio.start_server(forwarder.handle, HOST, port, limit=2**20)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(forward(int(sys.argv[1]), list(map(int, sys.argv[2:]))))
