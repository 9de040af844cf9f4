"""A caller's connection: how slow it may be, and what it hears when it does not speak HTTP."""

import asyncio
import json
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from gateway import logs
from gateway.edge import new_id, without_odd_expectations
from gateway.endpoints import Api
from gateway.errors import GatewayError, InvalidRequest
from gateway.exchange import Trace
from gateway.fast_path import FastPath, Parser
from gateway.metrics import Metrics

Options = Mapping[str, Any]
# While the listener closes: how long a caller is silent, just connected or just answered, before
# nothing more is expected of them.
_EXPECTED_S = 1.0
# How long an answer may take to begin before a caller who sends no more is thought to have left.
_LEFT_S = 1.0
_PACE_S = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """What callers of one listener may take. Times in seconds."""

    max_connections: int
    head_timeout_s: float
    idle_timeout_s: float
    shutdown_timeout_s: float


DEFAULTS = Limits(
    max_connections=1000, head_timeout_s=15.0, idle_timeout_s=75.0, shutdown_timeout_s=1.0
)


class Connections:
    """Makes the protocol of each connection of one listener, and knows which are open.

    What comes on them and is no request is logged, and counted in `metrics`, if there are any;
    what was answered before is answered by the `fast_path`, if there is one.
    """

    def __init__(
        self,
        server: web.Server,
        limits: Limits,
        options: Options,
        metrics: Metrics | None = None,
        fast_path: FastPath | None = None,
    ) -> None:
        server.request_factory = without_odd_expectations(server.request_factory)
        self._server = server
        self._options = options
        self._metrics = metrics
        self.fast_path = fast_path
        self.limits = limits
        self.open: set[Connection] = set()

    def __call__(self) -> "Connection":
        return Connection(self._server, self, self._options)

    def note(self, trace: Trace, status: int) -> None:
        """Logs and counts the answer to what was no request."""
        if self._metrics is not None:
            logs.log_request(trace, "UNKNOWN", status)
            self._metrics.started()
            self._metrics.finished(trace, "UNKNOWN", status)

    async def settle(self) -> None:
        """Returns when no request is under way; at the latest when the time to finish is over.

        What is idle then is closed in the same turn of the loop: a request that comes later is not
        read, and so not carried out.
        """
        begun = time.monotonic()
        while time.monotonic() - begun < self.limits.shutdown_timeout_s:
            # First of all, as callers who were accepted in this turn are in `open` in a later one.
            await asyncio.sleep(_PACE_S)
            if not any(one.busy or one.expected for one in self.open) and not self._unread():
                break
        for one in [one for one in self.open if not one.busy]:
            one.force_close()

    def _unread(self) -> bool:
        """Whether something has come that the loop has had no turn to read."""
        poll = select.poll()
        for one in self.open:
            if one.transport is not None:
                poll.register(one.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))


class Connection(web.RequestHandler):
    """aiohttp's connection, with a deadline for request heads and errors in the API's form."""

    __slots__ = ("_connections", "_fast_path", "_head_deadline", "_last_body", "_whole", "new")

    def __init__(
        self, server: web.Server, connections: Connections, options: Mapping[str, Any]
    ) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._connections = connections
        self._head_deadline: asyncio.TimerHandle | None = None
        self._fast_path = connections.fast_path
        # Whether it is known that all which came so far was whole: the next byte begins a head.
        self._whole = self._fast_path is not None
        if self._fast_path is not None:
            self._parser: Any = Parser(self._parser, self._answered)
        self._last_body: StreamReader = EMPTY_PAYLOAD
        # Whether nothing has come yet.
        self.new = True

    @property
    def busy(self) -> bool:
        """Whether a request has begun to come, or its answer has not all gone out."""
        if self.new:
            return False
        if self.transport is None or self._waiter is None or self._waiter.done():
            return True
        return self._head_deadline is not None or self.transport.get_write_buffer_size() > 0

    @property
    def expected(self) -> bool:
        """Whether the caller, who was not told to go, was silent for a moment only."""
        silent_since = self._next_keepalive_close_time - self.keepalive_timeout
        return asyncio.get_running_loop().time() - silent_since < _EXPECTED_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turns connections over the limit away; gives up on callers who do not read."""
        self._connections.open.add(self)
        super().connection_made(transport)
        if len(self._connections.open) > self._connections.limits.max_connections:
            self.force_close()
            return
        _bound_unread(transport, self._connections.limits.idle_timeout_s)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Makes room for another."""
        self._connections.open.discard(self)
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Starts the clock with the first byte of a head, stops it with the last."""
        self.new = False
        if self._whole and self._fast_path is not None and self._idle():
            answer = self._fast_path.by_head(data)
            if answer is not None:
                self._send(answer)
                return
        super().data_received(data)
        if self._messages:
            self._last_body = self._messages[-1][1]
        self._break_off()
        if self._messages or self._current_request is not None:
            self._head_came()
        elif self._waiter is not None and not self._whole:
            self._await_head()

    # asyncio and uvloop ask for an answer, of which aiohttp knows nothing.
    def eof_received(self) -> bool:  # type: ignore[override]
        """Gives a caller who has sent all that they will a moment to be answered in: they may still
        read. Whether they do, or have left, shows only when something is sent to them.
        """
        idle = self.new or (self._waiter is not None and not self._waiter.done())
        if idle or not self._last_body.is_eof():
            return False
        self._loop.call_later(_LEFT_S, self._abandon)
        if not self._messages:
            self.close()
            return True
        message, body = self._messages[-1]
        # To close now would leave those unanswered that wait behind the one under way.
        if not isinstance(message, _ErrInfo):
            self._messages[-1] = message._replace(should_close=True), body
        return True

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Has the parser go on where it paused: aiohttp asks for that with each chunk it takes."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The last answer on a connection that is not HTTP; nothing of the input is quoted."""
        error: GatewayError = InvalidRequest("This is not a well-formed HTTP request.")
        if status >= 500:
            error = GatewayError("Something went wrong here.")
        trace = Trace(new_id(), time.monotonic(), "unparsed", code=error.code)
        body = json.dumps(Api.LEDGER.error_body(error, trace.request_id)).encode()
        headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "Server": "ledger-gateway",
            "X-Content-Type-Options": "nosniff",
            "X-Request-Id": trace.request_id,
        }
        if status < 500:
            # What went wrong within a request was logged there.
            trace.bytes_sent = len(body)
            self._connections.note(trace, error.status)
        response = web.Response(status=error.status, body=body, headers=headers)
        response.force_close()
        return response

    def _idle(self) -> bool:
        """Whether the connection is between requests, and all answers have gone out."""
        waiter, transport = self._waiter, self.transport
        return (
            waiter is not None
            and transport is not None
            and not (waiter.done() or self._messages or self._upgraded)
            and not (self._close or self._force_close)
            and transport.get_write_buffer_size() == 0
        )

    def _answered(self, messages: Sequence[Any], upgraded: bool, data: bytes) -> bool:
        """Whether what was parsed from the data is one request, and was answered right here."""
        alone = len(messages) == 1 and not upgraded and messages[0][1] is EMPTY_PAYLOAD
        began_whole, self._whole = self._whole, alone and data.endswith(b"\r\n\r\n")
        if not alone or self._fast_path is None or not self._idle():
            return False
        head = data if began_whole and self._whole else None
        answer = self._fast_path.by_message(messages[0][0], head)
        if answer is not None:
            self._send(answer)
        return answer is not None

    def _send(self, answer: bytes) -> None:
        if self._head_deadline is not None:
            self._head_came()
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self.transport is not None:
            self.transport.write(answer)

    def _break_off(self) -> None:
        """Ends the body of the request under way when the rest of it cannot be parsed: aiohttp
        would wait for it.
        """
        request = self._current_request
        if not self._messages or request is None or request.content.is_eof():
            return
        if isinstance(self._messages[-1][0], _ErrInfo):
            request.content.set_exception(web.RequestPayloadError("not well-formed"))
            request.content.feed_eof()

    def _await_head(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = asyncio.get_running_loop().call_later(
                self._connections.limits.head_timeout_s, self._give_up
            )

    def _head_came(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _abandon(self) -> None:
        request = self._current_request
        if request is not None and not request.writer.output_size:
            self.force_close()

    def _give_up(self) -> None:
        self._head_deadline = None
        self.force_close()


def _bound_unread(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Has the kernel drop the connection when what was sent stays unread for so long (RFC 5482)."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if connection is not None and option is not None:
        connection.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
