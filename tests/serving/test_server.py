"""Services as processes: how they start, how they fail to, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from triptych.serving.lifespan import EXIT_START_FAILED

UVICORN = ["-m", "uvicorn", "tests.serving.example_service:create_app", "--factory", "--port", "0"]
OURS = ["-m", "tests.serving.example_service"]
PROMPT = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a red circle"]}]}
PATIENCE_SECONDS = 60


class Process:
    """A service in a process of its own, and what it has logged."""

    def __init__(self, arguments: list[str], root: Path, log: Path, variables: dict[str, str]) -> None:
        self._log = log
        environment = {**os.environ, "TRIPTYCH_LOG_FORMAT": "json", **variables}
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen([sys.executable, *arguments], cwd=root, env=environment, stderr=stderr)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.popen.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def url(self) -> str:
        self.until(lambda: "running on http" in self.log)
        (url,) = set(re.findall(r"http://127\.0\.0\.1:\d+", self.log))
        return url

    def ends(self) -> int:
        return self.popen.wait(PATIENCE_SECONDS)


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def run(arguments: list[str], **variables: str) -> Process:
        processes.append(Process(arguments, root, tmp_path / f"{len(processes)}.log", variables))
        return processes[-1]

    yield run
    for process in processes:
        process.popen.kill()
        process.popen.wait()


@pytest.mark.parametrize("arguments", [UVICORN, [*UVICORN, "--loop", "asyncio"], OURS], ids=["uvloop", "asyncio", "serve"])
def test_a_failed_start_is_one_sentence_and_a_status(run, arguments: list[str]) -> None:
    process = run(arguments, EXAMPLE_START="fail")
    assert process.ends() == EXIT_START_FAILED
    (failed,) = process.events("start_failed")
    assert failed["reason"] == "the folder /models/sd has no text_encoder/model.safetensors"
    assert "Traceback" not in process.log


def test_a_start_that_breaks_says_where(run) -> None:
    process = run(OURS, EXAMPLE_START="break")
    assert process.ends() == EXIT_START_FAILED
    (failed,) = process.events("start_failed")
    assert failed["exception"] == "ValueError"
    assert "example_service.py" in str(failed["where"])
    assert "a secret" not in process.log


@pytest.mark.parametrize("arguments", [UVICORN, OURS], ids=["uvicorn", "serve"])
def test_impossible_settings_are_one_sentence(run, arguments: list[str]) -> None:
    process = run(arguments, TRIPTYCH_HOST="0.0.0.0")
    assert process.ends() == 1
    assert process.log.startswith("listening on 0.0.0.0 lets other machines in: set TRIPTYCH_TOKEN")
    assert process.log.count("\n") == 1


@pytest.mark.parametrize("arguments", [UVICORN, OURS], ids=["uvicorn", "serve"])
def test_sigterm_finishes_what_runs(run, arguments: list[str]) -> None:
    process = run(arguments, EXAMPLE_SECONDS="2")
    url = process.url()
    process.until(lambda: process.events("ready"))
    assert httpx2.get(f"{url}/v2/health/ready").json() == {"ready": True}
    with ThreadPoolExecutor() as pool:
        response = pool.submit(httpx2.post, f"{url}/v2/models/text_encoder/infer", json=PROMPT, timeout=PATIENCE_SECONDS)
        process.until(lambda: "the stage is at work" in process.log)
        process.popen.send_signal(signal.SIGTERM)
        assert response.result().status_code == 200
    process.ends()
    assert process.log.index("Shutting down") < process.log.index("/infer") < process.log.index("the stage is closed")
    assert process.log.index("the stage stops, and hands back all in 590 s") < process.log.index("/infer")
    assert "Traceback" not in process.log


def test_sigterm_ends_a_stage_that_was_left_in_the_middle_of_a_call(run) -> None:
    process = run(OURS, EXAMPLE_START="stick")
    process.url()
    process.until(lambda: process.events("ready"))
    process.popen.send_signal(signal.SIGTERM)
    assert process.ends() == 0
    assert process.events("ended_in_mid_call")


def test_sigterm_does_not_wait_for_a_start(run) -> None:
    process = run(OURS, EXAMPLE_START="hang")
    url = process.url()
    assert httpx2.get(f"{url}/v2/health/live").json() == {"live": True}
    assert httpx2.get(f"{url}/v2/health/ready").status_code == 503
    process.popen.send_signal(signal.SIGTERM)
    process.ends()
    assert "the stage is closed" not in process.log
