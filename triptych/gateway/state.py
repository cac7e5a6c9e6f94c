"""What a gateway's routes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from triptych.gateway.admission import Admission
from triptych.gateway.live_topology import LiveTopology
from triptych.gateway.metrics import GatewayMetrics
from triptych.gateway.registry import Registry
from triptych.gateway.running import RunningRequests
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.swap import Swaps


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """One gateway: its models, its queue, its counters, and who is at work.

    Attributes:
        topology: The file that its models follow, if there is one.
        swaps: What changes it.
    """

    settings: GatewaySettings
    registry: Registry
    admission: Admission
    metrics: GatewayMetrics
    running: RunningRequests = field(default_factory=RunningRequests)
    topology: LiveTopology | None = None
    swaps: Swaps | None = None


async def _gateway(request: Request) -> Gateway:
    """Async, though it waits for nothing: FastAPI would call a plain function in a thread, which costs a millisecond."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]
