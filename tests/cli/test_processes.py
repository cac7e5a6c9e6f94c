from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import psutil
import pytest

from triptych.cli import processes
from triptych.cli.processes import Service, ServiceEnded, ServiceGroup, free_ports, is_free
from triptych.errors import StartError

SERVER = """
    import http.server, signal, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/ready" else 503)
            self.end_headers()
        def log_message(self, *_): pass
    print("hello from", {name!r}, flush=True)
    http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""
BROKEN = """
    import sys
    for number in range(100): print("line", number)
    print("no such checkpoint", file=sys.stderr)
    sys.exit(3)
"""
DEAF = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    while True: time.sleep(1)
"""


def service(name: str, source: str, *, port: int = 0, ready_path: str = "/ready") -> Service:
    code = textwrap.dedent(source).replace("{name!r}", repr(name)).replace("{port}", str(port))
    return Service(name=name, port=port, command=(sys.executable, "-c", code), ready_path=ready_path)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))


def ignore(*_: object) -> None:
    pass


def test_services_start_are_heard_and_are_stopped() -> None:
    log, ready = Log(), []
    names = ("one", "two")
    services = [service(name, SERVER, port=port) for name, port in zip(names, free_ports(2), strict=True)]

    with ServiceGroup(services, on_line=log) as group:
        group.wait_until_ready(seconds=30, on_ready=lambda each, seconds: ready.append((each.name, seconds)))
        pids = [process.pid for process in group.processes]
        # A Ctrl-C at the terminal reaches this process' session only: the services are stopped in order.
        assert [os.getsid(pid) for pid in pids] == pids
        assert all(map(psutil.pid_exists, pids))

    assert sorted(name for name, _ in ready) == ["one", "two"]
    assert all(0 < seconds < 30 for _, seconds in ready)
    assert sorted(log.lines) == [("one", "hello from one"), ("two", "hello from two")]
    assert not any(map(psutil.pid_exists, pids))


def test_one_that_ends_is_named_with_its_last_lines_and_takes_the_others_along() -> None:
    (port,) = free_ports(1)
    group = ServiceGroup([service("good", SERVER, port=port), service("bad", BROKEN, port=1)], on_line=ignore)

    with pytest.raises(ServiceEnded, match="the bad service ended with exit code 3") as ended, group:
        group.wait_until_ready(seconds=30, on_ready=ignore)

    assert ended.value.lines[-2:] == ("line 99", "no such checkpoint")
    assert len(ended.value.lines) == processes.KEPT_LINES
    assert not psutil.pid_exists(group.processes[0].pid)


def test_one_that_ends_later_is_noticed_too() -> None:
    (port,) = free_ports(1)
    with ServiceGroup([service("good", SERVER, port=port)], on_line=ignore) as group:
        group.wait_until_ready(seconds=30, on_ready=ignore)
        os.kill(group.processes[0].pid, signal.SIGKILL)
        with pytest.raises(ServiceEnded, match="exit code -9"):
            group.watch()


def test_one_that_is_never_ready_is_given_up() -> None:
    (port,) = free_ports(1)
    group = ServiceGroup([service("slow", SERVER, port=port, ready_path="/never")], on_line=ignore)

    with pytest.raises(StartError, match=r"not ready after 0\.5 s: slow"), group:
        group.wait_until_ready(seconds=0.5, on_ready=ignore)


def test_one_that_does_not_want_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.2)
    log = Log()
    with ServiceGroup([service("deaf", DEAF)], on_line=log) as group:
        wait_until(lambda: log.lines == [("deaf", "deaf")])
        pid = group.processes[0].pid

    assert not psutil.pid_exists(pid)


def test_a_command_that_does_not_exist_stops_those_that_were_started() -> None:
    (port,) = free_ports(1)
    missing = Service(name="missing", port=1, command=("/no/such/program",), ready_path="/")
    group = ServiceGroup([service("good", SERVER, port=port), missing], on_line=ignore)

    with pytest.raises(FileNotFoundError), group:
        pytest.fail("it cannot have started")

    assert not psutil.pid_exists(group.processes[0].pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    child = "import os, time; from triptych.cli.processes import end_with_parent; end_with_parent(int({parent}));"
    child += "print('bound', flush=True); time.sleep(600)"
    parent = textwrap.dedent(f"""
        import os, subprocess, sys
        code = {child!r}.replace("{{parent}}", str(os.getpid()))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        process.stdout.readline()
        print(process.pid, flush=True)
        process.wait()
    """)
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        orphan = psutil.Process(int(process.stdout.readline()))
        process.kill()

    wait_until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)


def test_free_ports_are_free_and_distinct() -> None:
    ports = free_ports(4)
    assert len(set(ports)) == 4
    assert all(map(is_free, ports))


def test_a_taken_port_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not is_free(listener.getsockname()[1])
    assert not is_free(70000)
