"""Answers that were given before, ready but for what differs each time."""

import weakref
from collections.abc import Callable, Mapping
from email.utils import formatdate
from math import floor
from typing import TypeVar

from aiohttp import web

from gateway import logs
from gateway.exchange import Trace
from gateway.kept import cache_status_of_hit
from gateway.metrics import Metrics

# How many are remembered, and how many bytes what they are known by takes, whoever sends it.
_MAX_SHORTCUTS = 10_000
_MAX_BYTES = 16 << 20
# Stands for the request id, and is in no header.
_ID = "\0"


K = TypeVar("K")


class Shortcut:
    """An answer from a kept reply, and what it depends on.

    `kept` and `sent` are references that die with the entry: the cache alone decides what is worth
    its memory. `edition` is that of the keys which the token was verified with. `count` and `log`
    note one more use.
    """

    def __init__(self, trace: Trace, response: web.StreamResponse, metrics: Metrics) -> None:
        if trace.principal is None or trace.found is None or trace.found.kept is None:
            raise ValueError("this is no answer to somebody from a kept reply")
        self.principal = trace.principal
        self.edition = trace.edition
        self.kept = weakref.ref(trace.found.kept)
        self.sent = weakref.ref(trace.sent)
        self.coding = response.headers.get("Content-Encoding", "identity")
        self.count = metrics.repeated(trace)
        self.log = logs.repeated(trace)
        self._lines = _lines(response)
        # The head but for the id, the time of its `Date`, and the age from which on it is another.
        self._around_id = (b"", b"")
        self._second = -1
        self._next_age = 0.0

    def around_id(
        self, age: float, fresh_s: float, now: float, limits: Mapping[str, str]
    ) -> tuple[bytes, bytes]:
        """The head of the answer before its id and behind it: the same lines in the same order as
        when it was learned.

        `age` and `fresh_s`, how long the reply is fresh, are in seconds, `now` in those since the
        epoch. A reply never gets younger.
        """
        second = int(now)
        if limits or second != self._second or age >= self._next_age:
            whole, left = int(age), floor(fresh_s - age)
            self._second, self._next_age = second, min(whole + 1, fresh_s - left)
            self._around_id = self._made(whole, left, second, limits)
        return self._around_id

    def _made(
        self, age: int, left: int, now: int, limits: Mapping[str, str]
    ) -> tuple[bytes, bytes]:
        values = {"Age": str(age), "Cache-Status": cache_status_of_hit(left)}
        values |= {"Date": formatdate(now, usegmt=True), "X-Request-Id": _ID, **limits}
        lines = [f"{name}: {values.get(name, value)}" for name, value in self._lines]
        before, after = "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).split(_ID)
        return before.encode(), after.encode()


class Shortcuts(dict[K, Shortcut]):
    """Shortcuts by what they are known by, which takes so many bytes. In bounded memory: the one
    that was learned first goes first.
    """

    def __init__(self, size: Callable[[K], int]) -> None:
        super().__init__()
        self._size = size
        self._bytes = 0

    def remember(self, key: K, shortcut: Shortcut) -> None:
        """Adds one, in place of what was known by that."""
        self._forget(key)
        self[key] = shortcut
        self._bytes += self._size(key)
        while len(self) > _MAX_SHORTCUTS or self._bytes > _MAX_BYTES:
            self._forget(next(iter(self)))

    def _forget(self, key: K) -> None:
        if self.pop(key, None) is not None:
            self._bytes -= self._size(key)


def _lines(response: web.StreamResponse) -> list[tuple[str, str]]:
    return [(str(name), value) for name, value in response.headers.items()]
