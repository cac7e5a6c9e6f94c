"""The HTTP client that all remote stages of a process share."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx2

from triptych.errors import StartError

# A connection that the server is about to close must not be used again: uvicorn closes idle ones after 5 s by default.
KEEPALIVE_SECONDS = 4.0
CONNECT_TIMEOUT_SECONDS = 3.0
READ_TIMEOUT_SECONDS = 600.0
MAX_CONNECTIONS = 256


def make_client(*, transport: httpx2.AsyncBaseTransport | None = None, ca_file: Path | None = None) -> httpx2.AsyncClient:
    """A client for stages on this machine or in this cluster: many connections at once, long answers, no proxies.

    Args:
        transport: What carries the requests instead of the network; the seam for tests.
        ca_file: Certificates, as PEM, of who vouches for stages at https; None is what this machine trusts.

    Raises:
        StartError: The file has no certificates.
    """
    return httpx2.AsyncClient(
        transport=transport,
        verify=True if ca_file is None else _trusting(ca_file),
        timeout=httpx2.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        limits=httpx2.Limits(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_SECONDS,
        ),
        # An http_proxy of the environment is meant for the world outside, not for the stage next door.
        trust_env=False,
    )


def _trusting(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # of which ssl.SSLError is one
        raise StartError(f"{ca_file} has no certificates that can be read: {error}") from None
