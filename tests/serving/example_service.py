"""A service with a fake stage, for tests that need a real process: `uvicorn tests.serving.example_service:create_app --factory`.

`EXAMPLE_START` says what its start does: `fail`, `break` (a bug), `hang`, `stick`, or go well where it is not set. With `stick`
it is in a call that does not end, from when it is closed.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from fastapi import FastAPI

from tests.fakes import FakeTextEncoder
from triptych.contract import EncodeRequest
from triptych.errors import CheckpointError
from triptych.serving.server import serve, start_service
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app


class Example(FakeTextEncoder):
    """A text encoder whose start goes as it is told."""

    def start(self) -> None:
        how = os.environ.get("EXAMPLE_START")
        if how == "fail":
            raise CheckpointError("the folder /models/sd has no text_encoder/model.safetensors")
        if how == "break":
            raise ValueError("a secret")
        if how == "hang":
            threading.Event().wait()
        if how == "stick":
            threading.Thread(target=threading.Event().wait).start()
            self.is_at_work = True
        super().start()

    async def work(self, request: EncodeRequest, deadline: float | None) -> None:
        sys.stderr.write("the stage is at work\n")
        await super().work(request, deadline)

    def stop(self, *, hand_back_all_at: float) -> None:
        super().stop(hand_back_all_at=hand_back_all_at)
        sys.stderr.write(f"the stage stops, and hands back all in {hand_back_all_at - time.monotonic():.0f} s\n")

    def close(self) -> None:
        super().close()
        sys.stderr.write("the stage is closed\n")


def create_app() -> FastAPI:
    settings = start_service(StageSettings)
    return stage_app(Example(started=False, delay_seconds=float(os.environ.get("EXAMPLE_SECONDS", "0"))), settings)


if __name__ == "__main__":
    serve(create_app(), StageSettings(), port=0)
