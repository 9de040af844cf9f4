"""The log: one JSON object a line, or the console form for a person; never what a caller sent."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import pytest
import structlog
from aiohttp.test_utils import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import logs
from gateway.authz import Principal, Role
from gateway.exchange import Trace
from tests.conftest import CREDENTIAL, SECRET, caller, token
from tests.fakes import FakeLedger

# What a library may quote of a request in the text of a message or an exception.
QUOTED = "Bearer eyJhbGciOiJIUzI1NiJ9.e30.AAAA"
FIELDS = {
    *("event", "level", "timestamp", "request_id", "method", "route", "username", "role"),
    *("status", "code", "duration_ms", "ledger_ms", "cache", "bytes", "rows_dropped", "aborted"),
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Recorder(io.StringIO):
    """Notes what is written in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return super().write(text)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """What a test configures lasts no longer than the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class Written:
    """What has been written to standard output, which is no terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    @property
    def text(self) -> str:
        logs.flush()
        self._text += self._capsys.readouterr().out
        return self._text

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Written:
    logs.configure()
    return Written(capsys)


@contextmanager
def standard_output(stdout: Written) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "stdout", stdout)
        logs.configure()
        yield


def raised(error: Exception) -> Exception:
    """The exception, with a traceback."""
    try:
        raise error
    except Exception as caught:
        return caught


# Two forms.


def test_an_event_is_a_line_of_json_with_its_level_and_its_time_in_utc(out: Written) -> None:
    structlog.get_logger().info("started", host="127.0.0.1", port=8080)
    (event,) = out.events()
    assert {name: event[name] for name in ("event", "level", "host", "port")} == {
        "event": "started",
        "level": "info",
        "host": "127.0.0.1",
        "port": 8080,
    }
    assert event["timestamp"].endswith("Z")
    age = datetime.now(UTC) - datetime.fromisoformat(event["timestamp"])
    assert abs(age.total_seconds()) < 60


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text())
def test_whatever_is_logged_stays_one_line_of_ascii(event: str, value: str) -> None:
    out = io.StringIO()
    with standard_output(out):
        structlog.get_logger().info(event, value=value)
    line = out.getvalue()
    assert line.isascii()
    assert line.count("\n") == 1
    assert json.loads(line)["value"] == value


def test_an_event_is_written_at_once_so_that_workers_do_not_mix_their_lines() -> None:
    out = Recorder()
    with standard_output(out):
        structlog.get_logger().info("started")
        logging.getLogger("any.other").error("text")
    assert [json.loads(line)["event"] for line in out.written] == ["started", "library"]
    assert all(line.endswith("\n") for line in out.written)


def test_an_event_that_cannot_be_written_is_lost_and_harms_nobody() -> None:
    out = Recorder()
    with standard_output(out):
        log = structlog.get_logger()
        with patch.object(out, "flush", side_effect=BrokenPipeError):
            log.error("worker died")
            logging.getLogger("any.other").error("text")
        log.info("stopping")
    assert [json.loads(line)["event"] for line in out.written][-1] == "stopping"


def test_a_person_at_a_terminal_is_shown_the_console_form() -> None:
    out = Terminal()
    with standard_output(out):
        structlog.get_logger().info("started", port=8080)
    shown = out.getvalue()
    assert "started" in shown
    assert "8080" in shown
    with pytest.raises(json.JSONDecodeError):
        json.loads(shown)


def test_what_is_for_debugging_is_not_logged(out: Written) -> None:
    structlog.get_logger().debug("detail")
    assert out.events() == []


# What libraries log.


@pytest.mark.parametrize("name", ["aiohttp.server", "aiohttp.access", "asyncio", "any.other"])
@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_that_a_library_complained_is_logged_and_not_what_it_said(
    out: Written, name: str, level: int
) -> None:
    logging.getLogger(name).log(level, "cannot parse %r of " + QUOTED, QUOTED, extra={"x": QUOTED})
    (event,) = out.events()
    assert (event["event"], event["logger"]) == ("library", name)
    assert event["level"] == logging.getLevelName(level).lower()
    assert QUOTED not in out.text


def test_an_exception_in_a_library_is_logged_by_its_type_and_place_alone(out: Written) -> None:
    error = raised(ValueError(QUOTED))
    logging.getLogger("aiohttp.server").error("Unhandled " + QUOTED, exc_info=error)
    (event,) = out.events()
    assert event["error"] == "ValueError"
    assert event["frames"][-1].startswith("test_logs.py:")
    assert QUOTED not in out.text


def test_a_call_of_exception_outside_of_one_is_logged_all_the_same(out: Written) -> None:
    logging.getLogger("asyncio").exception("nothing was raised")  # noqa: LOG004
    (event,) = out.events()
    assert event["event"] == "library"
    assert "error" not in event


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, 1, 29])
def test_what_a_library_says_in_passing_is_not_logged(out: Written, level: int) -> None:
    logging.getLogger("aiohttp.access").log(level, "GET /ledger")
    assert out.events() == []


@pytest.mark.parametrize("level", [31, 35, 45, 60])
def test_a_level_of_a_librarys_own_is_no_error_of_ours(out: Written, level: int) -> None:
    logging.getLogger("any.other").log(level, QUOTED)
    (event,) = out.events()
    assert event["event"] == "library"
    assert QUOTED not in out.text


# Exceptions.


def test_an_exception_is_described_without_its_message() -> None:
    described = logs.describe(raised(KeyError(SECRET)))
    assert described["error"] == "KeyError"
    assert SECRET not in json.dumps(described)


def test_of_a_deep_exception_the_places_nearest_to_it_are_told_without_their_folders() -> None:
    def deep(levels: int) -> None:
        if levels == 0:
            raise ValueError
        deep(levels - 1)

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        deep(50)
    frames = logs.describe(caught.value)["frames"]
    assert len(frames) == 8
    assert all(frame.startswith("test_logs.py:") for frame in frames)
    assert not any("/" in frame for frame in frames)


def test_an_exception_that_was_never_raised_is_described_too() -> None:
    assert logs.describe(ValueError(SECRET)) == {"error": "ValueError", "frames": []}


# Requests.


async def test_a_request_is_one_event_with_the_same_fields_whatever_came_of_it(
    out: Written,
) -> None:
    logs.configure()  # standard output is another one than when the fixture was made
    logs.log_request(Trace("id-1", 0.0), "GET", 404)
    trace = Trace("id-2", 0.0, route="/ledger", principal=Principal("alice", Role.USER, 0.0))
    trace.ledger_time, trace.cache, trace.rows_dropped = 0.0123456, "miss", 3
    trace.bytes_sent, trace.code, trace.aborted = 17, "LEDGER_BROKEN", True
    logs.log_request(trace, "POST", 499)
    first, second = out.events()
    assert set(first) == set(second) == FIELDS
    assert (first["request_id"], first["route"], first["status"]) == ("id-1", "unmatched", 404)
    assert first["username"] is first["role"] is first["code"] is None
    assert {name: second[name] for name in FIELDS - {"timestamp", "duration_ms"}} == {
        "event": "request",
        "level": "info",
        "request_id": "id-2",
        "method": "POST",
        "route": "/ledger",
        "username": "alice",
        "role": "user",
        "status": 499,
        "code": "LEDGER_BROKEN",
        "ledger_ms": 12.346,
        "cache": "miss",
        "bytes": 17,
        "rows_dropped": 3,
        "aborted": True,
    }
    assert second["duration_ms"] > 0


async def test_a_request_leaves_one_line_with_its_id_and_nothing_that_was_sent(
    ledger: FakeLedger, client: TestClient[Any, Any], out: Written
) -> None:
    logs.configure()  # standard output is another one than when the fixture was made
    ledger.rows("/ledger/alice", '{"id":"row-1","username":"alice","amount":"her-amount"}')
    headers = {**caller("alice"), "X-Request-Id": "an-id-of-mine", "Cookie": "a=cookie-of-mine"}
    response = await client.get("/ledger?currency=CURRENCY1", headers=headers)
    assert response.status == 200
    (event,) = out.events()
    assert set(event) == FIELDS
    assert (event["request_id"], event["username"]) == ("an-id-of-mine", "alice")
    assert event["bytes"] == len(await response.read())
    written = out.text
    for hidden in (
        token("alice"),
        SECRET,
        CREDENTIAL,
        "CURRENCY1",
        "cookie",
        "row-1",
        "her-amount",
    ):
        assert hidden not in written
    assert len(ledger.calls) == 1


async def test_a_name_that_was_not_verified_is_not_logged(
    ledger: FakeLedger, client: TestClient[Any, Any], out: Written
) -> None:
    logs.configure()  # standard output is another one than when the fixture was made
    headers = {**caller("alice"), "username": "mallory"}
    assert (await client.get("/ledger/mallory", headers=headers)).status == 403
    assert (await client.get("/ledger", headers={"username": "mallory"})).status == 401
    assert [event["status"] for event in out.events()] == [403, 401]
    assert "mallory" not in out.text
    assert ledger.calls == []
