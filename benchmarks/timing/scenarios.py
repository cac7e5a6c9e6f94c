"""The scenarios: where each of the three stages lives. All are the one `pipeline.py` on other Protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from triptych.contract import StageName
from triptych.errors import StartError

LOCAL, REMOTE = "local", "remote"
GIVEN = "given"
"""The name of a scenario whose stages were placed on the command line."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One way to place the stages.

    Attributes:
        text_encoder, diffusion, decoder: `local` is in the process that composes the pipeline, `remote` a process that is
            started for it, and anything else the address of a service that is running already.
        replicas: Copies of the whole, which share the threads; more than one only where all stages are local.
    """

    name: str
    text_encoder: str
    diffusion: str
    decoder: str
    replicas: int = 1

    def __post_init__(self) -> None:
        for stage, place in self.places.items():
            if place not in (LOCAL, REMOTE) and urlsplit(place).scheme not in ("http", "https"):
                raise StartError(f"the {stage} stage of {self.name} is `local`, `remote` or an address, not {place!r}")
        if self.replicas < 1 or (self.replicas > 1 and not self.is_one_process):
            raise StartError(f"{self.name}: only whole monoliths are replicated here, one or more")

    @property
    def places(self) -> Mapping[StageName, str]:
        return {
            StageName.TEXT_ENCODER: self.text_encoder,
            StageName.DIFFUSION: self.diffusion,
            StageName.DECODER: self.decoder,
        }

    @property
    def is_one_process(self) -> bool:
        return all(place == LOCAL for place in self.places.values())

    @property
    def is_split(self) -> bool:
        return LOCAL not in self.places.values()

    @property
    def is_ours_alone(self) -> bool:
        """Whether every process of it is started here: only then can it be started from nothing."""
        return all(place in (LOCAL, REMOTE) for place in self.places.values())


ALL_IN_ONE = Scenario(name="all-in-one", text_encoder=LOCAL, diffusion=LOCAL, decoder=LOCAL)
THREE_ENDPOINTS = Scenario(name="three-endpoints", text_encoder=REMOTE, diffusion=REMOTE, decoder=REMOTE)
ONE_ENDPOINT = Scenario(name="one-endpoint-two-local", text_encoder=LOCAL, diffusion=REMOTE, decoder=LOCAL)


def replicas(number: int) -> Scenario:
    """Whole monoliths behind one address."""
    return Scenario(name="replicas", text_encoder=LOCAL, diffusion=LOCAL, decoder=LOCAL, replicas=number)
