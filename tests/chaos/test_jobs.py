"""The short form of `jobs.py`: few jobs, some kills, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.jobs import fleet, with_a_gateway_that_dies, with_kills
from tests.postgres import postgres, skip_where_it_is_missing

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def postgresql() -> Iterator[str]:
    skip_where_it_is_missing()
    with postgres() as server:
        yield server.url


def test_on_sqlite_whatever_is_killed_all_jobs_complete(tmp_path: Path) -> None:
    with fleet(tmp_path, str(tmp_path / "jobs.sqlite3"), gateways=1, seconds=0.02, lease_seconds=1.0) as running:
        print(with_kills(running, 12, num_steps=80, every=0.5, seed=1, seconds=200))  # noqa: T201
    assert running.stored, "no gateway was killed"


def test_on_postgresql_another_gateway_takes_over(tmp_path: Path, postgresql: str) -> None:
    with fleet(tmp_path, postgresql, gateways=2, seconds=0.02, lease_seconds=1.0) as running:
        print(with_a_gateway_that_dies(running, 12, num_steps=60, seconds=200))  # noqa: T201
