"""A stage service without a network, whose work is counted in a file: a piece takes so long, and nothing else is different.

A line for each piece of work, when it begins: time, what, of which request, and the evaluation's position. It is written before
the work is done, and outlives the process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.fakes import FakeDecoder, FakeDiffusion, FakeTextEncoder
from triptych.cli.processes import end_with_parent
from triptych.contract import DecodeRequest, DenoiseRequest, DenoiseState, EncodeRequest
from triptych.serving.server import serve
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app


class Counted:
    """What the three share."""

    def __init__(self, file: Path, seconds: float) -> None:
        self._file = file
        self._seconds = seconds

    def count(self, what: str, whose: str, position: int = 0) -> None:
        line = f"{time.time():.6f}\t{what}\t{whose}\t{position}\n".encode()
        # One write to a file that is opened to append to: whole lines, whoever else writes and whenever this process dies.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line)
        os.close(descriptor)

    async def acquire(self) -> None:
        """The turnstile before each evaluation."""
        await asyncio.sleep(self._seconds)


class TextEncoder(FakeTextEncoder):
    def __init__(self, counted: Counted) -> None:
        super().__init__(delay_seconds=counted._seconds)
        self.counted = counted

    async def encode(self, request: EncodeRequest, **options: Any) -> Any:
        self.counted.count("encode", request.prompts[0])
        return await super().encode(request, **options)


class Diffusion(FakeDiffusion):
    def __init__(self, counted: Counted) -> None:
        super().__init__(turnstile=counted)
        self.counted = counted

    def _evaluate(self, request: DenoiseRequest, state: DenoiseState) -> DenoiseState:
        self.counted.count("evaluate", str(request.seeds[0]), int(state.position[0]) + 1)
        return super()._evaluate(request, state)


class Decoder(FakeDecoder):
    def __init__(self, counted: Counted) -> None:
        super().__init__(delay_seconds=counted._seconds)
        self.counted = counted

    async def decode(self, request: DecodeRequest, **options: Any) -> Any:
        self.counted.count("decode", "")
        return await super().decode(request, **options)


STAGES: dict[str, Any] = {"text_encoder": TextEncoder, "diffusion": Diffusion, "decoder": Decoder}

if __name__ == "__main__":
    name, port, file, seconds, parent = sys.argv[1:]
    end_with_parent(int(parent))
    stage = STAGES[name](Counted(Path(file), float(seconds)))
    serve(stage_app(stage, StageSettings()), StageSettings(), port=int(port))
