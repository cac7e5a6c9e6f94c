"""What can be seen of a picture while real services make it, and how it is known again afterwards."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.end_to_end.real_services import TinyModel, four_tiny_services, running, tiny_all_in_one

pytestmark = pytest.mark.timeout(600)

BODY = {"prompt": "a red circle", "num_steps": 12, "seed": 5, "num_images": 2}


@dataclass(frozen=True)
class Gateways:
    """The same model twice: behind a gateway and three services, and in one process."""

    composed: str
    together: str


@pytest.fixture(scope="module")
def gateways(tiny_model: TinyModel) -> Iterator[Gateways]:
    services, alone = four_tiny_services(tiny_model), tiny_all_in_one(tiny_model)
    with running([alone]), running(services):
        yield Gateways(services[-1].url, alone.url)


def events_while(url: str, body: dict[str, Any], name: str = "mine") -> Iterator[tuple[str, Any]]:
    """Events of a request as they come."""
    headers = {"Accept": "text/event-stream", "X-Request-Id": name}
    with httpx2.stream("POST", f"{url}/generate", json=body, headers=headers, timeout=100) as response:
        event = ""
        for line in response.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                event = value
            elif field == "data":
                yield event, json.loads(value)


def test_both_topologies_give_the_same_receipt(gateways: Gateways) -> None:
    receipts = [
        httpx2.post(f"{url}/generate", json=BODY, timeout=100).json()["receipt"] for url in (gateways.composed, gateways.together)
    ]
    assert receipts[0] == receipts[1]
    assert len(set(receipts[0]["latents"])) == len(set(receipts[0]["pixels"])) == 2


@pytest.mark.parametrize("topology", ["composed", "together"])
def test_progress_and_previews_come_while_the_stages_work(gateways: Gateways, topology: str) -> None:
    url = getattr(gateways, topology)
    events = list(events_while(url, {**BODY, "num_steps": 100, "previews": 3}))
    plain = httpx2.post(f"{url}/generate", json={**BODY, "num_steps": 100}, timeout=100).json()

    previews = [data for name, data in events if name == "preview"]
    assert previews, "an idle decoder makes at least one of three"
    assert {preview["position"] for preview in previews} <= {25, 50, 75}
    for preview in previews:
        files = [base64.b64decode(image["b64_json"]) for image in preview["images"]]
        assert [file[:2] for file in files] == [b"\xff\xd8"] * 2
    positions = [data["position"] for name, data in events if name == "progress" and "position" in data]
    assert positions == list(range(1, 101))
    name, completed = events[-1]
    assert name == "completed"
    assert completed["images"] == plain["images"]
    assert completed["receipt"] == plain["receipt"]


@pytest.mark.parametrize("topology", ["composed", "together"])
def test_a_request_is_cancelled_by_its_name(gateways: Gateways, topology: str) -> None:
    url = getattr(gateways, topology)
    told: list[tuple[str, Any]] = []
    for event, data in events_while(url, {**BODY, "num_steps": 150, "num_images": 8}, name="to-be-ended"):
        told.append((event, data))
        if data.get("position") == 3:
            assert httpx2.delete(f"{url}/requests/to-be-ended").status_code == 204
    assert told[-1][0] == "error"
    assert told[-1][1]["error"]["code"] == "request_cancelled"
    assert max(data.get("position", 0) for _, data in told) < 100


def test_a_picture_of_one_topology_is_verified_by_the_other(gateways: Gateways, tmp_path: Path) -> None:
    answer = httpx2.post(f"{gateways.composed}/generate", json=BODY, timeout=100).json()
    picture = tmp_path / "picture.png"
    picture.write_bytes(base64.b64decode(answer["images"][1]["b64_json"]))
    command = [sys.executable, "-m", "triptych.cli", "verify", str(picture), "--gateway", gateways.together]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, f"{picture} is the same, byte for byte\n")
