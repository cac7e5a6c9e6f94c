"""The short form of `tests/chaos/overload.py`: what does not hang on the speed of the machine."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest

from tests.chaos.overload import Answer, Phase, callers, client_of, judge
from tests.end_to_end.real_services import TinyModel, four_tiny_services, running
from tests.shared_folder import shared_folder
from tests.tiny_models import write_tiny_model
from triptych.cli.processes import Service

pytestmark = pytest.mark.timeout(600)

RUNNING, WAITING = 2, 3
SECONDS = 10.0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With few places, in front of three stages."""
    model = TinyModel(write_tiny_model(tmp_path_factory.mktemp("model")), shared_folder() / "networks")
    few = {"TRIPTYCH_MAX_RUNNING_REQUESTS": str(RUNNING), "TRIPTYCH_MAX_WAITING_REQUESTS": str(WAITING)}
    *stages, gateway = four_tiny_services(model)
    gateway = replace(gateway, environment={**gateway.environment, **few})
    with running((*stages, gateway)):
        yield gateway


async def test_ten_times_the_callers_are_served_or_sent_away_and_nobody_else_waits(gateway: Service) -> None:
    async with client_of(gateway.url) as client:
        most: Counter[str] = Counter()
        load = asyncio.create_task(
            callers(client, {"prompt": "x", "num_steps": 20}, number=10 * (RUNNING + WAITING), seconds=SECONDS)
        )
        while not load.done():
            most |= await places_taken(client)
            await asyncio.sleep(0.05)
        answers = await load

        assert {answer.status for answer in answers} == {200, 429}
        assert all((answer.retry_after is not None) == (answer.status == 429) for answer in answers)
        assert all(answer.retry_after >= 1 for answer in answers if answer.retry_after is not None)
        assert (most["running"], most["waiting"]) == (RUNNING, WAITING)
        assert (await places_taken(client)) == Counter()


async def places_taken(client: httpx2.AsyncClient) -> Counter[str]:
    """Of the gateway, those that are not zero."""
    metrics = (await client.get("/metrics")).text
    taken = dict(re.findall(r"^triptych_generations_(running|waiting) (\d+)", metrics, flags=re.MULTILINE))
    return +Counter({name: int(number) for name, number in taken.items()})


# The judge itself


def answered(status: int, ended: float, *, seconds: float = 1.0, retry_after: float | None = None) -> Answer:
    return Answer(status=status, sent=ended - seconds, ended=ended, retry_after=retry_after)


def test_what_is_kept_is_not_named() -> None:
    made = [answered(200, float(second)) for second in range(10)]
    phase = Phase(answers=[*made, answered(429, 2.1, retry_after=1.0)], memory={"central": 100})
    assert judge(phase, phase) == []
    assert phase.rate == 1.0


def test_each_promise_that_is_broken_is_named() -> None:
    made = [answered(200, float(second)) for second in range(10)]
    capacity = Phase(answers=made, memory={"central": 100, "decoder": 100})
    slow = [replace(answer, sent=answer.ended - 2) for answer in made]
    refused = [answered(429, 2.1, retry_after=0.4), answered(429, 2.1, retry_after=3.0), answered(503, 3.0)]
    overload = Phase(answers=[*slow, *refused], memory={"central": 120, "decoder": 109})
    assert judge(capacity, overload) == [
        "1 answers were 503",
        "p95 is 2.00 times that at capacity",
        "central has 1.20 times the memory",
        "0% of the Retry-After are right",
    ]


def test_a_refusal_after_which_nothing_was_done_is_not_judged() -> None:
    assert Phase(answers=[answered(200, 1.0), answered(429, 2.0, retry_after=1.0)], memory={}).share_right == 1.0
