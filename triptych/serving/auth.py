"""Who may come in: `Authorization: Bearer`, and nobody from elsewhere where no key is set; and how often."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from fastapi import Request

from triptych.errors import Forbidden, Unauthenticated
from triptych.serving.keys import Key, find_key
from triptych.serving.rate_limit import RateLimit
from triptych.serving.settings import ServerSettings

Guard: TypeAlias = Callable[[Request], Awaitable[None]]

READS = ("GET", "HEAD", "OPTIONS", "DELETE")
"""Methods that ask for no work, and are not counted: who waits for a picture asks often whether it is done."""


def make_guard(settings: ServerSettings) -> Guard:
    """A dependency that lets a request pass or refuses it, before its body is read.

    Raises (the dependency, not this function):
        Unauthenticated: The request has none of the keys.
        Forbidden: There is no key to have, and the request came by an address that other machines can reach.
        RateLimited: Its key has asked too often. Where there are no keys, all callers count as one.
    """
    keys = settings.demanded_keys()
    limit = None if settings.rate_limit is None else RateLimit(settings.rate_limit)

    async def guard(request: Request) -> None:
        if keys:
            request.state.key_name = check_key(request, keys).name
        elif not settings.insecure:
            _check_address(request, settings)
        if limit is not None and request.method not in READS:
            limit.count(key_name(request))

    return guard


def check_key(request: Request, keys: Sequence[Key]) -> Key:
    """The key that a request has. Raises Unauthenticated where it is none of these."""
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    key = find_key(keys, sent.strip().encode("latin-1"))
    if scheme.lower() != "bearer" or key is None:
        raise Unauthenticated("send a token of this service as Authorization: Bearer")
    return key


def key_name(request: Request) -> str:
    """What the key of a request that was let in is called; empty where none was demanded."""
    name: str = getattr(request.state, "key_name", "")
    return name


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
