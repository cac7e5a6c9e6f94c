"""Names that stand for several addresses: each address is a replica of its own, and which there are may change."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

import httpx2
import structlog

RESOLVE_AGAIN_SECONDS = 5.0
LOOK_UP_SECONDS = 1.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def look_up(host: str, port: int) -> tuple[str, ...]:
    """The IP addresses of a name, sorted: of IPv4 where there are any, else of IPv6. Raises OSError where it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family = {family: {str(address[0]) for each, _, _, _, address in found if each == family} for family, *_ in found}
    return tuple(sorted(by_family.get(socket.AF_INET) or by_family.get(socket.AF_INET6) or ()))


class Names(Generic[T]):
    """The stages behind some addresses, one for each IP address that a name stands for.

    Args:
        urls: Addresses, by what errors may show of them.
        make: Makes a stage of an address and an IP address; of the address alone, where its name stands for one or for itself.
        look_up: What asks for names; a test brings its own.
    """

    def __init__(
        self,
        urls: Mapping[str, str],
        make: Callable[[str, str | None], T],
        *,
        look_up: Callable[[str, int], Awaitable[Sequence[str]]] = look_up,
    ) -> None:
        self._urls = urls
        self._make = make
        self._look_up = look_up
        self._resolved_at = float("-inf")
        self._ips: dict[str, Sequence[str]] = {}
        self.stages: Mapping[str, T] = {shown: make(url, None) for shown, url in urls.items()}

    @property
    def are_fixed(self) -> bool:
        """Whether none of them is a name."""
        return all(_is_ip(httpx2.URL(url).host) for url in self._urls.values())

    async def resolve(self) -> Mapping[str, T]:
        """The stages as of now, by what errors may show. A name that cannot be looked up stands for what it stood for."""
        if time.monotonic() - self._resolved_at >= RESOLVE_AGAIN_SECONDS:
            self._resolved_at = time.monotonic()
            for shown, url in self._urls.items():
                await self._look_up_again(shown, httpx2.URL(url))
            places = [place for shown in self._urls for place in self._places(shown)]
            known = self.stages
            self.stages = {name: known[name] if name in known else self._make(url, ip) for name, url, ip in places}
        return self.stages

    async def _look_up_again(self, shown: str, url: httpx2.URL) -> None:
        if _is_ip(url.host):
            return
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                self._ips[shown] = await self._look_up(url.host, url.port or (443 if url.scheme == "https" else 80))
        except (TimeoutError, OSError) as error:
            log.warning("name_not_found", address=shown, reason=str(error) or "no answer in time")

    def _places(self, shown: str) -> list[tuple[str, str, str | None]]:
        url, ips = self._urls[shown], self._ips.get(shown, ())
        if len(ips) < 2:
            return [(shown, url, None)]
        return [(f"{shown} ({ip})", url, ip) for ip in ips]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
