"""An hour of everything at once, and nothing that grows: `python -m tests.chaos.soak --minutes 60`.

The four services with vignette on this machine, and some callers each of whom asks for one kind of thing after the other, in an
order of its own: pictures, several at once, by every sampler, changed ones, masked ones, with previews, given up in the middle,
as jobs, and what is refused. It ends with status 1 where one of these does not hold:

- every answer is what it should be, and each picture what the first of its kind was, to the byte;
- no process has more memory of its own in the last quarter than 1.05 times what it had in the second one, and 8 MiB;
- nor more open files than 8 above that, or threads than 4.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import psutil
from PIL import Image, ImageDraw

from benchmarks.memory import resident_memory
from tests.chaos.cluster import Cluster, cluster
from triptych.client import Client, Picture, Progress
from triptych.errors import CallerError, RequestCancelled, TriptychError

PATIENCE_SECONDS = 300.0
SECONDS_BETWEEN_LOOKS = 5.0
PROMPT = "a small green tree on the left in the snow"
STEPS = 10

MOST_TIMES, MOST_BYTES, MOST_FILES, MOST_THREADS = 1.05, 8 * 2**20, 8, 4

Ask = Callable[[Client], Sequence[Picture]]


# What is asked for


def _file(draw: Callable[[Image.Image], None], mode: str) -> bytes:
    picture, file = Image.new(mode, (128, 128)), io.BytesIO()
    draw(picture)
    picture.save(file, "PNG")
    return file.getvalue()


INIT = _file(lambda picture: ImageDraw.Draw(picture).ellipse((32, 32, 96, 96), fill=(217, 48, 48)), "RGB")
MASK = _file(lambda picture: ImageDraw.Draw(picture).rectangle((32, 32, 96, 96), fill=255), "L")


def by_sampler(sampler: str, client: Client) -> Sequence[Picture]:
    return client.generate(PROMPT, seed=1, num_steps=STEPS, sampler=sampler).pictures


def as_job(client: Client) -> Sequence[Picture]:
    job = client.submit(PROMPT, seed=1, num_steps=STEPS)
    client.wait(job)
    pictures = client.fetch(job)
    client.cancel_job(job)
    return pictures


def with_previews(client: Client) -> Sequence[Picture]:
    return client.generate(PROMPT, seed=1, num_steps=STEPS, on_preview=lambda preview: None).pictures


_numbers = count()


def cancelled(client: Client) -> Sequence[Picture]:
    """Somebody else ends it while it is at work."""
    name, first = f"soak-{next(_numbers)}", count()

    def cancel(progress: Progress) -> None:
        if progress.position is not None and progress.position >= STEPS and next(first) == 0:
            with Client(client._url, timeout_seconds=PATIENCE_SECONDS) as other:
                other.cancel(name)

    try:
        client.generate(PROMPT, seed=1, num_steps=5 * STEPS, request_id=name, on_progress=cancel)
    except RequestCancelled:
        return ()
    raise AssertionError("a request that was cancelled has ended with pictures")


class _Leaves(Exception):
    """The caller is gone."""


def given_up(client: Client) -> Sequence[Picture]:
    """The caller leaves in the middle."""

    def leave(progress: Progress) -> None:
        if progress.position is not None and progress.position >= STEPS:
            raise _Leaves

    try:
        client.generate(PROMPT, seed=1, num_steps=5 * STEPS, on_progress=leave)
    except _Leaves:
        return ()
    raise AssertionError("nobody left")


def another_prompt(client: Client) -> Sequence[Picture]:
    """One that was never asked for before."""
    client.generate(f"{PROMPT} {next(_numbers)}", seed=1, num_steps=STEPS)
    return ()


def refused(client: Client) -> Sequence[Picture]:
    try:
        client.generate(PROMPT, num_steps=STEPS, width=129)
    except CallerError:
        return ()
    raise AssertionError("a width of 129 was taken")


def kinds_of(samplers: Sequence[str]) -> dict[str, Ask]:
    kinds: dict[str, Ask] = {f"by {sampler}": partial(by_sampler, sampler) for sampler in samplers}
    return kinds | {
        "four at once": lambda client: client.generate(PROMPT, seed=1, num_steps=STEPS, num_images=4).pictures,
        "without guidance": lambda client: client.generate(PROMPT, seed=1, num_steps=STEPS, guidance_scale=1.0).pictures,
        "changed": lambda client: client.generate(PROMPT, seed=1, num_steps=STEPS, image=INIT, strength=0.6).pictures,
        "masked": lambda client: client.generate(PROMPT, seed=1, num_steps=STEPS, image=INIT, mask=MASK).pictures,
        "with previews": with_previews,
        "as a job": as_job,
        "another prompt each time": another_prompt,
        "cancelled": cancelled,
        "given up": given_up,
        "refused": refused,
    }


@dataclass
class Answers:
    """What became of what was asked."""

    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, kind: str, ask: Ask, client: Client) -> None:
        try:
            pictures = ask(client)
        except (TriptychError, AssertionError) as error:
            with self.lock:
                self.failures.append(f"{kind}: {type(error).__name__}: {error}")
            return
        digest = hashlib.sha256(b"".join(picture.data for picture in pictures)).hexdigest()
        with self.lock:
            self.done[kind] += 1
            if self.digests.setdefault(kind, digest) != digest:
                self.failures.append(f"{kind}: other bytes than the first time")


# What it takes


@dataclass(frozen=True, kw_only=True)
class Look:
    """At a process: bytes of its own, open files, threads."""

    memory: int
    files: int
    threads: int


def look(pid: int) -> Look:
    process = psutil.Process(pid)
    return Look(memory=resident_memory(pid).anonymous, files=process.num_fds(), threads=process.num_threads())


def judge(looks: Mapping[str, Sequence[Look]]) -> list[str]:
    """A sentence for each process that has grown: medians of the last quarter against those of the second."""
    broken = []
    for name, all_ in looks.items():
        quarter = len(all_) // 4
        assert quarter, "there was no time to look at anything"
        before, after = _middle(all_[quarter : 2 * quarter]), _middle(all_[-quarter:])
        if after.memory > MOST_TIMES * before.memory + MOST_BYTES:
            broken.append(f"{name} had {before.memory / 2**20:.0f} MiB and then {after.memory / 2**20:.0f}")
        if after.files > before.files + MOST_FILES:
            broken.append(f"{name} had {before.files} open files and then {after.files}")
        if after.threads > before.threads + MOST_THREADS:
            broken.append(f"{name} had {before.threads} threads and then {after.threads}")
    return broken


def _middle(looks: Sequence[Look]) -> Look:
    def of(name: str) -> int:
        return int(statistics.median(getattr(each, name) for each in looks))

    return Look(memory=of("memory"), files=of("files"), threads=of("threads"))


def told(looks: Mapping[str, Sequence[Look]]) -> list[str]:
    """A line for each process, quarter by quarter."""
    lines = []
    for name, all_ in looks.items():
        quarter = max(1, len(all_) // 4)
        quarters = [_middle(all_[place * quarter : (place + 1) * quarter] or all_) for place in range(4)]
        memory = ", ".join(f"{each.memory / 2**20:.0f}" for each in quarters)
        lines.append(f"{name}: {memory} MiB; {quarters[-1].files} open files, {quarters[-1].threads} threads")
    return lines


# The run


def soak(running: Cluster, *, seconds: float, callers: int, seed: int) -> tuple[Answers, dict[str, list[Look]]]:
    answers = Answers()
    pids = {process.service.name: process.pid for process in running.group.processes}
    looks: dict[str, list[Look]] = {name: [] for name in pids}
    with Client(running.url, timeout_seconds=PATIENCE_SECONDS) as client:
        kinds = kinds_of(client.models()[0]["abilities"]["samplers"])
        for kind, ask in kinds.items():  # the first of each kind, with nobody beside it
            answers.one(kind, ask, client)
    until = time.monotonic() + seconds

    def call(number: int) -> None:
        randomness = random.Random(f"{seed} {number}")
        with Client(running.url, timeout_seconds=PATIENCE_SECONDS) as client:
            while time.monotonic() < until:
                kind = randomness.choice(list(kinds))
                answers.one(kind, kinds[kind], client)

    with ThreadPoolExecutor(callers) as pool:
        calling = [pool.submit(call, number) for number in range(callers)]
        while time.monotonic() < until and not all(each.done() for each in calling):
            for name, pid in pids.items():
                looks[name].append(look(pid))
            time.sleep(min(SECONDS_BETWEEN_LOOKS, seconds / 40))
        for each in calling:
            each.result()
    return answers, looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the order in which they ask")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            "TRIPTYCH_JOBS_DATABASE": str(folder / "jobs.sqlite3"),
            "TRIPTYCH_JOBS_STORE": str(folder / "store"),
            # Full before anything is compared: the 64 MiB that it has by default are an hour's prompts here.
            "TRIPTYCH_CONTEXT_CACHE_BYTES": str(2**20),
        }
        with cluster(folder, replicas=1, environment=environment) as running:
            answers, looks = soak(running, seconds=60 * options.minutes, callers=options.callers, seed=options.seed)
    for line in [*(f"{number} x {kind}" for kind, number in answers.done.most_common()), *told(looks)]:
        print(line)  # noqa: T201
    broken = [*dict.fromkeys(answers.failures), *judge(looks)]
    for sentence in broken:
        print(f"NOT KEPT: {sentence}")  # noqa: T201
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
