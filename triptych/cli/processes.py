"""Several services as real processes that live and end together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from triptych.errors import StartError, TriptychError

if TYPE_CHECKING:
    import httpx2

HOST = "127.0.0.1"
KEPT_LINES = 20
POLL_SECONDS = 0.1
STOP_SECONDS = 35.0
"""A little longer than the gateway grants what runs (`shutdown_seconds`); then its stages have nothing to finish."""
_PR_SET_PDEATHSIG = 1


class ServiceEnded(TriptychError):
    """A service ended that was to keep running.

    Args:
        lines: The last that it logged.
    """

    def __init__(self, message: str, *, lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = tuple(lines)


@dataclass(frozen=True, kw_only=True)
class Service:
    """What is to be started, and where it says that it is ready.

    Attributes:
        command: Program and arguments.
        ready_path: Answers 200 once the service can work.
        environment: On top of this process' own.
    """

    name: str
    port: int
    command: tuple[str, ...]
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


class ServiceProcess:
    """One service as a child process, and the last lines that it logged."""

    def __init__(self, service: Service, on_line: Callable[[str, str], None]) -> None:
        self.service = service
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._on_line = on_line
        self._process = subprocess.Popen(
            service.command,
            env={**os.environ, **service.environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A Ctrl-C at the terminal is for the parent, which stops its services in order.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"{service.name} log", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip())
                self._on_line(self.service.name, line.rstrip())

    @property
    def pid(self) -> int:
        return self._process.pid

    def check_running(self) -> None:
        """Raises ServiceEnded where it is not."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(timeout=1.0)  # its last words may still be on the way
            raise ServiceEnded(f"the {self.service.name} service ended with exit code {code}", lines=self.lines)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, seconds: float) -> None:
        """Waits for its end, but no longer than this."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            self._reader.join(timeout=1.0)


class ServiceGroup:
    """Services that are started together and stopped together, the last one first: a gateway before its stages.

    Args:
        services: The one that needs the others comes last.
        on_line: Called with a service's name and each line that it logs, from threads.
    """

    def __init__(self, services: Sequence[Service], *, on_line: Callable[[str, str], None]) -> None:
        self._services = services
        self._on_line = on_line
        self.processes: list[ServiceProcess] = []

    def __enter__(self) -> Self:
        try:
            for service in self._services:
                self.processes.append(ServiceProcess(service, self._on_line))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def wait_until_ready(self, *, seconds: float, on_ready: Callable[[Service, float], None]) -> None:
        """Polls until every service is ready.

        Args:
            on_ready: Called with each service as it becomes ready, and the seconds since the start.

        Raises:
            ServiceEnded: One of them ended.
            StartError: One of them was not ready in time.
        """
        import httpx2  # not at the top: `triptych --help` needs no HTTP client

        started = time.monotonic()
        missing = [process.service for process in self.processes]
        with httpx2.Client(timeout=2.0, trust_env=False) as client:
            while missing:
                self.check_running()
                for service in [service for service in missing if _is_ready(client, service)]:
                    missing.remove(service)
                    on_ready(service, time.monotonic() - started)
                if time.monotonic() - started > seconds:
                    names = ", ".join(service.name for service in missing)
                    raise StartError(f"not ready after {seconds:g} s: {names}")
                time.sleep(POLL_SECONDS if missing else 0)

    def watch(self) -> None:
        """Returns never; raises ServiceEnded when one of the services ends."""
        while True:
            self.check_running()
            time.sleep(POLL_SECONDS)

    def check_running(self) -> None:
        for process in self.processes:
            process.check_running()

    def stop(self) -> None:
        """Ends the last service and then the others, so that what runs is finished; whoever takes too long is killed.

        Interrupted, it does not wait longer.
        """
        try:
            for together in (self.processes[-1:], self.processes[:-1]):
                for process in together:
                    process.terminate()
                for process in together:
                    process.wait(STOP_SECONDS)
        finally:
            for process in self.processes:
                process.kill()
                process.wait(STOP_SECONDS)


def _is_ready(client: httpx2.Client, service: Service) -> bool:
    import httpx2

    try:
        return client.get(service.url + service.ready_path).status_code == 200
    except httpx2.TransportError:
        return False


def end_with_parent(parent: int) -> None:
    """Makes this process end, by SIGTERM, when its parent does, however that came about.

    Args:
        parent: The process id that the parent must have; where it is another one, the parent has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise StartError("the process that started this service has ended")


def is_free(port: int) -> bool:
    """Whether a service could listen on the port, under the rules by which uvicorn binds it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def free_ports(number: int) -> tuple[int, ...]:
    """Ports that nobody listens on; all are held until the last is found, so that none is given twice."""
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind((HOST, 0))
        return tuple(probe.getsockname()[1] for probe in probes)
    finally:
        for probe in probes:
            probe.close()
