"""A name that stands for several addresses is several replicas, and other ones when it stands for others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx2
import pytest

from tests.fakes import TEXT_ENCODER, FakeTextEncoder
from tests.gateway.running import until
from triptych.contract import EncodeRequest, StageName
from triptych.remote import Names, RemoteTextEncoder, ReplicatedTextEncoder, make_client, names
from triptych.remote.replicas import Replicas
from triptych.wire import text_encoder

URL = "http://encoder.internal:8001"


class Zone:
    """What a name stands for; None where nobody says."""

    def __init__(self, *ips: str) -> None:
        self.ips: Sequence[str] | None = ips

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("encoder.internal", 8001)
        if self.ips is None:
            raise OSError("no such name")
        return self.ips


@pytest.fixture(autouse=True)
def resolved_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "RESOLVE_AGAIN_SECONDS", 0.0)


def of(zone: Zone, url: str = URL) -> Names[tuple[str, str | None]]:
    return Names({url: url}, lambda url, ip: (url, ip), look_up=zone)


async def test_one_address_is_left_to_the_client() -> None:
    assert await of(Zone("10.0.0.1")).resolve() == {URL: (URL, None)}


async def test_several_are_replicas_of_their_own() -> None:
    expected = {f"{URL} (10.0.0.{host})": (URL, f"10.0.0.{host}") for host in (1, 2)}
    assert await of(Zone("10.0.0.1", "10.0.0.2")).resolve() == expected


async def test_those_that_stay_are_the_same_and_others_come_and_go() -> None:
    zone = Zone("10.0.0.1", "10.0.0.2")
    stages = Names({URL: URL}, lambda url, ip: FakeTextEncoder(), look_up=zone)
    first, _ = (await stages.resolve()).values()
    zone.ips = ("10.0.0.1", "10.0.0.3")
    assert list(await stages.resolve()) == [f"{URL} (10.0.0.1)", f"{URL} (10.0.0.3)"]
    assert first is next(iter(stages.stages.values()))


async def test_a_name_that_nobody_knows_stands_for_what_it_stood_for(monkeypatch: pytest.MonkeyPatch) -> None:
    zone = Zone("10.0.0.1", "10.0.0.2")
    stages = of(zone)
    before = await stages.resolve()
    zone.ips = None
    assert await stages.resolve() == before

    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(names, "LOOK_UP_SECONDS", 0.01)
    assert await Names({URL: URL}, lambda url, ip: (url, ip), look_up=never).resolve() == {URL: (URL, None)}


async def test_it_is_not_asked_for_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "RESOLVE_AGAIN_SECONDS", 1000.0)
    zone = Zone("10.0.0.1", "10.0.0.2")
    stages = of(zone)
    before = await stages.resolve()
    zone.ips = ("10.0.0.9",)
    assert await stages.resolve() == before


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_an_address_is_no_name(host: str) -> None:
    assert of(Zone(), f"http://{host}:8001").are_fixed
    assert not of(Zone()).are_fixed


async def test_the_operating_systems_names() -> None:
    assert await names.look_up("localhost", 80) in (("127.0.0.1",), ("::1",))


async def test_replicas_follow_a_name_and_the_request_still_names_it() -> None:
    asked: list[tuple[str, str, object]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append((request.url.host, request.headers["Host"], request.extensions.get("sni_hostname")))
        return httpx2.Response(200, json=text_encoder.to_metadata(TEXT_ENCODER).to_json())

    zone = Zone("10.0.0.1", "10.0.0.2")
    client = make_client(transport=httpx2.MockTransport(answer))
    stages = Names({URL: URL}, lambda url, ip: RemoteTextEncoder(url, client=client, ip=ip), look_up=zone)
    replicated = ReplicatedTextEncoder(stages.stages, resolve=stages.resolve)
    await replicated.identity()
    assert sorted(asked) == [(f"10.0.0.{host}", "encoder.internal:8001", "encoder.internal") for host in (1, 2)]
    assert [replica.address for replica in replicated.replicas] == [f"{URL} (10.0.0.1)", f"{URL} (10.0.0.2)"]


async def test_what_runs_at_an_address_that_goes_runs_on() -> None:
    zone = Zone("10.0.0.1", "10.0.0.2")
    gate = asyncio.Event()
    stages = Names({URL: URL}, lambda url, ip: FakeTextEncoder(gate=gate), look_up=zone)
    replicas = Replicas(StageName.TEXT_ENCODER, stages.stages, resolve=stages.resolve)
    await replicas.identity()
    request = EncodeRequest(prompts=("x",))
    encoding = asyncio.create_task(replicas.call(lambda stage: stage.encode(request), rows=1, deadline=None))
    await until(lambda: any(stage.asked for stage in stages.stages.values()))
    zone.ips = ("10.0.0.3", "10.0.0.4")
    await replicas.identity()
    gate.set()
    assert len((await encoding).context) == 1
