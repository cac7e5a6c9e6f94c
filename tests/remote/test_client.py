from __future__ import annotations

import httpx2
import pytest

from triptych.remote.client import KEEPALIVE_SECONDS, make_client


async def test_a_proxy_of_the_environment_is_not_for_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    monkeypatch.setenv("ALL_PROXY", "http://proxy.invalid:1")
    async with make_client() as client:
        assert client._mounts == {}
    # The same look at a client that does heed the environment finds the proxy.
    async with httpx2.AsyncClient() as client:
        assert client._mounts != {}


async def test_connections_and_time_suffice() -> None:
    async with make_client() as client:
        pool = client._transport._pool  # type: ignore[attr-defined]
        assert pool._max_connections == pool._max_keepalive_connections == 256
        assert pool._keepalive_expiry == KEEPALIVE_SECONDS < 5
        assert client.timeout == httpx2.Timeout(600, connect=3)
