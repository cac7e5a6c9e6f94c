"""Requests to a gateway that its own OpenAPI document suggests, right and wrong ones: none is answered with a server's error.

`python -m tests.fuzz.openapi --cases 1000` tries that many for each operation, `--only "GET /models" "GET /samplers"` for these
alone, and `--list` says which there are; `test_openapi.py` tries a few cases of all. The gateway is a real server in a process of
its own, whose stages are stand-ins; its memory is looked at after every operation.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.openapi import from_url
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fuzz.gateway import running

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
REFUSAL = [*CHECKS, negative_data_rejection]
"""Wrong data is refused. Not asked of forms, where all is text and `0` is as good as `false`."""

UNNEGATABLE = "Unsupported type: 'Binary'"
"""What schemathesis stumbles over, now and then, where it makes a wrong form of a right one with a file in it."""

MAX_GROWTH_BYTES = 32 * 2**20


def operations(address: str) -> dict[str, APIOperation]:
    """What the gateway's document says that can be asked, by method and path."""
    schema = from_url(f"{address}/openapi.json")
    results = list(schema.get_all_operations())
    found = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(found) == len(results)
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def choose(found: Mapping[str, APIOperation], only: Sequence[str]) -> dict[str, APIOperation]:
    """Those that are named, in the order of the document; all where none is.

    Raises:
        SystemExit: One of them does not exist.
    """
    if unknown := sorted(set(only) - found.keys()):
        raise SystemExit(f"there is no {', '.join(unknown)}; there are {', '.join(found)}")
    return {name: operation for name, operation in found.items() if not only or name in only}


def try_operation(operation: APIOperation, cases: int) -> None:
    """Raises where an answer is a server's error, or is not what the document says.

    Where there are fewer different requests than cases, which is one where nothing can be said, they are sent again.
    """
    try:
        _try(operation, schemathesis.GenerationMode.NEGATIVE, cases // 2)
    except Unsatisfiable:  # there is nothing to be wrong in it, or any text is right
        _try(operation, schemathesis.GenerationMode.POSITIVE, cases)
    else:
        _try(operation, schemathesis.GenerationMode.POSITIVE, cases - cases // 2)


def _try(operation: APIOperation, mode: schemathesis.GenerationMode, cases: int) -> None:
    tried = 0

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(operation.as_strategy(generation_mode=mode))
    def try_one(case: schemathesis.Case) -> None:
        nonlocal tried
        tried += 1
        checks = CHECKS if case.media_type == "multipart/form-data" else REFUSAL
        case.validate_response(case.call(timeout=30), checks=checks)

    while tried < cases:
        before = tried
        try:
            try_one()
        except ValueError as error:
            if UNNEGATABLE not in str(error) or tried == before:
                raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=[], metavar="OPERATION", help='such as "GET /models"; by default all')
    parser.add_argument("--list", action="store_true", help="say which operations there are, and try none")
    arguments = parser.parse_args()
    cases: int = arguments.cases
    with running() as gateway:
        chosen = choose(operations(gateway.address), arguments.only)
        if arguments.list:
            sys.stdout.writelines(f"{name}\n" for name in chosen)
            return
        for name, operation in chosen.items():
            started = time.monotonic()
            try_operation(operation, cases // 2)
            before = gateway.held_bytes()  # with caches filled
            try_operation(operation, cases - cases // 2)
            growth, seconds = gateway.held_bytes() - before, time.monotonic() - started
            sys.stdout.write(f"{name}: {cases} cases, {seconds:.0f} s, {growth / 2**20:.1f} MiB more held in the end\n")
            sys.stdout.flush()
            assert growth < MAX_GROWTH_BYTES


if __name__ == "__main__":
    main()
