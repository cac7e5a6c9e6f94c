"""Connections that break, stall, drip, lie or are refused, and processes that are stopped: `python -m tests.chaos.faults`."""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.cluster import Cluster, cluster, every, random_stage
from tests.chaos.load import Outcome, fire, undisturbed
from tests.chaos.proxy import Fault, Proxy, proxies
from triptych.cli.processes import Service

STOPPED_SECONDS = 8.0
"""Longer than the gateway believes in a silence: see `STALL`."""

STALL = {"TRIPTYCH_STALL_SECONDS": "1"}


def disturbed(
    folder: Path,
    faults: Sequence[Fault],
    *,
    share: float,
    stop_every: float | None,
    requests: int,
    concurrency: int,
    num_steps: int,
    seed: int,
    replicas: int = 2,
    model: Mapping[str, Path] | None = None,
) -> tuple[Outcome, dict[Fault, int]]:
    """What requests came to while connections to the stages failed, and how often each fault was done.

    Args:
        share: Of the chunks of bytes that something befalls.
        stop_every: Seconds between two stages that are stopped (SIGSTOP) for a while; None stops none.
        model: See `cluster`.
    """
    before: dict[int, Proxy] = {}
    with ExitStack() as running:

        def behind_a_proxy(service: Service) -> str:
            (proxy,) = running.enter_context(proxies([service.port], seed=seed + len(before)))
            before[service.port] = proxy
            return f"http://127.0.0.1:{proxy.port}"

        place = running.enter_context(
            cluster(folder, replicas=replicas, address=behind_a_proxy, environment=STALL, **(model or {}))
        )
        expected = undisturbed(place, num_steps=num_steps)
        for proxy in before.values():
            proxy.faults, proxy.share = tuple(faults), share
        if stop_every is not None:
            randomness = random.Random(seed)
            running.enter_context(every(stop_every, lambda: stop_one(place, randomness)))
        outcome = fire(place, expected, requests=requests, concurrency=concurrency, num_steps=num_steps)
    return outcome, {fault: sum(proxy.done.get(fault, 0) for proxy in before.values()) for fault in faults}


def stop_one(place: Cluster, randomness: random.Random) -> None:
    """A stage is stopped, and goes on after a while."""
    pid = place.pid_of(random_stage(place, randomness))
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(STOPPED_SECONDS, os.kill, (pid, signal.SIGCONT)).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", nargs="*", type=Fault, default=list(Fault), choices=list(Fault))
    parser.add_argument("--share", type=float, default=0.02, help="of the chunks of bytes that something befalls")
    parser.add_argument("--stop-every", type=float, default=10.0, help="seconds between two SIGSTOPs; 0 stops none")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome, done = disturbed(
            Path(folder),
            told.faults,
            share=told.share,
            stop_every=told.stop_every or None,
            requests=told.requests,
            concurrency=told.concurrency,
            num_steps=told.steps,
            seed=told.seed,
            replicas=told.replicas,
        )
    print(f"{ {str(fault): number for fault, number in done.items()} }. {outcome}")  # noqa: T201
    for problem in dict.fromkeys((*outcome.failures, *outcome.warnings)):
        print(problem)  # noqa: T201
    outcome.check()


if __name__ == "__main__":
    main()
