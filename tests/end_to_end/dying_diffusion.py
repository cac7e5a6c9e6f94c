"""A diffusion service that says it is another one, and is killed by its first denoising.

`python -m tests.end_to_end.dying_diffusion PORT URL`, where URL is the one that it says it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator

from tests.fakes import FakeDiffusion
from triptych.contract import DenoiseEvent, DenoiseRequest, DiffusionIdentity
from triptych.remote import RemoteDiffusion, make_client
from triptych.serving.server import serve
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app


class DyingDiffusion(FakeDiffusion):
    """As its class says."""

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield  # type: ignore[misc]


async def identity_at(url: str) -> DiffusionIdentity:
    async with make_client() as client:
        return await RemoteDiffusion(url, client=client).identity()


if __name__ == "__main__":
    stage = DyingDiffusion()
    stage.profile = asyncio.run(identity_at(sys.argv[2]))
    serve(stage_app(stage, StageSettings()), StageSettings(), port=int(sys.argv[1]))
