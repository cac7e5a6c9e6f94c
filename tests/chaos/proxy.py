"""A small TCP proxy that stands before a stage and does to its connections what networks do."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from queue import Queue

CHUNK = 2**16
DRIP_SECONDS = 0.2
REFUSED_SECONDS = 1.0


class Fault(StrEnum):
    """What is done to a connection, from a random moment on."""

    REFUSE = "refuse"
    """It is closed, and for a while nobody listens."""
    BREAK = "break"
    """It is closed in the middle of the answer."""
    CORRUPT = "corrupt"
    """A byte of an answer in frames is another one; other answers do not say what they were."""
    STALL = "stall"
    """Nothing comes any more, and it stays open."""
    DRIP = "drip"
    """The answer comes byte by byte."""


ANSWER = b"HTTP/1.1 200"
FRAMES = b"application/vnd.triptych.frames"


@dataclass
class Proxy:
    """Passes connections on to one port.

    Attributes:
        faults: Those that befall connections now; none is none.
        share: Of the connections that something befalls, 0 to 1.
        done: How often each fault was done.
    """

    to: int
    randomness: random.Random
    faults: tuple[Fault, ...] = ()
    share: float = 0.1
    port: int = 0
    done: dict[Fault, int] = field(default_factory=dict)
    _server: asyncio.Server = field(init=False)
    _connected: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    async def serve(self, started: threading.Event, ended: asyncio.Event) -> None:
        await self._listen()
        started.set()
        await ended.wait()
        self._server.close()
        # A task that is cancelled before it began closes nothing.
        for task, writer in self._connected.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*self._connected, return_exceptions=True)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._befall(reader, writer))
        self._connected[task] = writer
        task.add_done_callback(self._connected.pop)

    async def _befall(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._draw() is Fault.REFUSE and self._server.is_serving():
                self._count(Fault.REFUSE)
                self._server.close()
                writer.transport.abort()
                await asyncio.sleep(REFUSED_SECONDS)
                await self._listen()
            else:
                await self._pass_on(reader, writer)
        except OSError:
            pass  # whoever it was has gone
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.to)
        asked = asyncio.create_task(_copy(reader, there_writer))
        answered = asyncio.create_task(self._answer(there_reader, writer))
        try:
            await asyncio.wait([asked, answered], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (asked, answered):
                task.cancel()
            await asyncio.wait([asked, answered])
            there_writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        in_frames = False
        while chunk := await reader.read(CHUNK):
            in_frames = FRAMES in chunk or (in_frames and ANSWER not in chunk)
            fault = self._draw()
            if fault is Fault.REFUSE or (fault is Fault.CORRUPT and not in_frames):
                fault = None
            if fault is not None:
                self._count(fault)
            match fault:
                case Fault.BREAK:
                    return
                case Fault.STALL:
                    await asyncio.Event().wait()
                case Fault.CORRUPT:
                    chunk = _corrupted(chunk, self.randomness)
                case Fault.DRIP:
                    for byte in chunk:
                        writer.write(bytes([byte]))
                        await asyncio.sleep(DRIP_SECONDS)
                    continue
            writer.write(chunk)
            await writer.drain()

    def _draw(self) -> Fault | None:
        if not self.faults or self.randomness.random() >= self.share:
            return None
        return self.randomness.choice(self.faults)

    def _count(self, fault: Fault) -> None:
        self.done[fault] = self.done.get(fault, 0) + 1


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()


def _corrupted(chunk: bytes, randomness: random.Random) -> bytes:
    """A byte of it is another one."""
    changed = bytearray(chunk)
    changed[randomness.randrange(len(changed))] ^= randomness.randrange(1, 256)
    return bytes(changed)


@contextmanager
def proxies(ports: list[int], *, seed: int) -> Iterator[list[Proxy]]:
    """A proxy before each port, in a thread of their own."""
    made = [Proxy(port, random.Random(f"{seed} {place}")) for place, port in enumerate(ports)]
    begun: Queue[Callable[[], object]] = Queue()
    started = [threading.Event() for _ in made]

    async def serve() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        begun.put(lambda: loop.call_soon_threadsafe(ended.set))
        async with asyncio.TaskGroup() as serving:
            for proxy, event in zip(made, started, strict=True):
                serving.create_task(proxy.serve(event, ended))

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="proxies", daemon=True)
    thread.start()
    end = begun.get(timeout=10)
    for event in started:
        assert event.wait(10)
    try:
        yield made
    finally:
        end()
        thread.join(timeout=10)
