"""Structured logs on standard output: JSON, or for a person at a terminal the console form."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

import structlog

from gateway.exchange import Trace
from gateway.request_lines import Lines, encoded, parts

# Where lines of requests go if a machine reads them; without it they go through structlog.
_lines: Lines | None = None


def configure() -> None:
    """Sets up structlog, and sends what libraries log through it."""
    global _lines
    person = sys.stdout.isatty()
    _lines = None if person else Lines(sys.stdout)
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.processors.JSONRenderer(serializer=encoded)
    if person:
        renderer = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        # Each line is one write, so that the lines of several workers do not mix.
        logger_factory=lambda *_: structlog.WriteLogger(_Forgiving(sys.stdout)),  # type: ignore[arg-type]
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Forwarder()], level=logging.WARNING, force=True)


def flush() -> None:
    """Writes what has not been written yet."""
    if _lines is not None:
        _lines.flush()


def end() -> None:
    """Lets go of what could not be written: Python would try once more as it exits, and fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Forgiving:
    """A stream for lines that are lost if they cannot be written (a full disk, a reader that has
    left): what is under way goes on, in the supervisor of workers, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _Forwarder(logging.Handler):
    """Hands on that a library complained, not what it quoted: it may have quoted a request."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # A level of a library's own, between or above the usual ones, is the usual one below it.
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        structlog.get_logger().log(
            level, "library", logger=record.name, **(describe(error) if error else {})
        )


def describe(error: BaseException) -> dict[str, Any]:
    """An unexpected exception without its message, which may hold what a caller sent."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames]
    return {"error": type(error).__name__, "frames": places}


def log_request(trace: Trace, method: str, status: int) -> None:
    """The one event of a request: never a token, never a body, the user name only if verified."""
    seconds = time.monotonic() - trace.started
    event = _event(trace, method, status, trace.request_id, seconds)
    if _lines is None:
        structlog.get_logger().info("request", **event)
        return
    _lines.add(parts(event), trace.request_id, seconds, time.time())
    if method != "GET":
        # What may have changed something is on record at once.
        _lines.flush()


def repeated(trace: Trace) -> Callable[[str, float, float], None]:
    """Logs one more request like this one, given its id, how many seconds it took, and the time in
    seconds since the epoch.
    """
    if _lines is not None:
        return partial(_lines.add, parts(_event(trace, "GET", 200, "", 0.0)))

    def log(request_id: str, seconds: float, _now: float) -> None:
        event = _event(trace, "GET", 200, request_id, seconds)
        structlog.get_logger().info("request", **event)

    return log


def _event(
    trace: Trace, method: str, status: int, request_id: str, seconds: float
) -> dict[str, Any]:
    principal = trace.principal
    return {
        "request_id": request_id,
        "method": method,
        "route": trace.route,
        "username": principal.username if principal else None,
        "role": principal.role.label if principal else None,
        "status": status,
        "code": trace.code,
        "duration_ms": round(seconds * 1000, 3),
        "ledger_ms": round(trace.ledger_time * 1000, 3),
        "cache": trace.cache,
        "bytes": trace.bytes_sent,
        "rows_dropped": trace.rows_dropped,
        "aborted": trace.aborted,
    }
