"""What the advisor knows of the product: measured service times, in a section `service_times` of a result's JSON.

Schema, as an example; all keys are required unless they are said to be optional, others are refused::

    {"service_times": {
      "model": "vignette",
      "machine": "AMD EPYC, 2 cores, 24 GiB",
      "date": "2026-11-20 13:29 UTC",
      "measured_by": "python -m benchmarks.timing --profile quick",
      "notes": ["the machine's load was 4 to 6"],                          optional: what a reader of the advice must know
      "requests": [{"size": "128x128", "num_steps": 25, "share": 1.0}],    the mix of requests; the shares add up to 1
      "stages": {
        "text_encoder": {
          "rows_per_picture": 2,                   a prompt and a negative prompt
          "seconds": {"any": {"2": SPREAD, "8": SPREAD}},
          "cold_start_seconds": 0.85,              from process start to ready, from the compiled network
          "memory_bytes": 216000000},              of the process, resident
        "diffusion": {
          "rows_per_picture": 2,                   guidance doubles the rows
          "seconds": {"128x128": {"2": SPREAD, "16": SPREAD}},             of one evaluation, not of all steps
          "cold_start_seconds": 1.66,
          "memory_bytes": 605000000},
        "decoder": {"rows_per_picture": 1, ...}},
      "transfer_seconds": {"text_encoder": SPREAD, "diffusion": SPREAD, "decoder": SPREAD},
      "gateway": {"seconds": SPREAD, "cold_start_seconds": 0.64, "memory_bytes": 81600000},
      "load_curve": {                              optional: an open loop with Poisson arrivals of `requests`
        "scenario": "three-endpoints",             or all-in-one; either has all its processes on one machine
        "points": [{"offered_per_second": 1.0, "throughput_per_second": 1.0, "requests": 300, "shed": 0,
                    "p50_seconds": 0.4, "p95_seconds": 0.9, "p99_seconds": 1.2}]}}}

    SPREAD = {"median": 0.0075, "p10": 0.0074, "p90": 0.0079, "rounds": 50}

A SPREAD is in seconds; p10 = median = p90 where rounds is 1. `seconds` is size -> rows of the call -> seconds; the size
`any` stands for all. Rows between two measured numbers are interpolated linearly, fewer than the fewest cost what the fewest
do (a call is padded up), and no call has more rows than the most that were measured. `transfer_seconds` is what a hop costs
beyond the stage's own time: serialization, socket, parsing. `gateway.seconds` is the gateway's own work for a request.
Seconds that a stage's queue took belong to none of these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from triptych.errors import InvalidValue, MalformedRequest

RESULTS_FILE = "results.json"
SECTION = "service_times"
ANY_SIZE = "any"
StageName = Literal["text_encoder", "diffusion", "decoder"]
STAGES: tuple[StageName, ...] = ("text_encoder", "diffusion", "decoder")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")]

# Of the standard normal distribution: from its 10th to its 90th percentile.
_TENTH_TO_NINETIETH = 2.5631031310892007
strict = with_config(ConfigDict(extra="forbid"))


@strict
@dataclass(frozen=True, kw_only=True)
class Spread:
    """Seconds of something that was done `rounds` times."""

    median: NotNegative
    p10: NotNegative
    p90: NotNegative
    rounds: Count

    def __post_init__(self) -> None:
        if not self.p10 <= self.median <= self.p90:
            raise ValueError("p10, median and p90 are not in order")

    @property
    def sigma(self) -> float:
        """Of the logarithm: with the median it makes the lognormal distribution that has this distance from p10 to p90."""
        return math.log(self.p90 / self.p10) / _TENTH_TO_NINETIETH if self.p10 > 0 else 0.0


@strict
@dataclass(frozen=True, kw_only=True)
class Request:
    """A sort of request, one picture each, and which share of all it is."""

    size: Size
    num_steps: Count
    share: Annotated[float, Field(gt=0, le=1)]


@strict
@dataclass(frozen=True, kw_only=True)
class Process:
    """What a service needs before it works.

    Attributes:
        cold_start_seconds: From process start to ready, with the compiled network in the cache.
        memory_bytes: Resident, at its peak while it serves.
    """

    cold_start_seconds: NotNegative
    memory_bytes: Count


@strict
@dataclass(frozen=True, kw_only=True)
class Stage(Process):
    """A stage's calls of its network.

    Attributes:
        rows_per_picture: Of a call: 2 under guidance, for the text encoder and diffusion.
        seconds: Size (or `any`) -> rows -> seconds of a call; for diffusion of one evaluation.
    """

    rows_per_picture: Count
    seconds: dict[Size | Literal["any"], dict[Count, Spread]]

    def calls(self, size: str) -> dict[int, Spread]:
        """Rows -> seconds, for pictures of a size.

        Raises:
            InvalidValue: That size was not measured.
        """
        found = self.seconds.get(size) or self.seconds.get(ANY_SIZE)
        if not found:
            raise InvalidValue(f"there are no service times of size {size}; measured were {', '.join(self.seconds)}")
        return found

    def seconds_by_pictures(self, size: str) -> tuple[float, ...]:
        """Median seconds of a call with 1, 2, ... pictures, as far as was measured."""
        calls = self.calls(size)
        rows = sorted(calls)
        pictures = range(1, max(1, rows[-1] // self.rows_per_picture) + 1)
        medians = [calls[each].median for each in rows]
        return tuple(float(np.interp(each * self.rows_per_picture, rows, medians)) for each in pictures)

    def sigma(self, size: str) -> float:
        """Of the logarithm of a call's seconds, for one or few pictures."""
        calls = self.calls(size)
        return calls[min(calls)].sigma


@strict
@dataclass(frozen=True, kw_only=True)
class Gateway(Process):
    """The gateway's own work for a request."""

    seconds: Spread


@strict
@dataclass(frozen=True, kw_only=True)
class LoadPoint:
    """What became of an offered rate, in an open loop."""

    offered_per_second: Positive
    throughput_per_second: NotNegative
    requests: Count
    shed: Annotated[int, Field(ge=0)]
    p50_seconds: Positive
    p95_seconds: Positive
    p99_seconds: Positive


@strict
@dataclass(frozen=True, kw_only=True)
class LoadCurve:
    """Several offered rates, each with all processes on the one machine."""

    scenario: Literal["all-in-one", "three-endpoints"]
    points: Annotated[tuple[LoadPoint, ...], Field(min_length=1)]


@strict
@dataclass(frozen=True, kw_only=True)
class ServiceTimes:
    """All that the advisor takes from a benchmark; the module says what is in it."""

    model: str
    machine: str
    date: str
    measured_by: str
    requests: Annotated[tuple[Request, ...], Field(min_length=1)]
    stages: dict[StageName, Stage]
    transfer_seconds: dict[StageName, Spread]
    gateway: Gateway
    load_curve: LoadCurve | None = None
    notes: tuple[str, ...] = ()


_ADAPTER = TypeAdapter(ServiceTimes)


def read_service_times(path: Path) -> ServiceTimes:
    """Reads them from a result: its folder (with results.json), or a file.

    Raises:
        MalformedRequest: There is no such file, or it is not JSON.
        InvalidValue: Something is missing or does not fit; one sentence names all that is missing.
    """
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise MalformedRequest(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise MalformedRequest(f"{file} is not JSON: {error}") from None
    if not isinstance(document, dict) or SECTION not in document:
        raise InvalidValue(f"{file} has no section {SECTION}, without which there is nothing to advise on")
    return parse_service_times(document[SECTION], str(file))


def parse_service_times(section: Any, where: str) -> ServiceTimes:
    """Checks a section.

    Args:
        section: As JSON has it.
        where: What errors call it.

    Raises:
        InvalidValue: See `read_service_times`.
    """
    try:
        times = _ADAPTER.validate_python(section)
    except ValidationError as error:
        raise InvalidValue(f"{where}: {one_sentence(error)}") from None
    absent = list(_absent(times))
    if absent:
        raise InvalidValue(f"{where}: missing: {', '.join(absent)}")
    if not math.isclose(total := sum(each.share for each in times.requests), 1, abs_tol=1e-6):
        raise InvalidValue(f"{where}: the shares of the requests add up to {total:g}, not to 1")
    return times


def one_sentence(error: ValidationError) -> str:
    """All that is missing if anything is, else the first that does not fit."""
    missing = [_place(each["loc"]) for each in error.errors() if each["type"] == "missing"]
    if missing:
        return f"missing: {', '.join(missing)}"
    first = error.errors()[0]
    return f"{_place(first['loc'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _place(steps: Iterable[int | str]) -> str:
    return ".".join(map(str, steps)) or SECTION


def _absent(times: ServiceTimes) -> Iterable[str]:
    """What the types allow to be empty and the advice needs."""
    for name in STAGES:
        if name not in times.stages:
            yield f"stages.{name}"
        if name not in times.transfer_seconds:
            yield f"transfer_seconds.{name}"
    for name, stage in times.stages.items():
        for request in times.requests:
            calls = stage.seconds.get(request.size) or stage.seconds.get(ANY_SIZE)
            if not calls:
                yield f"stages.{name}.seconds.{request.size}"
