"""HTTPS between a gateway and its stages, with a certificate made here."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import trustme

from triptych.cli.topology import four_services
from triptych.contract import StageName
from triptych.errors import StageNotReady, StartError
from triptych.remote import make_client
from triptych.remote.connection import StageConnection
from triptych.serving.settings import StageSettings, read_settings


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority's certificate, and a certificate of this machine with its key."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(folder / "certificate.pem", append=True)
    trustme.CA().cert_pem.write_to_path(folder / "stranger.pem")
    return folder


@pytest.fixture(scope="module")
def address(certificates: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stage as a process, at https."""
    variables = {
        "TRIPTYCH_LOG_FORMAT": "json",
        "TRIPTYCH_TLS_CERTIFICATE": str(certificates / "certificate.pem"),
        "TRIPTYCH_TLS_KEY": str(certificates / "key.pem"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.serving.example_service"],
        cwd=root,
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            # Until it says where it is; a process that ended says nothing more, and nothing is found.
            yield next(found[0] for line in process.stderr if (found := re.search(r"https://127\.0\.0\.1:\d+", line)))
        finally:
            process.kill()


def connection(address: str, client: httpx2.AsyncClient) -> StageConnection:
    return StageConnection(StageName.TEXT_ENCODER, address, token=None, client=client)


async def test_who_knows_the_authority_is_answered(address: str, certificates: Path) -> None:
    async with make_client(ca_file=certificates / "authority.pem") as client:
        assert (await connection(address, client).metadata("text_encoder")).name == "text_encoder"


async def test_who_does_not_sends_nothing(address: str, certificates: Path) -> None:
    for ca_file in (None, certificates / "stranger.pem"):
        async with make_client(ca_file=ca_file) as client:
            with pytest.raises(StageNotReady, match="cannot be reached"):
                await connection(address, client).metadata("text_encoder")


async def test_a_certificate_is_for_its_own_name_only(address: str, certificates: Path) -> None:
    async with make_client(ca_file=certificates / "authority.pem") as client:
        with pytest.raises(StageNotReady):
            await connection(address.replace("127.0.0.1", "localhost"), client).metadata("text_encoder")


async def test_without_tls_nobody_is_answered(address: str) -> None:
    async with httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.HTTPError):
            await client.get(address.replace("https", "http"))


async def test_no_version_before_1_2_is_spoken(address: str, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=certificates / "authority.pem")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    async with httpx2.AsyncClient(verify=context) as client:
        assert (await client.get(f"{address}/v2/health/live")).status_code == 200
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    async with httpx2.AsyncClient(verify=context) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"{address}/v2/health/live")


def test_a_key_of_another_certificate_is_refused_at_the_start(certificates: Path) -> None:
    with pytest.raises(StartError, match="TRIPTYCH_TLS_CERTIFICATE and TRIPTYCH_TLS_KEY are not a certificate and its key"):
        read_settings(StageSettings, tls_certificate=certificates / "stranger.pem", tls_key=certificates / "key.pem")


def test_a_file_without_certificates_is_refused() -> None:
    with pytest.raises(StartError, match=r"test_tls\.py has no certificates that can be read"):
        make_client(ca_file=Path(__file__))


def test_services_that_are_started_together_say_that_they_speak_no_tls(
    monkeypatch: pytest.MonkeyPatch, certificates: Path
) -> None:
    monkeypatch.setenv("TRIPTYCH_TLS_CERTIFICATE", str(certificates / "certificate.pem"))
    with pytest.raises(StartError, match="unset TRIPTYCH_TLS_CERTIFICATE"):
        four_services((1, 2, 3, 4))
