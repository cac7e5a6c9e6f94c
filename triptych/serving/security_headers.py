"""Headers that tell browsers what not to do with an answer: the strictest, unless whoever answers knows better."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Mapping[str, str] = {
    # An answer is data: nothing in it runs, loads anything or is shown inside another page.
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Pictures and what was asked for are the caller's: no cache between keeps them.
    "Cache-Control": "no-store",
}


class SecurityHeadersMiddleware:
    """Adds what is missing to every answer, errors too.

    Args:
        app: What is behind it.
        policies: For paths whose answers are pages, their own `Content-Security-Policy`.
    """

    def __init__(self, app: ASGIApp, policies: Mapping[str, str]) -> None:
        self._app = app
        self._policies = policies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if policy := self._policies.get(scope["path"]):
                    headers.setdefault("Content-Security-Policy", policy)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
