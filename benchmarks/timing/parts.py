"""The parts of a run: which units each consists of."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.gateway import measure_wire
from benchmarks.timing.asking import Asked, ask, ask_for_parts
from benchmarks.timing.cold_start import measure_cold_starts
from benchmarks.timing.load import Tried, kept_up, knee, next_rate, offer, poisson_arrivals
from benchmarks.timing.peers import PeerUnavailable
from benchmarks.timing.plan import AGAIN, Plan
from benchmarks.timing.scenarios import Scenario
from benchmarks.timing.service_times import measure_calls, peak_memory_bytes
from benchmarks.timing.session import Session
from benchmarks.timing.wire import measure_hops
from triptych.contract import StageName

_ALONE_ROUNDS = 3
_WIRE_REQUESTS = 20


def wire(session: Session) -> None:
    """What passes between gateway and stages, and what it takes."""
    session.unit("wire/hops", "wire", lambda: {"hops": measure_hops()})
    session.unit("wire/sockets", "wire", lambda: {"sockets": [asdict(each) for each in measure_wire(_WIRE_REQUESTS)]})


# Sequential


def sequential(session: Session) -> None:
    """One request after the other: scenarios interleaved in rounds, each round beginning with another one."""
    for number in range(session.plan.rounds):
        for subject in _in_turn(session.plan, number):
            if subject in session.plan.peers and not _is_available(session, subject):
                continue
            key, measure = f"sequential/{subject}/{number}", partial(_one_picture, session, subject, number)
            session.unit(key, "sequential", measure, prepare=partial(_start, session, subject))


def _is_available(session: Session, name: str) -> bool:
    record = session.unit(f"peer/{name}", "peers", partial(_introduce, session, name))
    return "unavailable" not in record["measured"]


def _introduce(session: Session, name: str) -> dict[str, Any]:
    try:
        peer = session.peer(name)
    except PeerUnavailable as error:
        return {"unavailable": error.message}
    return {"ready_seconds": peer.ready_seconds, **peer.facts}


def _in_turn(plan: Plan, number: int) -> list[str]:
    """The subjects of a round; the first scenario comes twice, one time directly after the other."""
    names = [scenario.name for scenario in plan.scenarios]
    subjects = [*names, *(plan.peers if number < plan.rounds_of_others else ())]
    start = number % len(subjects)
    rotated = subjects[start:] + subjects[:start]
    again = rotated.index(names[0]) + 1
    return [*rotated[:again], names[0] + AGAIN, *rotated[again:]]


def _one_picture(session: Session, subject: str, number: int) -> Mapping[str, Any]:
    asked = session.plan.picture(number)
    if subject in session.plan.peers:
        return _one_picture_of_a_peer(session, subject, asked)
    running = session.scenario(_scenario(session, subject.removesuffix(AGAIN)))
    parts, answer = asyncio.run(ask_for_parts(running.url, running.remote, asked))
    stages = {stage: _who(told) for stage, told in answer["receipt"]["stages"].items()}
    return {**asdict(parts), "stages": stages, "num_steps": answer["parameters"]["num_steps"]}


def _start(session: Session, subject: str) -> None:
    """A peer that does not start is told of where its picture should have been."""
    if subject in session.plan.peers:
        with suppress(PeerUnavailable):
            session.peer(subject)
    else:
        session.scenario(_scenario(session, subject.removesuffix(AGAIN)))


def _one_picture_of_a_peer(session: Session, name: str, asked: Asked) -> Mapping[str, Any]:
    try:
        return session.peer(name).picture(asked)
    except PeerUnavailable as error:
        return {"unavailable": error.message}


def _who(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"weights_digest": told["weights_digest"], "numerics": told["numerics"]}


def _scenario(session: Session, name: str) -> Scenario:
    return next(scenario for scenario in session.plan.scenarios if scenario.name == name)


# Service times


def service_times(session: Session) -> None:
    """Each stage by rows and sizes, where there is a scenario whose stages are all services."""
    split = next((scenario for scenario in session.plan.scenarios if scenario.is_split and scenario.is_ours_alone), None)
    if split is None:
        return
    for stage in StageName:
        sizes = session.plan.sizes if stage is not StageName.TEXT_ENCODER else session.plan.sizes[:1]
        for width, height in sizes:
            for pictures in session.plan.batch_sizes:
                key = f"service-times/{stage}/{width}x{height}/{pictures}"
                measure = partial(_seconds_of_calls, session, split, stage, (width, height), pictures)
                session.unit(key, "service-times", measure, prepare=partial(session.scenario, split))
    session.unit("service-times/memory", "service-times", partial(_memory, session, split))


def _seconds_of_calls(
    session: Session, split: Scenario, stage: StageName, size: tuple[int, int], pictures: int
) -> dict[str, Any]:
    remote = session.scenario(split).remote
    seconds = measure_calls(remote, stage, size=size, pictures=pictures, rounds=session.plan.rounds_of_others)
    return {"stage": stage, "size": f"{size[0]}x{size[1]}", "pictures": pictures, "seconds": seconds}


def _memory(session: Session, split: Scenario) -> dict[str, Any]:
    running = session.scenario(split)
    return {"peak_memory_bytes": {name: peak_memory_bytes(pid) for name, pid in running.pids.items()}}


# Open loop


def open_loop(session: Session) -> None:
    """Each scenario's knee, and what it does when three times as much comes."""
    for scenario in session.plan.scenarios:
        start = partial(session.scenario, scenario)
        alone = session.unit(f"open-loop/{scenario.name}/alone", "open-loop", partial(_alone, session, scenario), prepare=start)
        alone_seconds = statistics.fmean(alone["measured"]["seconds"].values())
        tried: list[Tried] = []
        first = session.plan.load.first * scenario.replicas / alone_seconds
        for _ in range(session.plan.load.most):
            rate = next_rate(tried, first=first)
            result = _load(session, scenario, rate, session.plan.load.requests, "rate")
            tried.append(Tried(rate=rate, kept_up=kept_up(result, alone_seconds=alone_seconds, slow=session.plan.load.slow)))
        if session.plan.load.flood_requests:
            rate = session.plan.load.flood_rate * (knee(tried) or tried[-1].rate)
            _load(session, scenario, rate, session.plan.load.flood_requests, "flood")


def _alone(session: Session, scenario: Scenario) -> dict[str, Any]:
    """Medians of a request that meets no other, by kind."""
    running = session.scenario(scenario)
    rounds = min(_ALONE_ROUNDS, session.plan.rounds_of_others)
    seconds = {}
    for kind, picture in zip(session.plan.load.kinds, session.plan.single_pictures(), strict=True):
        waits = [asyncio.run(ask(running.url, picture))[0] for _ in range(rounds)]
        seconds[kind.name] = statistics.median(waits)
    return {"seconds": seconds}


def _load(session: Session, scenario: Scenario, rate: float, requests: int, why: str) -> Mapping[str, Any]:
    arrivals = poisson_arrivals(session.plan.load.kinds, rate=rate, requests=requests, seed=session.plan.seed)

    def measure() -> dict[str, Any]:
        running = session.scenario(scenario)
        return {"rate": rate, "why": why, **asdict(asyncio.run(offer(running.url, arrivals, running.pids)))}

    key = f"open-loop/{scenario.name}/{why}-{rate:.3g}"
    record = session.unit(key, "open-loop", measure, prepare=partial(session.scenario, scenario))
    measured: Mapping[str, Any] = record["measured"]
    if measured["failed"]:
        session.display.log(scenario.name, f"{measured['failed']} of {requests} requests failed at {rate:.3g} a second")
    return measured


# Cold starts


def cold_start(session: Session) -> None:
    """With nothing else of ours running."""
    scenarios = [scenario for scenario in session.plan.scenarios if scenario.is_ours_alone]
    missing = [scenario for scenario in scenarios if not session.journal.attempts(f"cold-start/{scenario.name}")]
    if missing:
        session.close()
    for scenario in scenarios:
        session.unit(f"cold-start/{scenario.name}", "cold-start", partial(_cold_starts, session, scenario))


def _cold_starts(session: Session, scenario: Scenario) -> dict[str, Any]:
    return measure_cold_starts(
        scenario,
        session.served,
        session.plan.picture(0),
        compiled_starts=session.plan.compiled_starts,
        on_line=session.display.log,
    )


PARTS = {
    "wire": wire,
    "sequential": sequential,
    "service-times": service_times,
    "open-loop": open_loop,
    "cold-start": cold_start,
}


def measure(session: Session) -> None:
    """All parts of the plan. Raises MeasurementError where what was measured is not what was asked for."""
    for name in session.plan.parts:
        session.begin(name)
        PARTS[name](session)
