"""Pages of other sites: none may read an answer, unless it is listed."""

from __future__ import annotations

import pytest

from tests.gateway.running import Stages
from triptych.errors import StartError
from triptych.gateway.settings import GatewaySettings
from triptych.serving.settings import read_settings

PAGE = "https://pictures.example.org"
ASKING = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


async def test_by_default_no_page_of_another_site_is_let_in() -> None:
    async with Stages().client() as client:
        asked = await client.options("/generate", headers=ASKING)
        answer = await client.post("/generate", json={"prompt": "x"}, headers={"Origin": PAGE})
    assert asked.status_code == 405
    assert [name for response in (asked, answer) for name in response.headers if name.startswith("access-control")] == []


async def test_a_page_that_is_listed_may_send_a_key_and_read_the_answer() -> None:
    async with Stages().client(cors_origins=("https://other.example.org", PAGE), api_keys="secret") as client:
        asked = await client.options("/generate", headers=ASKING)
        answer = await client.post("/generate", json={"prompt": "x"}, headers={"Origin": PAGE, "Authorization": "Bearer secret"})
    assert (asked.status_code, answer.status_code) == (200, 200)
    for response in (asked, answer):
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert "Access-Control-Allow-Credentials" not in response.headers
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


async def test_another_page_is_not_let_in_by_that() -> None:
    async with Stages().client(cors_origins=(PAGE,)) as client:
        asked = await client.options("/generate", headers=ASKING | {"Origin": "https://evil.example.org"})
        answer = await client.post("/generate", json={"prompt": "x"}, headers={"Origin": "https://evil.example.org"})
    assert asked.status_code == 400
    assert [name for name in answer.headers if name == "access-control-allow-origin"] == []


def test_origins_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CORS_ORIGINS", f"{PAGE}, http://localhost:3000")
    assert read_settings(GatewaySettings).cors_origins == (PAGE, "http://localhost:3000")


@pytest.mark.parametrize("origin", ["*", "null", "example.org", "https://example.org/", "https://example.org/x", "file://x"])
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("TRIPTYCH_CORS_ORIGINS", origin)
    with pytest.raises(StartError, match="TRIPTYCH_CORS_ORIGINS: an origin is a scheme and a host"):
        read_settings(GatewaySettings)
