"""Logs: one line an event, JSON or for a person's eyes, ours and the libraries' alike.

What people type and what they get is nobody's business: neither prompts nor images are logged, and of an exception only its class
and where it came from, since its message may quote its input. At level `debug` the whole traceback is shown.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import Literal, TypeAlias

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]

LOUD_LIBRARIES = ("httpx2", "httpcore2")
"""They log every request with its address, which may hold a password."""


def configure_logging(*, log_format: Literal["auto", "console", "json"], log_level: str) -> None:
    """Sends everything that this process logs to standard error, in one form. For processes, not for libraries or tests."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_id,
        _describe_traceback if log_level == "debug" else _describe_exception,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(log_level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(log_format)],
        )
    )
    _take_over(handler, log_level.upper())


def _renderer(log_format: str) -> Processor:
    if log_format == "json" or (log_format == "auto" and not sys.stderr.isatty()):
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())


def _take_over(handler: logging.Handler, level: str) -> None:
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # We log each request ourselves, with its id.
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False
    for name in LOUD_LIBRARIES:
        logging.getLogger(name).setLevel("WARNING")


def _add_trace_id(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
    return event


def _describe_exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if (info := _take_exc_info(event)) is not None:
        frames = traceback.extract_tb(info[2])
        event["exception"] = info[0].__qualname__
        event["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event


def _describe_traceback(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if (info := _take_exc_info(event)) is not None:
        event["exception"] = "".join(traceback.format_exception(*info))
    return event


def _take_exc_info(event: EventDict) -> _ExcInfo | None:
    """What structlog and logging accept as `exc_info`: True, an exception, or the three values of `sys.exc_info`."""
    info = event.pop("exc_info", None)
    if isinstance(info, BaseException):
        return type(info), info, info.__traceback__
    if not isinstance(info, tuple):
        info = sys.exc_info() if info else None
    return None if info is None or info[0] is None else info
