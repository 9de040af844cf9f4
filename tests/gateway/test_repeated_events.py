"""Lines put together from parts: what structlog writes, several at a time, never a part of one."""

import asyncio
import io
import json
import re

import pytest
import structlog

from gateway import logs
from gateway.authz import Principal, Role
from gateway.exchange import Trace
from gateway.repeated_events import Lines, RepeatedLine

EVENT = {"request_id": "", "method": "GET", "duration_ms": 0.0, "code": None, "event": "request"}


class Stream(io.StringIO):
    """A stream that notes each piece that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def trace() -> Trace:
    """A request of alice's that was answered from the cache."""
    principal = Principal('ali"ce', Role.USER, 2e9)
    found = Trace("r-1", 0.0, "/ledger/{username}", principal=principal, cache="hit")
    found.bytes_sent, found.rows_dropped = 880, 3
    return found


async def test_a_line_is_what_structlog_would_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    logs.log_request(trace(), "GET", 200)
    logs.repeated(trace())("r-1", 0.0015)
    logs.flush()
    ours, theirs = (json.loads(line) for line in reversed(capsys.readouterr().out.splitlines()))
    assert list(ours) == list(theirs)
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert re.fullmatch(form, ours["timestamp"])
    assert re.fullmatch(form, theirs["timestamp"])
    assert ours["duration_ms"] == 1.5
    assert {**ours, "timestamp": "", "duration_ms": 0} == {
        **theirs,
        **{"timestamp": "", "duration_ms": 0},
    }


async def test_before_logs_are_set_up_structlog_is_asked() -> None:
    with structlog.testing.capture_logs() as captured:
        logs.repeated(trace())("r-2", 0.001)
    (event,) = captured
    assert (event["event"], event["request_id"], event["cache"]) == ("request", "r-2", "hit")


async def test_lines_are_written_together_and_none_in_two_pieces() -> None:
    stream = Stream()
    line = RepeatedLine(Lines(stream), EVENT | {"comment": "x" * 900})
    for number in range(64):
        line(f"r-{number}", 0.001)
    assert 10 < len(stream.pieces) < 64
    assert all(piece.endswith("\n") and len(piece) <= 4096 for piece in stream.pieces)
    found = [json.loads(text)["request_id"] for text in stream.getvalue().splitlines()]
    assert found == [f"r-{number}" for number in range(64)]


async def test_a_line_alone_is_written_a_moment_later() -> None:
    stream, written = Stream(), asyncio.Event()
    lines = Lines(stream)
    flush = lines.flush

    def noted() -> None:
        flush()
        written.set()

    lines.flush = noted  # type: ignore[method-assign]
    RepeatedLine(lines, EVENT)("r-1", 0.001)
    assert stream.pieces == []
    async with asyncio.timeout(5):
        await written.wait()
    assert len(stream.pieces) == 1


async def test_a_line_longer_than_a_pipe_takes_at_once_is_written_whole() -> None:
    stream = Stream()
    lines = Lines(stream)
    for name in ("a", "b"):
        RepeatedLine(lines, EVENT | {"comment": name * 5000})("r-1", 0.001)
    lines.flush()
    lines.flush()
    assert [len(piece) > 5000 for piece in stream.pieces] == [True, True]
