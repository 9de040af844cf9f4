"""Lines put together from parts: what structlog writes, several at a time, never a part of one."""

import asyncio
import errno
import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import structlog

from gateway import logs
from gateway.authz import Principal, Role
from gateway.exchange import Trace
from gateway.request_lines import Lines, parts

EVENT = {"request_id": "", "method": "GET", "duration_ms": 0.0, "code": None, "event": "request"}


class Stream(io.StringIO):
    """A stream that notes each piece that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


class File(io.FileIO):
    """A file that notes what each call of the system was to write."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.pieces: list[bytes] = []

    def write(self, data: Any) -> int | None:
        self.pieces.append(bytes(data))
        return super().write(data)


def repeated_line(lines: Lines, event: dict[str, Any]) -> Callable[[str, float, float], None]:
    """Writes the lines of one event."""
    return partial(lines.add, parts(event))


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
    with monkeypatch.context() as patched:
        patched.setattr(logs, "_lines", None)
        logs.log_request(trace(), "GET", 200)
    logs.log_request(trace(), "GET", 200)
    logs.repeated(trace())("r-1", 0.0015, 0.0)
    logs.flush()
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    theirs, ours, again = written
    assert list(ours) == list(again) == list(theirs)
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert all(re.fullmatch(form, one["timestamp"]) for one in written)
    assert again["duration_ms"] == 1.5
    same = {"timestamp": "", "duration_ms": 0}
    assert {**ours, **same} == {**again, **same} == {**theirs, **same}


async def test_of_a_write_there_is_a_record_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logs.log_request(trace(), "GET", 200)
    assert capsys.readouterr().out == ""
    logs.log_request(trace(), "POST", 201)
    methods = [json.loads(line)["method"] for line in capsys.readouterr().out.splitlines()]
    assert methods == ["GET", "POST"]


async def test_before_logs_are_set_up_structlog_is_asked() -> None:
    with structlog.testing.capture_logs() as captured:
        logs.repeated(trace())("r-2", 0.001, 0.0)
    (event,) = captured
    assert (event["event"], event["request_id"], event["cache"]) == ("request", "r-2", "hit")


async def test_lines_are_written_together_and_none_in_two_pieces() -> None:
    stream = Stream()
    line = repeated_line(Lines(stream), EVENT | {"comment": "x" * 900})
    for number in range(256):
        line(f"r-{number}", 0.001, 0.0)
    assert 50 < len(stream.pieces) < 256
    assert all(piece.endswith("\n") and len(piece) <= 4096 for piece in stream.pieces)
    found = [json.loads(text)["request_id"] for text in stream.getvalue().splitlines()]
    assert found == [f"r-{number}" for number in range(256)]


async def test_a_file_takes_all_that_there_is_at_once(tmp_path: Path) -> None:
    file = File(tmp_path / "log", "w")
    with io.TextIOWrapper(io.BufferedWriter(file)) as stream:
        line = repeated_line(Lines(stream), EVENT)
        for number in range(256):
            line(f"r-{number}", 0.001, 0.0)
    (piece,) = file.pieces
    assert len(piece) > io.DEFAULT_BUFFER_SIZE
    found = [json.loads(text)["request_id"] for text in piece.splitlines()]
    assert found == [f"r-{number}" for number in range(256)]


async def test_lines_that_were_written_leave_no_timer_to_cut_those_that_follow() -> None:
    lines = Lines(Stream())
    line = repeated_line(lines, EVENT)
    line("r-1", 0.001, 0.0)
    timer = lines._timer
    lines.flush()
    assert timer is not None
    assert timer.cancelled()
    line("r-2", 0.001, 0.0)
    assert lines._timer is not timer


async def test_each_line_has_the_time_and_the_duration_of_its_own_request() -> None:
    stream = Stream()
    lines = Lines(stream)
    line = repeated_line(lines, EVENT | {"timestamp": ""})
    for seconds, now in ((0.0000129, 0.0019), (1.5, 0.002), (0.0, 86400.0)):
        line("r-1", seconds, now)
    lines.flush()
    found = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert [(one["duration_ms"], one["timestamp"]) for one in found] == [
        (0.012, "1970-01-01T00:00:00.001000Z"),
        (1500.0, "1970-01-01T00:00:00.002000Z"),
        (0.0, "1970-01-02T00:00:00.000000Z"),
    ]


async def test_lines_that_cannot_be_written_harm_nobody() -> None:
    stream = Stream()
    lines = Lines(stream)
    line = repeated_line(lines, EVENT)
    with patch.object(stream, "write", side_effect=OSError(errno.ENOSPC, "full")):
        for number in range(300):
            line(f"r-{number}", 0.001, 0.0)
        lines.flush()
    line("r-300", 0.001, 0.0)
    lines.flush()
    assert [json.loads(text)["request_id"] for text in stream.getvalue().splitlines()] == ["r-300"]


async def test_a_line_alone_is_written_a_moment_later() -> None:
    stream, written = Stream(), asyncio.Event()
    lines = Lines(stream)
    flush = lines.flush

    def noted() -> None:
        flush()
        written.set()

    lines.flush = noted  # type: ignore[method-assign]
    repeated_line(lines, EVENT)("r-1", 0.001, 0.0)
    assert stream.pieces == []
    async with asyncio.timeout(5):
        await written.wait()
    assert len(stream.pieces) == 1


async def test_a_line_longer_than_a_pipe_takes_at_once_is_written_whole() -> None:
    stream = Stream()
    lines = Lines(stream)
    for name in ("a", "b"):
        repeated_line(lines, EVENT | {"comment": name * 5000})("r-1", 0.001, 0.0)
    lines.flush()
    lines.flush()
    assert [len(piece) > 5000 for piece in stream.pieces] == [True, True]
