"""A gateway in front of stand-ins, in a process of its own, so that its memory is its own: `python -m tests.fuzz.gateway`.

It writes its address to standard output, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog

from tests.fakes import FakeImageEncoder
from tests.gateway.running import Stages
from tests.gateway.served import served
from triptych.gateway import shared_runs

ROOT = Path(__file__).resolve().parent.parent.parent


class Forgetful(list[Any]):
    """In the place of a stand-in's list of all that it was asked."""

    def append(self, item: Any) -> None: ...


class ForgetfulQueue(asyncio.Queue[Any]):
    """In the place of its queue of them."""

    def put_nowait(self, item: Any) -> None: ...


@dataclass(frozen=True)
class Running:
    """A gateway that runs."""

    address: str
    process_id: int

    def held_bytes(self) -> int:
        """What its process holds of memory now."""
        return int(psutil.Process(self.process_id).memory_info().rss)


@contextlib.contextmanager
def running() -> Iterator[Running]:
    """A gateway for the length of the block."""
    command = [sys.executable, "-m", "tests.fuzz.gateway"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Running(process.stdout.readline().strip(), process.pid)
        finally:
            process.stdin.close()


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    shared_runs.KEPT_BYTES = 2**20  # what is kept on purpose would look like a leak
    with tempfile.TemporaryDirectory() as folder:
        kept = {"jobs_database": f"{folder}/jobs.sqlite3", "jobs_store": f"{folder}/jobs", "context_cache_bytes": 0}
        stages = Stages(image_encoder=FakeImageEncoder())
        for stage in (stages.text_encoder, stages.diffusion, stages.decoder, stages.image_encoder):
            assert stage is not None
            stage.asked, stage.arrivals = Forgetful(), ForgetfulQueue()
        with served(stages.app(request_timeout_seconds=30, **kept)) as address:
            sys.stdout.write(f"{address}\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main()
