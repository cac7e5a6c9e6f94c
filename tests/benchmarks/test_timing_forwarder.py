"""The forwarder before whole monoliths."""

from __future__ import annotations

import asyncio

from benchmarks.timing.forwarder import HOST, Behind, Streams, read_message

REQUEST = b"POST /generate HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"


class Monolith:
    """Answers everything, and notes its connections."""

    def __init__(self) -> None:
        self.connections: list[Streams] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append((reader, writer))
        try:
            while True:
                await read_message(reader)
                writer.write(ANSWER)
        except asyncio.IncompleteReadError:
            writer.close()


async def test_a_connection_is_used_again_unless_the_other_side_has_closed_it() -> None:
    monolith = Monolith()
    async with await asyncio.start_server(monolith.handle, HOST, 0) as server:
        behind = Behind(server.sockets[0].getsockname()[1])
        assert [await behind.exchange(REQUEST) for _ in range(2)] == [ANSWER] * 2
        assert len(monolith.connections) == 1

        monolith.connections[0][1].close()
        assert await behind.idle[0][0].read() == b""  # the end has arrived
        assert await behind.exchange(REQUEST) == ANSWER
        assert len(monolith.connections) == 2

        behind.idle[0][1].close()
        for _, writer in (*behind.idle, *monolith.connections):
            await writer.wait_closed()
