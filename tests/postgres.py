"""A PostgreSQL server of a test's own: Debian's package `postgresql`, in a temporary folder, on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych.cli.processes import free_ports

USER = "postgres"
"""Who runs it where the test runs as root, which PostgreSQL refuses to be."""


def programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, the newest version's; None where there is no PostgreSQL."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


def is_there() -> bool:
    return programs() is not None


def skip_where_it_is_missing() -> None:
    """Not where everything is checked: there a database that could not be installed is a failure."""
    if not is_there() and "CI" not in os.environ:
        pytest.skip("there is no PostgreSQL: Debian's package postgresql has it")


class Server:
    """A server that runs.

    Attributes:
        url: Of its one database, as `TRIPTYCH_JOBS_DATABASE` wants it.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        self._folder = folder
        self._port = port

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._run("pg_ctl", "--wait", "--pgdata", self._data, "--log", str(self._folder / "log"), "--options", options, "start")

    def stop(self, *, mode: str = "fast") -> None:
        """`immediate` is how a crash looks to those who are connected."""
        self._run("pg_ctl", "--wait", "--pgdata", self._data, "--mode", mode, "stop")

    def create(self) -> None:
        self._run("initdb", "--pgdata", self._data, "--auth", "trust", "--username", USER, "--encoding", "UTF8")

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        folder = programs()
        assert folder is not None
        subprocess.run(
            [folder / program, *arguments],
            user=USER if os.geteuid() == 0 else None,
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """A server with one empty database, for the length of the block."""
    # Not a test's own temporary folder: above that are folders that another user may not enter.
    with tempfile.TemporaryDirectory(prefix="triptych-postgres-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        (port,) = free_ports(1)
        server = Server(folder, port)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop(mode="immediate")
