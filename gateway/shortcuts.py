"""One answer that was given before, ready but for what differs each time."""

import time
import weakref
from collections.abc import Mapping
from email.utils import formatdate

from aiohttp import web

from gateway import logs
from gateway.exchange import Trace
from gateway.kept import cache_status_of_hit
from gateway.metrics import Metrics

# Stands for the request id, and is in no header.
_ID = "\0"


class Shortcut:
    """An answer from a kept reply, and what it depends on.

    `kept` and `sent` are references that die with the entry: the cache alone decides what is worth
    its memory. `edition` is that of the keys which the token was verified with.
    """

    def __init__(self, trace: Trace, response: web.StreamResponse, metrics: Metrics) -> None:
        if trace.principal is None or trace.found is None or trace.found.kept is None:
            raise ValueError("this is no answer to somebody from a kept reply")
        self.principal = trace.principal
        self.edition = trace.edition
        self.kept = weakref.ref(trace.found.kept)
        self.sent = weakref.ref(trace.sent)
        self.coding = response.headers.get("Content-Encoding", "identity")
        self._count = metrics.repeated(trace)
        self._log = logs.repeated(trace)
        self._lines = _lines(response)
        self._second: tuple[int, int, int] | None = None
        self._around_id = (b"", b"")

    def head(self, age: float, left: float, limits: Mapping[str, str], request_id: str) -> bytes:
        """The head of the answer: the same lines in the same order as when it was learned.

        `age` and what is `left` of its lifetime are in seconds.
        """
        second = (int(age), int(left // 1), int(time.time()))
        if limits or second != self._second:
            self._second = second
            self._around_id = self._made(second, limits)
        before, after = self._around_id
        return before + request_id.encode() + after

    def finished(self, request_id: str, duration: float) -> None:
        """Counts and logs one use, which took so many seconds."""
        self._count(duration)
        self._log(request_id, duration)

    def _made(self, second: tuple[int, int, int], limits: Mapping[str, str]) -> tuple[bytes, bytes]:
        age, left, now = second
        values = {"Age": str(age), "Cache-Status": cache_status_of_hit(left)}
        values |= {"Date": formatdate(now, usegmt=True), "X-Request-Id": _ID, **limits}
        lines = [f"{name}: {values.get(name, value)}" for name, value in self._lines]
        before, after = "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).split(_ID)
        return before.encode(), after.encode()


def _lines(response: web.StreamResponse) -> list[tuple[str, str]]:
    return [(str(name), value) for name, value in response.headers.items()]
