"""Answers known before a request is routed, and where a connection repeats a head, before it is
parsed.

A GET that was parsed, authorised and answered 200 from a kept reply leaves a shortcut. The same
request gets the same answer again for as long as all that decided it stands: token, keys,
revocation list, entry and generation. What no answer depends on (`PER_REQUEST`) need not be the
same. Anything else goes the long walk, which is always right.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from sys import getsizeof
from typing import Any

from aiohttp import web

from gateway.authn import Authenticator
from gateway.cache import CachedLedger
from gateway.edge import TRACE, accepted_id, is_last
from gateway.errors import RateLimited
from gateway.exchange import Trace
from gateway.health import Health
from gateway.kept import Outcome, key_size
from gateway.metrics import Metrics
from gateway.rate_limit import RateLimit
from gateway.shortcuts import Shortcut, Shortcuts

# Headers that differ from request to request and change nothing in an answer but its id.
PER_REQUEST = frozenset({b"traceparent", b"tracestate", b"baggage", b"x-request-id"})
# The same in a head that is not parsed: lines whose end is plain to see and that no parser refuses.
_PER_REQUEST_LINE = re.compile(
    rb"\r\n(?:%b):[ \t!-~]*(?=\r\n)" % b"|".join(sorted(PER_REQUEST)), re.IGNORECASE
)
# Leaves what such a line may hold as it is, and nothing else.
_PLAIN = bytes(byte if byte == 0x09 or 0x20 <= byte < 0x7F else 0x21 for byte in range(256))
_ID_LINE = re.compile(rb"\r\nx-request-id:([ \t!-~]*)(?=\r\n)", re.IGNORECASE)
# So many of them at most, with so many others, stay within what a parser takes.
_MAX_LINES = 8
_MAX_HEADERS = 64
_END = b"\r\n\r\n"
HTTP_1_1 = (1, 1)
_HIT = Outcome.HIT
# Longer heads are not worth the memory; in bytes.
_MAX_HEAD = 4096

Key = tuple[str, tuple[tuple[bytes, bytes], ...]]


class FastPath:
    """The shortcuts of one process. `now` is a monotonic clock in seconds."""

    def __init__(
        self,
        authenticator: Authenticator,
        ledger: CachedLedger,
        rate_limit: RateLimit,
        health: Health,
        metrics: Metrics,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator = authenticator
        self._ledger = ledger
        self._rate_limit = rate_limit
        self._health = health
        self._metrics = metrics
        self._now = now
        self._by_request: Shortcuts[Key] = Shortcuts(key_size)
        self._by_head: Shortcuts[bytes] = Shortcuts(getsizeof)
        self._ids = _new_ids()

    def by_head(self, data: bytes) -> bytes | None:
        """The whole answer to these bytes, if they are a head that was answered before, but for
        lines that change nothing.
        """
        shortcut, request_id = self._by_head.get(data), None
        if shortcut is None and len(data) <= _MAX_HEAD and data.endswith(_END):
            shortcut = self._by_head.get(_untraced(data))
            if shortcut is None:
                deciding, count = _PER_REQUEST_LINE.subn(b"", data)
                if not 0 < count <= _MAX_LINES:
                    return None
                shortcut = self._by_head.get(deciding)
                request_id = accepted_id([one.strip() for one in _ID_LINE.findall(data)])
        return self._answer(shortcut, request_id) if shortcut is not None else None

    def by_message(self, message: Any, head: bytes | None) -> bytes | None:
        """The whole answer to a parsed head; `head` is its bytes where they came by themselves."""
        if message.method != "GET" or message.should_close or message.version != HTTP_1_1:
            return None
        key, request_id = _key(message)
        shortcut = self._by_request.get(key)
        if shortcut is None:
            return None
        if head is not None and len(head) <= _MAX_HEAD and len(key[1]) <= _MAX_HEADERS:
            deciding, count = _PER_REQUEST_LINE.subn(b"", head)
            # Nothing stands before the head or behind it, and no line of those is left in it.
            whole = head.startswith(b"GET ") and head.find(_END) + len(_END) == len(head)
            if whole and count == len(message.raw_headers) - len(key[1]):
                self._by_head.remember(deciding, shortcut)
        return self._answer(shortcut, request_id)

    async def learn(self, request: web.Request, response: web.StreamResponse) -> None:
        """Leaves a shortcut behind an answer that is ready to be sent, if there can be one."""
        trace: Trace = request[TRACE]
        message: Any = request._message
        if response.status != 200 or trace.sent is None or trace.found is None:
            return
        kept = trace.found.kept
        if trace.found.outcome is not Outcome.HIT or kept is None or not _plain(request):
            return
        # An answer that is made of several replies depends on more than this one.
        if trace.sent not in kept.views.values() or trace.principal is None:
            return
        key, _ = _key(message)
        if _length(key) > _MAX_HEAD:
            return
        self._by_request.remember(key, Shortcut(trace, response, self._metrics))

    def _answer(self, shortcut: Shortcut, request_id: str | None) -> bytes | None:
        # What is called in every request is looked up as no method: that is quicker.
        clock, kept_still, sent_still = self._now, shortcut.kept, shortcut.sent
        started, kept, sent = clock(), kept_still(), sent_still()
        if kept is None or sent is None or self._health.draining:
            return None
        age, body = self._ledger.age_if_fresh(kept), sent.known(shortcut.coding)
        if age is None or body is None:
            return None
        if not self._authenticator.stands(shortcut.principal, shortcut.edition):
            return None
        try:
            limits = self._rate_limit.take(shortcut.principal.username, started)
        except RateLimited:
            return None
        now, request_id = time.time(), request_id or next(self._ids)
        before, after = shortcut.around_id(age, kept.lifetime.fresh_s, now, limits)
        answer = b"".join((before, request_id.encode(), after, body))
        self._ledger.count(_HIT)
        duration, count, log = clock() - started, shortcut.count, shortcut.log
        count(duration)
        log(request_id, duration, now)
        return answer


class Parser:
    """aiohttp's parser without the messages that `answered` has taken care of."""

    def __init__(self, parser: Any, answered: Callable[[Sequence[Any], bool, bytes], bool]) -> None:
        self._parser = parser
        self._answered = answered

    def feed_data(self, data: bytes) -> tuple[Sequence[Any], bool, bytes]:
        """What the parser makes of the data. Raises what it raises."""
        messages, upgraded, tail = self._parser.feed_data(data)
        if self._answered(messages, upgraded, data):
            self._parser.message_consumed()
            return (), False, b""
        return messages, upgraded, tail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


FAST_PATH = web.AppKey("fast_path", FastPath)


def _new_ids() -> Iterator[str]:
    """Ids such as `edge.new_id` makes, many at a time: one by one they cost more than an answer's
    head.
    """
    while True:
        digits = random.getrandbits(64 * 128).to_bytes(64 * 16, "big").hex()
        for start in range(0, len(digits), 32):
            yield digits[start : start + 32]


def _untraced(data: bytes) -> bytes:
    """A head without its first `traceparent`, if that is as `_PER_REQUEST_LINE` wants it: most
    often there is no other such line, and this is quicker.
    """
    before, _, rest = data.partition(b"\r\ntraceparent:")
    value, end, after = rest.partition(b"\r\n")
    return b"".join((before, end, after)) if value.translate(_PLAIN) == value else data


def _key(message: Any) -> tuple[Key, str | None]:
    """What decides the answer to a parsed head, and the id that it may give its answer."""
    deciding, ids = [], []
    for header in message.raw_headers:
        name = header[0].lower()
        if name not in PER_REQUEST:
            deciding.append(header)
        elif name == b"x-request-id":
            ids.append(header[1])
    return (message.path, tuple(deciding)), accepted_id(ids)


def _plain(request: web.Request) -> bool:
    """Whether the request is all in its head, and wishes for nothing that age could change."""
    if request.version != HTTP_1_1 or not request.keep_alive or request.body_exists:
        return False
    return not is_last(request) and not {"Cache-Control", "Expect"} & request.headers.keys()


def _length(key: Key) -> int:
    target, headers = key
    return len(target) + sum(len(name) + len(value) for name, value in headers)
