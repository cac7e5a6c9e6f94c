"""A checkpoint gets a name, is checked, and is served by that name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from tests.checkpoints.hub_server import Hub, files_below, serving
from tests.end_to_end.real_services import TinyModel, addresses, running
from triptych.cli.processes import free_ports
from triptych.cli.topology import four_services

pytestmark = pytest.mark.timeout(600)


def ended(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "triptych.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}, check=False)


def triptych(*arguments: str, **environment: str) -> str:
    """What a command says, which must end well."""
    finished = ended(*arguments, **environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


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


OWN_WEIGHTS = {
    "text_encoder": {"text_encoder/model.safetensors"},
    "diffusion": {"unet/diffusion_pytorch_model.safetensors"},
    "decoder": {"vae/diffusion_pytorch_model.safetensors"},
}


def test_each_service_downloads_its_own_part_and_they_make_a_picture(tiny_model: TinyModel, tmp_path: Path) -> None:
    triptych("models", "add", "far", "gone/tiny", "--licence", "MIT")
    add_mirror(tmp_path / "models.toml", "moved/tiny")
    files = files_below(tiny_model.folder)
    with ExitStack() as stack:
        hubs = {stage: stack.enter_context(serving(Hub("moved/tiny", files))) for stage in OWN_WEIGHTS}
        *stages, gateway = four_services(free_ports(4))
        told = {"MODEL": "far", "TRIPTYCH_CACHE_FOLDER": str(tiny_model.cache), "TRIPTYCH_THREADS": "1"}
        services = [
            replace(each, environment={**told, **own_hub(hubs[each.name], tmp_path / each.name), **each.environment})
            for each in stages
        ]
        with running([*services, gateway]) as group:
            url = addresses([gateway])["central"]
            answer = httpx2.post(f"{url}/generate", json={"prompt": "a red circle", "seed": 1}, timeout=60).json()
            lines = {process.service.name: "\n".join(process.lines) for process in group.processes}

    assert answer["model"] == "far"
    for stage, hub in hubs.items():
        weights = {name for name in hub.names_asked_for() if name.endswith(".safetensors")}
        assert weights == OWN_WEIGHTS[stage]
        assert "far is under the licence MIT" in lines[stage]


def test_a_pulled_part_is_served_offline_and_another_is_not(tiny_model: TinyModel, tmp_path: Path) -> None:
    with serving(Hub("owner/tiny", files_below(tiny_model.folder))) as hub:
        there = own_hub(hub, tmp_path / "hub")
        assert "the decoder of owner/tiny is on this machine: " in triptych("pull", "owner/tiny", "--stage", "decoder", **there)
        asked = len(hub.asked)
        assert "is on this machine already" in triptych("pull", "owner/tiny", "--stage", "decoder", **there)
        assert len(hub.asked) == asked
        assert re.search(r"^owner/tiny\t", triptych("models", "list", **there), re.MULTILINE) is None
        triptych("models", "add", "far", "owner/tiny")
        assert re.search(r"^far\t-\t-\t-\tdecoder$", triptych("models", "list", **there), re.MULTILINE)
    told = {**there, "MODEL": "far", "TRIPTYCH_CACHE_FOLDER": str(tiny_model.cache), "TRIPTYCH_THREADS": "1"}
    assert "decoder is prepared" in triptych("prepare", "decoder", **told)
    refused = ended("prepare", "diffusion", HF_HUB_OFFLINE="1", **told)
    assert refused.returncode == 1
    assert "unet/diffusion_pytorch_model.safetensors" in refused.stderr


def test_services_that_share_a_cache_share_what_they_download(tiny_model: TinyModel, tmp_path: Path) -> None:
    with serving(Hub("owner/tiny", files_below(tiny_model.folder))) as hub:
        told = {"MODEL": "owner/tiny", "TRIPTYCH_CACHE_FOLDER": str(tiny_model.cache), "TRIPTYCH_THREADS": "1"}
        shared = {**told, **own_hub(hub, tmp_path / "hub")}
        services = [replace(each, environment={**shared, **each.environment}) for each in four_services(free_ports(4))]
        with running(services):
            answer = httpx2.post(f"{services[-1].url}/generate", json={"prompt": "a red circle"}, timeout=60)
    assert answer.status_code == 200
    weights = set().union(*OWN_WEIGHTS.values())
    sent = [each.path for each in hub.asked if each.method == "GET"]
    assert {name: sent.count(f"/lfs/{hub.sha256(name)}") for name in weights} == dict.fromkeys(weights, 1)


def own_hub(hub: Hub, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder)}


def add_mirror(path: Path, mirror: str) -> None:
    path.write_text(path.read_text() + f'mirrors = ["{mirror}"]\n')


def test_the_command_names_the_model_for_all_stages() -> None:
    *stages, gateway = four_services((1, 2, 3, 4), "sd-v1-5")
    assert {stage.environment["TRIPTYCH_MODEL"] for stage in stages} == {"sd-v1-5"}
    assert "TRIPTYCH_MODEL" not in gateway.environment
    assert not any("TRIPTYCH_MODEL" in each.environment for each in four_services((1, 2, 3, 4)))
