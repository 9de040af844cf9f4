"""Events of requests that are answered faster than structlog writes a line: the same lines, put
together from parts, and written several at a time.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, TextIO

# What a pipe takes at once from several writers without mixing them (POSIX PIPE_BUF), in bytes.
_AT_ONCE = 4096
_MOST_LINES = 64
_DELAY_S = 0.05
_ID, _DURATION, _TIME = "\x00id", "\x00duration", "\x00time"


class Lines:
    """Writes lines to a stream together, a moment later."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Takes a line that ends with a line break."""
        self._lines.append(line)
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(_DELAY_S, self.flush)
        elif len(self._lines) >= _MOST_LINES:
            self.flush()

    def flush(self) -> None:
        """Writes what is there, never a part of a line at a time."""
        lines, self._lines = self._lines, []
        batch: list[str] = []
        size = 0
        for line in lines:
            if size + len(line) > _AT_ONCE:
                self._write(batch)
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        self._write(batch)

    def _write(self, batch: list[str]) -> None:
        if batch:
            self._stream.write("".join(batch))
            self._stream.flush()


class RepeatedLine:
    """One event whose lines differ in the request's id, its duration and the time alone."""

    def __init__(self, lines: Lines, event: Mapping[str, Any]) -> None:
        marks = {"request_id": _ID, "duration_ms": _DURATION, "timestamp": _TIME}
        text = json.dumps({**event, **marks}) + "\n"
        head, rest = text.split(json.dumps(_ID)[1:-1])
        middle, rest = rest.split(json.dumps(_DURATION))
        last, end = rest.split(json.dumps(_TIME)[1:-1])
        self._lines = lines
        self._parts = head, middle, last, end

    def __call__(self, request_id: str, seconds: float) -> None:
        """Writes the line of one more request, which took so many seconds."""
        head, middle, last, end = self._parts
        duration = int(seconds * 1_000_000) / 1000
        self._lines.add(f"{head}{request_id}{middle}{duration}{last}{_timestamp(time.time())}{end}")


_latest: tuple[int, str] = (0, "")


def _timestamp(now: float) -> str:
    """ISO 8601 in UTC, to the millisecond, in the form that structlog's `TimeStamper` writes."""
    global _latest  # there are many events in a millisecond
    milliseconds = int(now * 1000)
    if milliseconds != _latest[0]:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
        _latest = (milliseconds, f"{second}.{milliseconds % 1000:03d}000Z")
    return _latest[1]
