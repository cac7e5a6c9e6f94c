"""Who may come in: `Authorization: Bearer`, and nobody from elsewhere where no token is set."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from fastapi import Request

from triptych.errors import Forbidden, Unauthenticated
from triptych.serving.settings import ServerSettings

Guard: TypeAlias = Callable[[Request], Awaitable[None]]


def make_guard(settings: ServerSettings) -> Guard:
    """A dependency that lets a request pass or refuses it, before its body is read.

    Raises (the dependency, not this function):
        Unauthenticated: The request has none of the tokens.
        Forbidden: There is no token to have, and the request came by an address that other machines can reach.
    """
    tokens = [token.encode("ascii") for token in settings.demanded_tokens()]

    async def guard(request: Request) -> None:
        if tokens:
            check_token(request, tokens)
        elif not settings.insecure:
            _check_address(request, settings)

    return guard


def check_token(request: Request, tokens: list[bytes]) -> None:
    """Raises Unauthenticated where the request has none of the tokens."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    sent = token.strip().encode("latin-1")
    # All of them, each in constant time: how long this takes says nothing about how near a guess came.
    matches = [hmac.compare_digest(sent, token) for token in tokens]
    if scheme.lower() != "bearer" or not any(matches):
        raise Unauthenticated("send a token of this service as Authorization: Bearer")


def _check_address(request: Request, settings: ServerSettings) -> None:
    """The settings refuse an open door already; this is for a server that was told another host than the settings were."""
    server = request.scope.get("server")
    if server and not is_this_machine(server[0]):
        raise Forbidden(
            f"this service has no token, so it answers its own machine only: set {settings.token_variable()}, "
            "or TRIPTYCH_INSECURE=true to serve everybody"
        )


def is_this_machine(host: str) -> bool:
    """Whether a socket's address is one that only this machine can reach."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # A socket's own address is a number; a path or a name never came over a network.
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
