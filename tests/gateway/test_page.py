"""The page as it is sent: who may run what in it, and that it holds everything it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from tests.gateway.running import Stages
from triptych.gateway.static import MEDIA_TYPES, page_files

FILES = sorted(page_files())
ADDRESSES = {name: "/" if name == "index.html" else f"/page/{name}" for name in FILES}

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
}
NAMESPACE = "http://www.w3.org/2000/svg"
"""A name that SVG is known by; nothing is fetched from it."""


def policy_of(headers: Mapping[str, str]) -> dict[str, str]:
    directives = (each.strip().partition(" ") for each in headers["Content-Security-Policy"].split(";"))
    return {name: value for name, _, value in directives}


def outside_addresses(text: str) -> list[str]:
    """Whatever a browser could take for an address on another host."""
    return re.findall(r"(?:\b[a-z]+:)?//[\w.-]+", text.replace(NAMESPACE, ""))


def inline_code(html: str) -> list[str]:
    """Scripts, styles and handlers that stand in the markup itself, where the policy forbids them."""
    return re.findall(r"<script(?![^>]*\bsrc=)[^>]*>|<style\b|\son\w+=|\sstyle=|javascript:", html)


def test_the_page_is_made_of_more_than_one_file() -> None:
    assert {"index.html", "style.css", "page.js", "icon.svg"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
class TestEachFile:
    async def test_is_sent_with_its_type_and_a_strict_policy(self, name: str) -> None:
        async with Stages().client() as client:
            response = await client.get(ADDRESSES[name])
        assert response.status_code == 200
        assert response.headers["Content-Type"] == MEDIA_TYPES[name.rpartition(".")[2]]
        assert policy_of(response.headers) == POLICY
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.content == page_files()[name].content

    async def test_is_sent_once_to_a_browser_that_keeps_it(self, name: str) -> None:
        async with Stages().client() as client:
            etag = (await client.get(ADDRESSES[name])).headers["ETag"]
            again = await client.get(ADDRESSES[name], headers={"If-None-Match": f'"older", W/{etag}'})
            changed = await client.get(ADDRESSES[name], headers={"If-None-Match": '"older"'})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
        assert policy_of(again.headers) == POLICY
        assert changed.status_code == 200

    async def test_needs_no_key(self, name: str) -> None:
        async with Stages().client(api_keys="secret") as client:
            assert (await client.get(ADDRESSES[name])).status_code == 200
            assert (await client.get("/models")).status_code == 401

    def test_names_no_outside_address(self, name: str) -> None:
        assert outside_addresses(page_files()[name].content.decode()) == []

    async def test_answers_head(self, name: str) -> None:
        async with Stages().client() as client:
            response = await client.head(ADDRESSES[name])
        assert response.status_code == 200
        assert response.headers["ETag"] == page_files()[name].headers["ETag"]


def test_etags_differ() -> None:
    assert len({file.headers["ETag"] for file in page_files().values()}) == len(FILES)


def test_the_markup_has_no_code_of_its_own() -> None:
    assert inline_code(page_files()["index.html"].content.decode()) == []


def test_no_script_writes_markup() -> None:
    scripts = [name for name in FILES if name.endswith(".js")]
    sinks = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(.style")
    assert [(name, found) for name in scripts for found in sinks.findall(page_files()[name].content.decode())] == []


def test_every_file_that_is_named_is_there() -> None:
    html = page_files()["index.html"].content.decode()
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', html))
    for name in FILES:
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', page_files()[name].content.decode()))
    assert named == set(FILES) - {"index.html"}


async def test_what_is_no_file_of_the_page_is_not_found() -> None:
    async with Stages().client() as client:
        for path in ("/page/nothing.js", "/page/..%2fapp.py", "/page/"):
            assert (await client.get(path)).status_code == 404


async def test_the_page_is_no_part_of_the_documented_interface() -> None:
    async with Stages().client() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert "/generate" in paths
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<script src="https://cdn.example/x.js">', ["https://cdn.example"]),
        ('fetch("//cdn.example/x")', ["//cdn.example"]),
        ("url(http://fonts.example/a.woff2)", ["http://fonts.example"]),
        ("// a comment, and a/b/c", []),
    ],
)
def test_an_outside_address_is_seen(text: str, found: list[str]) -> None:
    assert outside_addresses(text) == found


@pytest.mark.parametrize("html", ["<script>1</script>", "<p onclick='x()'>", '<p style="color: red">', "<style>p {}</style>"])
def test_code_in_the_markup_is_seen(html: str) -> None:
    assert inline_code(html)
