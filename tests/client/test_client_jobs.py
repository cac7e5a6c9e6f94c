"""Jobs as `triptych.client` sees them, at a gateway on a real socket in front of fake stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.gateway.running import Stages
from tests.gateway.served import served
from triptych.client import Client
from triptych.errors import Conflict, JobsNotReady, NotFound, StageFailed, TriptychError


@pytest.fixture
def stages() -> Stages:
    return Stages()


@pytest.fixture
def client(stages: Stages) -> Iterator[Client]:
    with served(stages.app(jobs_retention_seconds=3600)) as address, Client(address, timeout_seconds=20) as client:
        yield client


def test_from_a_prompt_to_pictures(client: Client) -> None:
    at_once = client.generate("a red circle", seed=7, num_images=2)
    job = client.submit("a red circle", seed=7, num_images=2)
    told: list[Any] = []

    ended = client.wait(job, on_change=told.append)

    assert ended == told[-1] == client.job(job)
    assert client.fetch(job) == at_once.pictures
    assert [each["id"] for each in client.jobs()] == [job]
    client.cancel_job(job)
    with pytest.raises(NotFound, match="there is no job"):
        client.job(job)
    with pytest.raises(NotFound):
        client.cancel_job("../models")
    assert client.jobs() == []


def test_the_same_key_is_the_same_job(client: Client) -> None:
    job = client.submit("x", idempotency_key="mine")
    assert client.submit("x", idempotency_key="mine") == job
    with pytest.raises(Conflict, match="another request came with this Idempotency-Key"):
        client.submit("y", idempotency_key="mine")


def test_a_job_without_pictures_has_none_to_fetch(client: Client, stages: Stages) -> None:
    job = client.submit("x " * 100)
    assert client.wait(job)["status"] == "failed"
    with pytest.raises(Conflict, match="the job has no pictures: it is failed"):
        client.fetch(job)


def test_waiting_ends(client: Client, stages: Stages) -> None:
    stages.decoder.failure = StageFailed("nonsense", stage="decoder")
    client._timeout_seconds = 0.3
    with pytest.raises(TriptychError, match="has not ended in"):
        client.wait(client.submit("x"))


@pytest.mark.parametrize("failure", [httpx2.ConnectError("refused"), JobsNotReady("gone")])
def test_a_gateway_that_is_gone_is_waited_for(failure: Exception) -> None:
    answers: list[Any] = [failure, failure, {"ended": None}, failure, {"ended": "now"}]

    def answer(request: httpx2.Request) -> httpx2.Response:
        match answers.pop(0):
            case JobsNotReady() as error:
                body = {"message": error.message, "type": error.type, "param": None, "code": error.code}
                return httpx2.Response(503, json={"error": body})
            case Exception() as error:
                raise error
            case document:
                return httpx2.Response(200, json=document)

    with Client(transport=httpx2.MockTransport(answer), timeout_seconds=20) as client:
        assert client.wait("a") == {"ended": "now"}
        answers[:] = [failure, failure]
        client._timeout_seconds = 0
        with pytest.raises(TriptychError):
            client.wait("a")
