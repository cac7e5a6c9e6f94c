"""A checkpoint gets a name, is checked, and is served by that name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

import httpx2
import pytest

from tests.end_to_end.real_services import TinyModel, addresses, running
from triptych.cli.processes import free_ports
from triptych.cli.topology import four_services

pytestmark = pytest.mark.timeout(600)


def triptych(*arguments: str) -> str:
    """What a command says, which must end well."""
    command = [sys.executable, "-m", "triptych.cli", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_name_of_ones_own_is_checked_and_served(tiny_model: TinyModel) -> None:
    triptych("models", "add", "mine/tiny", str(tiny_model.folder), "--num-steps", "3", "--licence", "MIT")
    assert re.search(r"^mine/tiny\t-\t-\tMIT\tall$", triptych("models", "list"), re.MULTILINE)
    assert "mine/tiny is sound" in triptych("check", "mine/tiny")

    told = {"MODEL": "mine/tiny", "TRIPTYCH_CACHE_FOLDER": str(tiny_model.cache), "TRIPTYCH_THREADS": "1"}
    services = tuple(replace(each, environment={**told, **each.environment}) for each in four_services(free_ports(4)))
    with running(services):
        url = addresses(services)["central"]
        answer = httpx2.post(f"{url}/generate", json={"prompt": "a red circle", "seed": 1}, timeout=60).json()

    assert answer["model"] == "mine/tiny"
    assert answer["parameters"]["num_steps"] == 3
    assert len(answer["images"]) == 1


def test_the_command_names_the_model_for_all_stages() -> None:
    *stages, gateway = four_services((1, 2, 3, 4), "sd-v1-5")
    assert {stage.environment["TRIPTYCH_MODEL"] for stage in stages} == {"sd-v1-5"}
    assert "TRIPTYCH_MODEL" not in gateway.environment
    assert not any("TRIPTYCH_MODEL" in each.environment for each in four_services((1, 2, 3, 4)))
