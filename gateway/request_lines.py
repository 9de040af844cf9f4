"""Events of requests, which are answered faster than structlog writes a line: the same lines, put
together from parts, and written several at a time.
"""

import asyncio
import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TextIO

import msgspec

# What a pipe takes at once from several writers without mixing them (POSIX PIPE_BUF), in bytes.
# Writes to a regular file are never mixed, however long they are.
_AT_ONCE = 4096
_MOST_LINES = 256
_DELAY_S = 0.05
# No value of an event holds any of these.
_ID, _DURATION, _TIME = "\x00id", "\x00duration", "\x00time"
_ID_TEXT, _DURATION_TEXT, _TIME_TEXT = r"\u0000id", r'"\u0000duration"', r"\u0000time"

# What a line has around its request's id, its duration and the time.
Parts = tuple[str, str, str, str]
Entry = tuple[Parts, str, float, float]


class Lines:
    """Writes lines to a stream together, a moment later, in one loop.

    Lines that cannot be written (a full disk, a reader that has left) are lost, and no request
    fails because of that. A reader that pauses while its pipe is full holds everything up.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_once = None if _is_file(stream) else _AT_ONCE
        self._entries: list[Entry] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, parts: Parts, request_id: str, seconds: float, now: float) -> None:
        """Takes the line of a request that took so many seconds, until `now`, in seconds since the
        epoch.
        """
        self._entries.append((parts, request_id, seconds, now))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY_S, self.flush)
        elif len(self._entries) >= _MOST_LINES:
            self.flush()

    def flush(self) -> None:
        """Writes what is there, never a part of a line at a time."""
        if self._timer is not None:
            # Or every batch would be cut by the timer of one before it.
            self._timer.cancel()
            self._timer = None
        entries, self._entries = self._entries, []
        text = "".join(_lines(entries))
        with contextlib.suppress(OSError):
            for piece in _pieces(text, self._at_once or len(text)):
                self._stream.write(piece)
                self._stream.flush()


def parts(event: Mapping[str, Any]) -> Parts:
    """What the line of a request's event has around what `Lines.add` is told of it."""
    marks = {"request_id": _ID, "duration_ms": _DURATION}
    ends = {"event": "request", "level": "info", "timestamp": _TIME}
    head, _, rest = encoded({**event, **marks, **ends}).partition(_ID_TEXT)
    middle, _, rest = rest.partition(_DURATION_TEXT)
    last, _, end = rest.partition(_TIME_TEXT)
    return head, middle, last, end + "\n"


def encoded(event: Mapping[str, Any], **options: Any) -> str:
    """An event as JSON in ASCII, all on one line; `options` are those of `json.dumps`."""
    try:
        text = msgspec.json.encode(event).decode("ascii")
    except (UnicodeError, TypeError):
        # Rare: text that is not ASCII, and values that JSON does not have.
        text = json.dumps(event, separators=(",", ":"), **options)
    return text


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # it is something of Python's own
        return False


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    since = until = 0.0
    for (head, middle, last, end), request_id, seconds, now in entries:
        if not since <= now < until:  # there are many events in a millisecond
            milliseconds = int(now * 1000)
            since, until = milliseconds / 1000, (milliseconds + 1) / 1000
            timestamp = _timestamp(milliseconds)
        duration = _milliseconds(int(seconds * 1_000_000))
        yield f"{head}{request_id}{middle}{duration}{last}{timestamp}{end}"


@lru_cache(maxsize=1024)
def _milliseconds(microseconds: int) -> str:
    return str(microseconds / 1000)


def _timestamp(milliseconds: int) -> str:
    """ISO 8601 in UTC, to the millisecond, in the form that structlog's `TimeStamper` writes."""
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{second}.{milliseconds % 1000:03d}000Z"


def _pieces(text: str, size: int) -> Iterator[str]:
    """Lines of ASCII in pieces of at most so many bytes, or of one line if it is longer."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + size)
        if end < 0:
            end = text.index("\n", start)
        yield text[start : end + 1]
        start = end + 1
