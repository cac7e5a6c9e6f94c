"""The four services on this machine: which ports, which settings, in which order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from triptych.cli.processes import HOST, Service, free_ports, is_free
from triptych.errors import StartError

STAGES = ("text_encoder", "diffusion", "decoder")


def four_services(ports: tuple[int, ...], model: str | None = None, *, topology: Path | None = None) -> tuple[Service, ...]:
    """Three stages, and last the gateway that knows where they are.

    Args:
        ports: Of the gateway and the three stages.
        model: Which one they serve; None is what the environment says.
        topology: The gateway's file; None is none, unless the environment names one.

    Raises:
        StartError: The environment has them speak HTTPS, and this machine's own address has no certificate.
    """
    if os.environ.get("TRIPTYCH_TLS_CERTIFICATE"):
        raise StartError(
            "these four talk on this machine alone, without TLS: unset TRIPTYCH_TLS_CERTIFICATE, or start each by triptych serve"
        )
    gateway_port, *stage_ports = ports
    # A person reads these logs, though they come through a pipe.
    logs = {"TRIPTYCH_LOG_FORMAT": os.environ.get("TRIPTYCH_LOG_FORMAT", "console")}
    told = logs if model is None else {**logs, "TRIPTYCH_MODEL": model}
    stages = tuple(
        Service(name=stage, port=port, command=serve_command(stage, port), ready_path="/v2/health/ready", environment=told)
        for stage, port in zip(STAGES, stage_ports, strict=True)
    )
    addresses = {f"TRIPTYCH_{stage.name.upper()}_URL": stage.url for stage in stages}
    if "TRIPTYCH_TOKEN" in os.environ:
        addresses["TRIPTYCH_STAGE_TOKEN"] = os.environ["TRIPTYCH_TOKEN"]
    if topology is not None:
        addresses["TRIPTYCH_TOPOLOGY"] = str(topology)
    gateway = Service(
        name="central",
        port=gateway_port,
        command=serve_command("central", gateway_port),
        ready_path="/health/ready",
        environment=addresses | logs,
    )
    return (*stages, gateway)


def serve_command(name: str, port: int) -> tuple[str, ...]:
    """The command of a service that ends when this process does."""
    options = ("--host", HOST, "--port", str(port), "--parent", str(os.getpid()))
    return (sys.executable, "-m", "triptych.cli", "serve", name, *options)


def ports_from(first: int) -> tuple[int, ...]:
    """The port and the next three.

    Raises:
        StartError: One of them is taken.
    """
    ports = tuple(range(first, first + 1 + len(STAGES)))
    taken = [str(port) for port in ports if not is_free(port)]
    if taken:
        raise StartError(
            f"{_ports(taken)} cannot be listened on; with --port the gateway takes another one, and the stages the next three"
        )
    return ports


def ports_from_or_free(first: int) -> tuple[int, ...]:
    """The port and the next three where they are free, else any four that are."""
    ports = tuple(range(first, first + 1 + len(STAGES)))
    return ports if all(map(is_free, ports)) else free_ports(len(ports))


def _ports(taken: list[str]) -> str:
    return f"port {taken[0]}" if len(taken) == 1 else f"ports {', '.join(taken)}"
