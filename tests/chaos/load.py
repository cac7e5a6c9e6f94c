"""Requests while things break, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.chaos.cluster import Cluster

SEEDS = range(8)
PATIENCE_SECONDS = 300.0
PROMPT = "a red circle on a blue background"


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        failures: What was answered instead of a picture.
        other_bytes: Seeds whose picture was not the one made without faults.
        warnings: That came with pictures.
        seconds: Each request's.
        evaluations: Of the diffusion network for all of them.
        repeated: Of those, made again because a replica had lost them.
        resumed: Denoisings that went on elsewhere.
    """

    requests: int
    failures: list[str] = field(default_factory=list)
    other_bytes: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    took: float = 0.0
    evaluations: int = 0
    repeated: int = 0
    resumed: int = 0

    @property
    def share_repeated(self) -> float:
        return self.repeated / self.evaluations

    def check(self) -> None:
        assert self.failures == []
        assert self.other_bytes == []
        assert self.warnings == []
        assert len(self.seconds) == self.requests
        assert self.share_repeated < 0.1

    def __str__(self) -> str:
        ordered = sorted(self.seconds) or [0.0]
        median, slowest = ordered[len(ordered) // 2], ordered[-1]
        return (
            f"{self.requests} requests in {self.took:.1f} s: {len(self.failures)} failures, {len(self.other_bytes)} pictures of "
            f"other bytes, {len(self.warnings)} warnings; median {median:.2f} s, slowest {slowest:.2f} s; "
            f"{self.resumed} denoisings went on elsewhere; {self.repeated} of {self.evaluations} evaluations were made twice "
            f"({100 * self.share_repeated:.2f} %)"
        )


def body(seed: int, num_steps: int) -> dict[str, Any]:
    return {"prompt": PROMPT, "seed": seed, "num_steps": num_steps}


def undisturbed(cluster: Cluster, *, num_steps: int) -> Mapping[int, str]:
    """The picture of each seed, made while nothing breaks."""
    return {seed: _picture(_ask(cluster, seed, num_steps)) for seed in SEEDS}


def fire(cluster: Cluster, expected: Mapping[int, str], *, requests: int, concurrency: int, num_steps: int) -> Outcome:
    """So many requests, so many of them at a time."""
    outcome = Outcome(requests)
    before, began = cluster.metrics(), time.monotonic()

    def one(number: int) -> None:
        seed, started = SEEDS[number % len(SEEDS)], time.monotonic()
        try:
            response = _ask(cluster, seed, num_steps)
        except httpx2.HTTPError as error:
            outcome.failures.append(f"{type(error).__name__}: {error}")
            return
        if response.status_code != 200:
            outcome.failures.append(f"{response.status_code}: {response.text[:300]}")
            return
        outcome.warnings.extend(response.json()["warnings"])
        if _picture(response) != expected[seed]:
            outcome.other_bytes.append(seed)
        outcome.seconds.append(time.monotonic() - started)

    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(one, range(requests)))
    outcome.took = time.monotonic() - began
    after = cluster.metrics()
    for name, metric in (("evaluations", "evaluations"), ("repeated", "evaluations_repeated"), ("resumed", "denoisings_resumed")):
        setattr(outcome, name, int(after[f"triptych_{metric}_total"] - before[f"triptych_{metric}_total"]))
    return outcome


def _ask(cluster: Cluster, seed: int, num_steps: int) -> httpx2.Response:
    url = f"{cluster.url}/generate"
    return httpx2.post(url, json=body(seed, num_steps), timeout=PATIENCE_SECONDS, trust_env=False)


def _picture(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    picture: str = response.json()["images"][0]["b64_json"]
    return picture
