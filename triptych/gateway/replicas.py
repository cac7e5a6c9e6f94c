"""Who does the work: `GET /replicas`, and the same in numbers for `GET /metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from triptych.contract import Diffusion, TextEncoder
from triptych.gateway.contexts import OUTCOMES, CachedTextEncoder
from triptych.gateway.registry import Model, Registry
from triptych.gateway.state import GatewayDep
from triptych.gateway.topology_file import StageEntry
from triptych.remote.failover import ReplicatedDiffusion
from triptych.remote.replica import ReplicaState, ReplicaStatus


class ReplicaAnswer(BaseModel):
    """One replica of a stage."""

    address: str
    state: ReplicaState = Field(
        description="`ready` gets work. `missing` has not said who it is since it was last missed. `resting` failed again and "
        "again, and `probed` gets one request after that, to see."
    )
    evaluations_outstanding: int = Field(description="Of the network, for what this gateway has there; an answer at once is one.")
    evaluations_elsewhere: int = Field(description="That it reports on top of them, for others.")
    failures: int = Field(description="Since this gateway first knew it.")
    problem: str | None = Field(description="What went wrong last, while it is not ready.")


class StageReplicasAnswer(BaseModel):
    """The replicas of one stage of a model."""

    model: str | None
    stage: StageEntry
    replicas: list[ReplicaAnswer]


class ReplicasAnswer(BaseModel):
    stages: list[StageReplicasAnswer] = Field(description="Stages that are in the gateway's own process are none.")


router = APIRouter()


@router.get("/replicas")
async def replicas(gateway: GatewayDep) -> ReplicasAnswer:
    """The replicas of each stage, and how they are."""
    stages = [
        StageReplicasAnswer(model=model.name, stage=stage, replicas=[_describe(replica) for replica in found])
        for model in gateway.registry
        for stage, found in _replicas_of(model)
    ]
    return ReplicasAnswer(stages=stages)


def _describe(status: ReplicaStatus) -> ReplicaAnswer:
    return ReplicaAnswer(**vars(status))


def _replicas_of(model: Model) -> Iterator[tuple[StageEntry, Sequence[ReplicaStatus]]]:
    for stage in StageEntry:
        if found := getattr(getattr(model.pipeline, stage), "replicas", ()):
            yield stage, found


class ReplicaMetrics(Collector):
    """Read when they are asked for. Addresses come from the topology, so no caller can invent labels."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        yield from _of_replicas(self._registry)
        # Models that share a stage share what it counts.
        pipelines = [model.pipeline for model in self._registry]
        yield _of_contexts({id(each.text_encoder): each.text_encoder for each in pipelines}.values())
        yield from _of_denoisings({id(each.diffusion): each.diffusion for each in pipelines}.values())


def _of_replicas(registry: Registry) -> Iterator[Metric]:
    labels = ("stage", "address")
    state = GaugeMetricFamily("triptych_replica_state", "1 for the state that a replica is in.", labels=(*labels, "state"))
    outstanding = GaugeMetricFamily(
        "triptych_replica_evaluations_outstanding", "Evaluations of the network that this gateway has there.", labels=labels
    )
    failures = CounterMetricFamily("triptych_replica_failures", "Failures of a replica.", labels=labels)
    statuses = {(stage, each.address): each for model in registry for stage, found in _replicas_of(model) for each in found}
    for labelled, status in statuses.items():
        for known in ReplicaState:
            state.add_metric((*labelled, known), float(known is status.state))
        outstanding.add_metric(labelled, status.evaluations_outstanding)
        failures.add_metric(labelled, status.failures)
    yield from (state, outstanding, failures)


def _of_contexts(text_encoders: Iterable[TextEncoder]) -> Metric:
    contexts = CounterMetricFamily(
        "triptych_contexts", "Contexts that requests asked for: kept before, shared while made, made.", labels=("outcome",)
    )
    cached = [each.counts for each in text_encoders if isinstance(each, CachedTextEncoder)]
    for outcome in OUTCOMES:
        contexts.add_metric((outcome,), sum(counts[outcome] for counts in cached))
    return contexts


def _of_denoisings(stages: Iterable[Diffusion]) -> Iterator[Metric]:
    replicated = [each for each in stages if isinstance(each, ReplicatedDiffusion)]
    for name, words, count in (
        ("evaluations", "Evaluations of the diffusion network, each row one.", lambda each: each.evaluations),
        ("evaluations_repeated", "Evaluations that were lost with a replica.", lambda each: each.evaluations_repeated),
        ("denoisings_resumed", "Denoisings that went on elsewhere from their newest state.", lambda each: each.resumed),
    ):
        yield CounterMetricFamily(f"triptych_{name}", words, value=sum(map(count, replicated)))
