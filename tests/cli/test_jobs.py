"""`triptych jobs` against a gateway in this process, in front of fake stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.gateway.running import Stages
from tests.gateway.served import served


@pytest.fixture(autouse=True)
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with served(Stages().app()) as address:
        monkeypatch.setenv("TRIPTYCH_URL", address)
        yield address


@pytest.fixture
def job(run: Run) -> str:
    ended = run("jobs", "submit", "a red circle", "--seed", 7, "--id-only", "--wait", "--output", "first.webp")
    assert ended.code == 0
    (line,) = ours(ended.out)
    return line


def ours(out: str) -> list[str]:
    """Without the gateway's log, which goes to the same place here."""
    return [line for line in out.splitlines() if not line.startswith("20") or "[info" not in line]


def test_submitted_and_waited_for(run: Run, job: str) -> None:
    assert len(job) == 32
    assert Path("first.webp").read_bytes()[8:12] == b"WEBP"
    ended = run("jobs", "submit", "a red circle", "--seed", 7, "--num-images", 2, "--wait", "-o", "two.png")
    first, *files = ours(ended.out)
    assert f"`triptych jobs get --wait {first.split()[1].removesuffix(';')}` fetches it" in first
    assert files == ["two-0.png (seed 7)", "two-1.png (seed 8)"]


def test_listed_described_fetched_and_removed(run: Run, job: str) -> None:
    (row,) = ours(run("jobs", "list").out)
    assert row.split("\t")[:3] == [job, "completed", "-"]
    (told,) = json.loads("\n".join(ours(run("jobs", "list", "--json").out)))
    assert told["id"] == job

    rows = dict(line.split("\t") for line in ours(run("jobs", "describe", job).out))
    assert (rows["status"], rows["seed"], rows["image"]) == ("completed", "7", f"/jobs/{job}/images/0")
    assert json.loads("\n".join(ours(run("jobs", "describe", job, "--json").out)))["result"]["parameters"]["seed"] == 7

    ended = run("jobs", "get", job)
    assert (ended.code, ours(ended.out)) == (0, [f"{job}.webp (seed 7)"])
    assert Path(f"{job}.webp").read_bytes() == Path("first.webp").read_bytes()

    assert run("jobs", "cancel", job).code == 0
    ended = run("jobs", "get", "--wait", job)
    assert (ended.code, ended.err) == (1, f"error: there is no job '{job}'\n")


def test_a_job_that_failed_is_one_sentence(run: Run) -> None:
    ended = run("jobs", "submit", "word " * 100, "--wait")
    assert ended.code == 1
    assert "is failed: the prompt has 100 tokens" in ended.err
    job = ended.err.splitlines()[-1].split()[2]
    rows = dict(line.split("\t") for line in ours(run("jobs", "describe", job).out))
    assert rows["error"].startswith("the prompt has 100 tokens")
    ended = run("jobs", "get", job)
    assert (ended.code, ended.err) == (1, "error: the job has no pictures: it is failed\n")


def test_a_refusal_is_one_sentence(run: Run) -> None:
    assert run("jobs", "submit", "x", "--steps", 0).err == "error: num_steps must be a whole number from 1 to 150, not 0\n"
    assert "must end in .png" in run("jobs", "submit", "x", "--output", "x.bmp").err
    for number, code in (("1", 0), ("2", 1)):
        ended = run("jobs", "submit", "x", "--seed", number, "--idempotency-key", "mine")
        assert ended.code == code
    assert "another request came with this Idempotency-Key" in ended.err
