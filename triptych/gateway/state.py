"""What a gateway's routes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from triptych.gateway.admission import Admission
from triptych.gateway.live_topology import LiveTopology
from triptych.gateway.metrics import GatewayMetrics
from triptych.gateway.registry import Registry
from triptych.gateway.running import RunningRequests
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.swap import Swaps
from triptych.serving.places import Places

if TYPE_CHECKING:  # they work with a gateway themselves
    from triptych.gateway.jobs.service import Jobs
    from triptych.gateway.shared_runs import SharedRuns


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """One gateway: its models, its queue, its counters, and who is at work.

    Attributes:
        bodies: Bytes of the requests that are here.
        jobs: Those that outlive it.
        running: Requests by name.
        shared: Requests that go on without their callers, or that several wait for.
        topology: The file that its models follow, if there is one.
        swaps: What changes it.
    """

    settings: GatewaySettings
    registry: Registry
    admission: Admission
    bodies: Places
    metrics: GatewayMetrics
    jobs: Jobs
    shared: SharedRuns
    running: RunningRequests = field(default_factory=RunningRequests)
    topology: LiveTopology | None = None
    swaps: Swaps | None = None


async def _gateway(request: Request) -> Gateway:
    """Async, though it waits for nothing: FastAPI would call a plain function in a thread, which costs a millisecond."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]
