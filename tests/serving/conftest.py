from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
import structlog
from starlette.types import ASGIApp

Connect = Callable[[ASGIApp], httpx2.AsyncClient]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Clients of apps in this process. Their lifespans do not run: fakes are ready as they are."""
    async with AsyncExitStack() as stack:
        clients: list[httpx2.AsyncClient] = []

        def connect(app: ASGIApp) -> httpx2.AsyncClient:
            clients.append(httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://service"))
            stack.push_async_callback(clients[-1].aclose)
            return clients[-1]

        yield connect


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What was logged, instead of showing it."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as entries:
        yield entries
