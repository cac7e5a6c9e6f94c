from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
import schemathesis
from schemathesis.openapi.checks import UndefinedStatusCode

from tests.fuzz.gateway import running
from tests.fuzz.openapi import choose, operations, try_operation

CASES = 20


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as gateway:
        yield gateway.address


def test_every_operation_of_the_document_is_tried_and_none_fails(address: str) -> None:
    found = operations(address)
    assert {"POST /generate", "GET /models", "DELETE /requests/{request_name}", "POST /admin/swap"} <= set(found)
    for operation in found.values():
        try_operation(operation, CASES)


def test_some_operations_can_be_tried_alone(address: str) -> None:
    found = operations(address)
    names = ["GET /samplers", "GET /models", "GET /replicas", "POST /admin/swap", "GET /jobs/{job_id}/events"]
    assert sorted(choose(found, names)) == sorted(names)
    assert choose(found, []) == found
    with pytest.raises(SystemExit, match=r"there is no GET /model; there are .*GET /models"):
        choose(found, ["GET /models", "GET /model"])


def test_an_answer_that_the_document_does_not_know_is_found(address: str) -> None:
    document = httpx2.get(f"{address}/openapi.json").json()
    del document["paths"]["/models"]["get"]["responses"]["200"]
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=address)
    with pytest.raises(BaseExceptionGroup) as found:
        try_operation(schema["/models"]["GET"], 2)
    assert found.group_contains(UndefinedStatusCode)
