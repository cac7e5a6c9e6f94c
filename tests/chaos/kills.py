"""Random stages are killed (kill -9) and started again while requests run: `python -m tests.chaos.kills --requests 200`."""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from tests.chaos.cluster import Cluster, cluster, every, random_stage
from tests.chaos.load import Outcome, fire, undisturbed


def killing(
    cluster: Cluster, *, requests: int, concurrency: int, num_steps: int, seconds: float, seed: int
) -> tuple[Outcome, int]:
    """What the requests came to, and how many processes were killed meanwhile."""
    expected = undisturbed(cluster, num_steps=num_steps)
    randomness, killed = random.Random(seed), 0

    def kill() -> None:
        nonlocal killed
        cluster.kill(random_stage(cluster, randomness))
        killed += 1

    with every(seconds, kill):
        outcome = fire(cluster, expected, requests=requests, concurrency=concurrency, num_steps=num_steps)
    return outcome, killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), replicas=told.replicas) as running:
        outcome, killed = killing(
            running,
            requests=told.requests,
            concurrency=told.concurrency,
            num_steps=told.steps,
            seconds=told.every,
            seed=told.seed,
        )
    print(f"{killed} stages were killed. {outcome}")  # noqa: T201
    for problem in dict.fromkeys((*outcome.failures, *outcome.warnings)):
        print(problem)  # noqa: T201
    outcome.check()


if __name__ == "__main__":
    main()
