from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from triptych.serving.logs import LOUD_LIBRARIES, configure_logging

LOGGERS = ("", "uvicorn", "uvicorn.error", "uvicorn.access", *LOUD_LIBRARIES)
SECRET = "a prompt that nobody else should read"


@pytest.fixture(autouse=True)
def logged() -> None:
    """Takes the place of the fixture that catches what is logged: here it is looked at as it comes out."""


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Callable[[], str]]]:
    """Configures logging for real, and puts everything back afterwards."""
    kept = [(each, each.handlers, each.level, each.propagate) for each in map(logging.getLogger, LOGGERS)]
    parts: list[str] = []

    def text() -> str:
        parts.append(capsys.readouterr().err)
        return "".join(parts)

    def configure(log_format: Any = "json", log_level: str = "info") -> Callable[[], str]:
        configure_logging(log_format=log_format, log_level=log_level)
        return text

    yield configure
    structlog.reset_defaults()
    for logger, handlers, level, propagate in kept:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def fail() -> None:
    raise ValueError(SECRET)


def test_our_lines_and_the_libraries_look_alike(written) -> None:
    text = written()
    structlog.get_logger().info("ours", rows=3)
    logging.getLogger("some.library").warning("theirs %s", 4)
    ours, theirs = lines(text())
    assert (ours["event"], ours["level"], ours["rows"]) == ("ours", "info", 3)
    assert (theirs["event"], theirs["level"]) == ("theirs 4", "warning")
    assert set(theirs) == set(ours) - {"rows"} == {"event", "level", "timestamp"}


def test_less_than_the_level_is_left_out(written) -> None:
    text = written(log_level="warning")
    structlog.get_logger().info("ours")
    logging.getLogger("some.library").info("theirs")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(text())] == ["loud"]


@pytest.mark.parametrize("log", [structlog.get_logger(), logging.getLogger("some.library")])
def test_an_exception_is_its_class_and_its_place(written, log) -> None:
    text = written()
    try:
        fail()
    except ValueError:
        log.exception("failed")
    (line,) = lines(text())
    assert line["exception"] == "ValueError"
    where = line["where"]
    assert isinstance(where, list)
    assert where[-1].startswith(__file__)
    assert where[-1].endswith(" fail")
    assert SECRET not in text()


def test_an_exception_may_be_given(written) -> None:
    text = written()
    structlog.get_logger().error("failed", exc_info=KeyError(SECRET))
    structlog.get_logger().error("nothing is raised", exc_info=True)
    given, none = lines(text())
    assert given["exception"] == "KeyError"
    assert "exception" not in none
    assert SECRET not in text()


def test_who_debugs_sees_all(written) -> None:
    text = written(log_level="debug")
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(text())
    assert str(line["exception"]).endswith(f"ValueError: {SECRET}\n")


def test_a_person_gets_another_form(written) -> None:
    text = written(log_format="console")
    structlog.get_logger().info("ours", rows=3)
    assert "ours" in text()
    assert not text().startswith("{")


def test_a_file_gets_json_by_itself(written) -> None:
    text = written(log_format="auto")
    structlog.get_logger().info("ours")
    assert lines(text())[0]["event"] == "ours"


def test_the_trace_is_named(written) -> None:
    text = written()
    span = NonRecordingSpan(SpanContext(trace_id=0xAB, span_id=1, is_remote=True, trace_flags=TraceFlags(1)))
    token = context.attach(trace.set_span_in_context(span))
    try:
        structlog.get_logger().info("ours")
    finally:
        context.detach(token)
    assert lines(text())[0]["trace_id"] == f"{0xAB:032x}"


def test_what_uvicorn_set_up_is_taken_over(written) -> None:
    for name in ("uvicorn", "uvicorn.access"):
        logging.getLogger(name).handlers = [logging.StreamHandler(io.StringIO())]
    text = written()
    logging.getLogger("uvicorn.error").info("Started")
    logging.getLogger("uvicorn.access").info("GET /?prompt=%s", SECRET)
    logging.getLogger("httpx2").info("GET http://me:password@stage/")
    assert [line["event"] for line in lines(text())] == ["Started"]
    # uvicorn asks this of its logger before it makes such a line at all.
    assert not logging.getLogger("uvicorn.access").hasHandlers()
