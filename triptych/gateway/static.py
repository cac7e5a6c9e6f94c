"""`GET /`: the page that people make pictures on. Files of the package, served as they are, to everybody: they hold no secret."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from triptych.errors import NotFound
from triptych.wire.open_inference import quoted

INDEX = "index.html"
MEDIA_TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS: Mapping[str, str] = {
    # Nothing but these files runs or is shown, and nothing but this gateway is spoken to. Pictures come as events: blob:.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept by browsers, and asked about by its ETag each time: a new version is seen at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """One file, as it is sent."""

    content: bytes
    headers: Mapping[str, str]

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has it already."""
        known = request.headers.get("If-None-Match", "")
        # A proxy that compresses makes an ETag weak; it still names these bytes.
        if self.headers["ETag"] in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            return Response(
                status_code=304, headers={name: value for name, value in self.headers.items() if name != "Content-Type"}
            )
        return Response(self.content, headers=self.headers)


def page_files() -> Mapping[str, PageFile]:
    """All files of the page by name, read once."""
    folder = files("triptych.gateway").joinpath("page")
    found = (entry for entry in folder.iterdir() if _suffix(entry.name) in MEDIA_TYPES)
    return {entry.name: _page_file(entry.name, entry.read_bytes()) for entry in found}


def _page_file(name: str, content: bytes) -> PageFile:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content=content, headers={**HEADERS, "Content-Type": MEDIA_TYPES[_suffix(name)], "ETag": etag})


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


def make_router() -> APIRouter:
    """`/` and the files that it names, for GET and HEAD."""
    router = APIRouter(include_in_schema=False)
    served = page_files()

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return served[INDEX].answer(request)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def file_of_the_page(name: str, request: Request) -> Response:
        if name not in served:
            raise NotFound(f"the page has no file {quoted(name)}")
        return served[name].answer(request)

    return router
