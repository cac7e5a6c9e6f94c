"""`triptych jobs`: pictures that are ordered now and fetched later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.cli.console import out, say, show_rows, shown_progress
from triptych.cli.generate import FORMATS, format_of, given_options, save
from triptych.client import Client, Progress
from triptych.errors import TriptychError

NOTHING = "-"
SUFFIXES = {f"image/{name}": suffix for suffix, name in reversed(FORMATS.items())}


@dataclass(frozen=True)
class Gateway:
    """Where the jobs are."""

    url: str
    api_key: str | None
    timeout_seconds: float = 60.0

    def client(self) -> Client:
        return Client(self.url, api_key=self.api_key, timeout_seconds=self.timeout_seconds)


def submit(
    prompt: str,
    output: Path,
    *,
    wait: bool,
    id_only: bool,
    idempotency_key: str | None,
    gateway: Gateway,
    **options: Any,
) -> None:
    """Orders a job, says which it is, and where that is wanted waits for its pictures.

    Raises:
        TriptychError: The gateway refused, the job has failed, or a file cannot be written.
    """
    given = given_options(options, output)
    with gateway.client() as client:
        job = client.submit(prompt, idempotency_key=idempotency_key, **given)
        say(job if id_only else f"job {job}; `triptych jobs get --wait {job}` fetches it")
        if wait:
            _wait(client, job)
            save(client.fetch(job), output, silently=id_only)


def list_jobs(gateway: Gateway, *, limit: int, as_json: bool) -> None:
    with gateway.client() as client:
        jobs = client.jobs(limit=limit)
    if as_json:
        _show_json(jobs)
        return
    show_rows(
        ("id", "status", "progress", "created"), [(job["id"], job["status"], _how_far(job), job["created"]) for job in jobs]
    )


def describe(job: str, gateway: Gateway, *, as_json: bool) -> None:
    with gateway.client() as client:
        told = client.job(job)
    if as_json:
        _show_json(told)
        return
    error, result = told.pop("error"), told.pop("result")
    rows = [(name, str(value)) for name, value in told.items() if value is not None]
    if error is not None:
        rows.append(("error", error["message"]))
    if result is not None:
        rows += [(name, str(value)) for name, value in result["parameters"].items()]
        rows += [("warning", warning) for warning in result["warnings"]]
        rows += [("image", image["url"]) for image in result["images"]]
    show_rows(("what", "is"), rows)


def get(job: str, output: Path | None, gateway: Gateway, *, wait: bool) -> None:
    """Raises TriptychError where there are no pictures, or they cannot be written."""
    if output is not None:
        format_of(output)
    with gateway.client() as client:
        told = _wait(client, job) if wait else client.job(job)
        pictures = client.fetch(job)
    if output is None:
        output = Path(job + SUFFIXES[told["result"]["images"][0]["media_type"]])
    save(pictures, output)


def cancel(job: str, gateway: Gateway) -> None:
    with gateway.client() as client:
        client.cancel_job(job)


def _wait(client: Client, job: str) -> Mapping[str, Any]:
    with shown_progress() as show:

        def tell(told: Mapping[str, Any]) -> None:
            if told["stage"] is not None:
                show(Progress(stage=told["stage"], position=told["position"], num_evaluations=told["num_evaluations"]))

        ended = client.wait(job, on_change=tell)
    if ended["status"] != "completed":
        reason = f": {ended['error']['message']}" if ended["error"] else ""
        raise TriptychError(f"job {job} is {ended['status']}{reason}")
    return ended


def _how_far(job: Mapping[str, Any]) -> str:
    if job["queue_position"] is not None:
        return f"{job['queue_position']} in line"
    if job["status"] != "running" or job["stage"] is None:
        return NOTHING
    return job["stage"] if job["position"] is None else f"{job['stage']} {job['position']}/{job['num_evaluations'] or '?'}"


def _show_json(document: Any) -> None:
    out.file.write(json.dumps(document, indent=1) + "\n")
