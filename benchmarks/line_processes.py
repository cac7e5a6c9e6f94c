"""A script that is asked by lines: it says a line of JSON when it is ready, then answers each line with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

_STOP_SECONDS = 30.0


class ScriptEnded(Exception):
    """It ended where it should have answered."""


class LineProcess:
    """A script that is ready.

    Attributes:
        facts: What it said when it was.
        ready_seconds: How long that took.
    """

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        started = time.monotonic()
        self._name, self._process = name, process
        self.pid = process.pid
        self.facts = self._read()
        self.ready_seconds = time.monotonic() - started

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer. Raises ScriptEnded."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ScriptEnded(f"{self._name} ended with exit code {self._process.wait()} where it should have answered")
        return dict(json.loads(line))


@contextmanager
def line_process(
    name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], on_line: Callable[[str, str], None]
) -> Iterator[LineProcess]:
    """Starts a script, waits until it is ready, and ends it with the block.

    Args:
        name: For the errors, and for `on_line`, which is given what it writes to standard error.

    Raises:
        ScriptEnded: Before it was ready.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    Thread(target=_pass_on, args=(name, process, on_line), daemon=True).start()
    try:
        yield LineProcess(name, process)
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


class Lines:
    """The script's end: lines on what was standard output. What libraries print there goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, document: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(document) + "\n")
        self._out.flush()

    def answer(self, answer_to: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Answers each request until there are no more."""
        for line in sys.stdin:
            self.say(answer_to(json.loads(line)))


def _pass_on(name: str, process: subprocess.Popen[str], on_line: Callable[[str, str], None]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        on_line(name, line.rstrip())
