"""`triptych swap` against a gateway in this process, whose log is printed among the rest, and whose stages are fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.gateway.panels import DIFFUSION, NEXT, Panels, at, model_table
from tests.gateway.served import served
from triptych.cli.topology import four_services
from triptych.client import Client
from triptych.gateway import topology
from triptych.gateway.settings import GatewaySettings
from triptych.remote import make_client


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = tmp_path / "topology.toml"
    path.write_text(model_table())
    monkeypatch.setattr(topology, "make_client", lambda **_: make_client(transport=Panels()))
    with served(topology.remote_gateway(GatewaySettings(topology=path, admin_token="admin-secret"))) as address:
        yield address


def test_there_and_back(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_ADMIN_TOKEN", "admin-secret")
    monkeypatch.setenv("TRIPTYCH_URL", url)
    ended = run("swap", "diffusion", "--to", at(NEXT))
    assert ended.code == 0
    assert f"new: diffusion from {at(DIFFUSION)} to {at(NEXT)}" in ended.out.splitlines()
    with Client(url) as client:
        assert client.generate("x").model == "new"
    ended = run("swap", "diffusion", "--rollback", "--model", "new")
    assert ended.code == 0
    assert f"old: diffusion from {at(NEXT)} to {at(DIFFUSION)}" in ended.out.splitlines()


def test_a_refusal_is_one_sentence(run: Run, url: str) -> None:
    told = ("--gateway", url, "--admin-token", "admin-secret")
    ended = run("swap", "diffusion", "--to", at(DIFFUSION), *told)
    assert (ended.code, ended.err) == (1, f"error: the diffusion is at {at(DIFFUSION)} already\n")
    ended = run("swap", "diffusion", "--to", at(NEXT), "--gateway", url)
    assert (ended.code, ended.err) == (1, "error: send a token of this service as Authorization: Bearer\n")


@pytest.mark.parametrize("options", [(), ("--rollback", "--to", "http://a")])
def test_where_to_or_back_but_one_of_them(run: Run, options: tuple[str, ...]) -> None:
    ended = run("swap", "diffusion", *options)
    assert (ended.code, "--to, or --rollback" in ended.err) == (1, True)


def test_the_image_encoders_place_may_be_the_decoders(run: Run, url: str) -> None:
    told = ("--gateway", url, "--admin-token", "admin-secret")
    ended = run("swap", "image_encoder", "--to", at(8003), *told)
    assert f"old: image_encoder from its decoder's place to {at(8003)}" in ended.out.splitlines()


def test_the_gateway_of_up_follows_a_file() -> None:
    *stages, gateway = four_services((1, 2, 3, 4), topology=Path("there.toml"))
    assert gateway.environment["TRIPTYCH_TOPOLOGY"] == "there.toml"
    assert not any("TRIPTYCH_TOPOLOGY" in stage.environment for stage in stages)
    assert "TRIPTYCH_TOPOLOGY" not in four_services((1, 2, 3, 4))[-1].environment
