"""A stage that dies in the middle of a request: a clear error within the deadline, and the next request works once it is back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import httpx2
import pytest

from tests.end_to_end.real_services import START_SECONDS, Log, TinyModel, four_tiny_services, running
from triptych.cli.processes import Service, ServiceGroup, ServiceProcess
from triptych.client import Client, Generation, Progress
from triptych.errors import StageError, StageFailed, StageNotReady, StageTimeout

pytestmark = pytest.mark.timeout(600)

DEADLINE_SECONDS = 20.0


@dataclass(frozen=True)
class Panels:
    """The services, and what makes one of them fail."""

    group: ServiceGroup

    @property
    def url(self) -> str:
        return self.group.processes[-1].service.url

    def process(self, name: str) -> ServiceProcess:
        return next(process for process in self.group.processes if process.service.name == name)

    def generate(self, *, seconds: float = DEADLINE_SECONDS, num_steps: int = 4, on_progress: object = None) -> Generation:
        with Client(self.url, timeout_seconds=seconds) as client:
            return client.generate("a red circle", seed=7, num_steps=num_steps, on_progress=on_progress)  # type: ignore[arg-type]

    def start_again(self, name: str, service: Service | None = None) -> ServiceProcess:
        """Starts a dead service again, or another in its place."""
        place = self.group.processes.index(self.process(name))
        dead = self.group.processes[place]
        dead.wait(10)
        self.group.processes[place] = again = ServiceProcess(service or dead.service, Log())
        return again

    def bring_back(self, name: str) -> None:
        """Starts a dead service again, at the same address, and waits until it says that it is ready."""
        again = self.start_again(name)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(again):
            again.check_running()
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _answers(process: ServiceProcess) -> bool:
    try:
        return httpx2.get(process.service.url + process.service.ready_path).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def panels(tiny_model: TinyModel) -> Iterator[Panels]:
    """A gateway that lets nobody wait, and asks for every context: what is seen here is how a fault is told."""
    *stages, gateway = four_tiny_services(tiny_model)
    told = {"TRIPTYCH_STAGE_WAIT_SECONDS": "0", "TRIPTYCH_CONTEXT_CACHE_BYTES": "0"}
    impatient = replace(gateway, environment={**gateway.environment, **told})
    with running((*stages, impatient)) as group:
        yield Panels(group)


def begin(panels: Panels, stage: str, pool: ThreadPoolExecutor) -> Future[Generation]:
    """A request that has got as far as a stage, and gets no further: the stage is frozen before it comes."""
    os.kill(panels.process(stage).pid, signal.SIGSTOP)
    reached: Future[None] = Future()

    def note(progress: Progress) -> None:
        if progress.stage == stage and not reached.done():
            reached.set_result(None)

    request = pool.submit(panels.generate, on_progress=note)
    reached.result(timeout=DEADLINE_SECONDS)
    return request


@pytest.mark.parametrize("stage", ["text_encoder", "diffusion", "decoder"])
def test_kill_9_in_the_middle(panels: Panels, stage: str) -> None:
    expected = panels.generate().pictures
    with ThreadPoolExecutor() as pool:
        request = begin(panels, stage, pool)
        killed = time.monotonic()
        os.kill(panels.process(stage).pid, signal.SIGKILL)
        with pytest.raises((StageFailed, StageNotReady), match=f"the {stage} stage") as failure:
            request.result(timeout=2 * DEADLINE_SECONDS)
        took = time.monotonic() - killed

    assert failure.value.stage == stage
    assert took < DEADLINE_SECONDS / 2, "a connection that breaks is noticed at once, and not at the deadline"

    with pytest.raises(StageNotReady, match=f"the {stage} stage.*cannot be reached") as missing:
        panels.generate()
    assert missing.value.stage == stage
    ready = httpx2.get(f"{panels.url}/health/ready")
    assert ready.status_code == 503
    assert ready.json()["error"]["param"] == stage

    panels.bring_back(stage)
    assert panels.generate().pictures == expected


def test_a_stage_that_freezes_is_given_up_at_the_deadline(panels: Panels) -> None:
    process = panels.process("diffusion")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(StageTimeout, match="the diffusion stage") as timeout:
            panels.generate(seconds=2.0)
        took = time.monotonic() - started
    finally:
        os.kill(process.pid, signal.SIGCONT)

    assert timeout.value.stage == "diffusion"
    assert 1.9 < took < 5
    assert panels.generate().pictures


def test_the_gateway_itself_never_went_away(panels: Panels) -> None:
    assert httpx2.get(f"{panels.url}/health/live").status_code == 200
    panels.process("central").check_running()


def test_an_error_says_what_to_do_nothing_more(panels: Panels) -> None:
    """The sentences that a caller reads are about the stage, and not about our libraries."""
    process = panels.process("decoder")
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(StageError) as error:
        panels.generate()
    for word in ("Traceback", "httpx", "asyncio", "Errno"):
        assert word not in error.value.message
    panels.bring_back("decoder")
