"""The services of these tests: one that is not ready in time says where it hangs."""

from __future__ import annotations

import sys
import time

import pytest

from tests.end_to_end.real_services import Log, diagnosable, wait_until_ready
from triptych.cli.processes import Service, ServiceEnded, ServiceGroup, free_ports
from triptych.errors import StartError

HANGING = """
import threading

def hang_here():
    print("hanging", flush=True)
    threading.Event().wait()

threading.Thread(target=hang_here).start()
threading.Event().wait()
"""


def test_one_that_hangs_writes_the_stacks_of_its_threads_to_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    service = Service(name="decoder", port=port, command=(sys.executable, "-c", HANGING), ready_path="/v2/health/ready")
    log = Log()
    with ServiceGroup([diagnosable(service)], on_line=log) as group:
        deadline = time.monotonic() + 60
        while "decoder: hanging" not in log.lines:
            assert time.monotonic() < deadline, "it does not even start"
            time.sleep(0.05)
        with pytest.raises(StartError, match=r"^not ready after 0.1 s: decoder$"):
            wait_until_ready(group, seconds=0.1)
        with pytest.raises(ServiceEnded):
            group.check_running()
    told = capsys.readouterr().out
    assert "decoder: Fatal Python error: Aborted" in told
    assert "in hang_here" in told
    assert "(most recent call first)" in told.partition("in hang_here")[2], "of the other thread too"
