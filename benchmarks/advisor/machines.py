"""What may be rented, and what the world does to it: assumptions of the user, read from machines.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from benchmarks.advisor.service_times import STAGES, StageName, one_sentence, strict
from triptych.errors import InvalidValue, MalformedRequest

DEFAULT = Path(__file__).resolve().parent / "machines.toml"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]


@strict
@dataclass(frozen=True, kw_only=True)
class Machine:
    """One sort of machine; machines.toml explains the fields."""

    price_per_hour: Positive
    memory_gib: Positive
    start_seconds: NotNegative
    hours_between_losses: Positive
    speed: dict[StageName, Positive]

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * 2**30


@strict
@dataclass(frozen=True, kw_only=True)
class Load:
    """What happens to load and machines over time."""

    growth_per_minute: NotNegative
    availability: Share


@strict
@dataclass(frozen=True, kw_only=True)
class GatewayPlace:
    """Where gateways run, and how busy one may be."""

    machine: str
    utilisation: Share


@strict
@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """All of machines.toml."""

    currency: str
    measured_on: str
    load: Load
    gateway: GatewayPlace
    machines: Annotated[dict[str, Machine], Field(min_length=1)]

    def speed(self, machine: str, stage: StageName) -> float:
        """How much faster a stage is there than where it was measured."""
        return self.machines[machine].speed[stage] / self.machines[self.measured_on].speed[stage]


_ADAPTER = TypeAdapter(Assumptions)


def read_assumptions(path: Path) -> Assumptions:
    """Reads a table of machines.

    Raises:
        MalformedRequest: There is no such file, or it is not TOML.
        InvalidValue: Something is missing or does not fit.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MalformedRequest(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"{path} is not TOML: {error}") from None
    return parse_assumptions(document, str(path))


def parse_assumptions(document: Any, where: str) -> Assumptions:
    """Checks a table of machines; see `read_assumptions`."""
    try:
        assumptions = _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise InvalidValue(f"{where}: {one_sentence(error)}") from None
    for key, name in (("measured_on", assumptions.measured_on), ("gateway.machine", assumptions.gateway.machine)):
        if name not in assumptions.machines:
            raise InvalidValue(f"{where}: {key} is {name}, which is none of the machines: {', '.join(assumptions.machines)}")
    for name, machine in assumptions.machines.items():
        if absent := [stage for stage in STAGES if stage not in machine.speed]:
            raise InvalidValue(f"{where}: missing: machines.{name}.speed.{absent[0]}")
    return assumptions
