"""The ledger client: one call, its deadline, and every foreign error translated into one of ours.

The only file with the aiohttp client. It never repeats a call and never follows a redirect.
"""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from gateway.calls import LedgerCall, LedgerReply, judged, outcome_unknown, retry_after
from gateway.config import Ledger
from gateway.errors import (
    GatewayError,
    LedgerBroken,
    LedgerFailing,
    LedgerTimeout,
    LedgerUnreachable,
    UnexpectedAnswer,
)

MAX_CURSOR = 2048
# How much of a compressed answer is unpacked at a time, in bytes.
_INFLATE = 1 << 16
# How long the ledger may take to say that it is well, in seconds, if not less is configured.
_PING_S = 1.0
# More answers than this before the answer (RFC 9110 section 15.2) are nonsense.
_MAX_INTERIM = 10


@dataclass(slots=True)
class Progress:
    """How far a call has come: whether it has a connection, and whether an answer has begun."""

    connected: bool = False
    answered: bool = False


class LedgerClient:
    """Calls one ledger over one session, open while `run` is."""

    def __init__(self, settings: Ledger) -> None:
        self._settings = settings
        self._base = settings.base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Holds the session open."""
        async with _session() as self._session:
            yield

    async def send(self, call: LedgerCall, timeout_s: float) -> LedgerReply:
        """One call, sent at most once, answered within so many seconds.

        Raises `LedgerUnreachable` (certainly not sent), `LedgerTimeout`, `LedgerBroken`, and for a
        write that was sent and not answered `OutcomeUnknown`.
        """
        return judged(await self._exchange(call, timeout_s), call.is_write)

    async def ping(self) -> float:
        """Seconds that `GET /health` took. Raises `GatewayError` if the ledger is not up."""
        if self._session is None or self._session.closed:
            raise LedgerUnreachable("The gateway is starting or ending.")
        call = LedgerCall("GET", "/health", (), "gateway", "health")
        reply = await self._exchange(call, min(_PING_S, self._settings.read_timeout_s))
        if not reply.is_success:
            raise LedgerBroken("The ledger says that it is not well.")
        return reply.elapsed

    async def _exchange(self, call: LedgerCall, timeout_s: float) -> LedgerReply:
        started = time.monotonic()
        progress = Progress()
        try:
            async with self._request(call, progress, timeout_s) as response:
                progress.answered = True
                body = await _body(response, self._settings.max_reply_bytes)
                return _reply(response, body, call.is_write, time.monotonic() - started)
        except _FOREIGN as error:
            raise translated(error, call.is_write, progress) from error

    async def fetch(self, url: str, limit: int, timeout_s: float) -> bytes:
        """A document that is not the ledger's, without any credential. Raises `GatewayError`."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        progress = Progress()
        try:
            async with self._open_session.get(
                URL(url), allow_redirects=False, timeout=timeout, trace_request_ctx=progress
            ) as response:
                if response.status != 200:
                    raise ValueError("not a document")
                return await _body(response, limit)
        except _FOREIGN as error:
            raise translated(error, False, progress) from error

    @property
    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the ledger client is not running")
        return self._session

    def _request(self, call: LedgerCall, progress: Progress, timeout_s: float) -> Any:
        url = URL(self._base + call.path, encoded=True).with_query(call.query or None)
        settings = self._settings
        return self._open_session.request(
            call.method,
            url,
            headers=self._headers(call),
            data=call.body,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=timeout_s,
                connect=settings.connect_timeout_s,
                sock_read=settings.read_timeout_s,
            ),
            trace_request_ctx=progress,
        )

    def _headers(self, call: LedgerCall) -> dict[str, str]:
        headers = {"username": call.username, "X-Request-Id": call.request_id}
        if self._settings.token is not None:
            headers["Authorization"] = f"Bearer {self._settings.token}"
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        if call.idempotency_key is not None:
            headers["Idempotency-Key"] = call.idempotency_key
        return headers


def translated(error: Exception, is_write: bool, progress: Progress) -> GatewayError:
    """Our error for a foreign one.

    Before there is a connection nothing was sent; after that a write may have taken effect.
    """
    late = isinstance(error, TimeoutError)
    if not progress.connected:
        if late and not is_write:
            return LedgerTimeout("The ledger did not accept a connection in time.")
        return LedgerUnreachable("The ledger cannot be reached.", headers={"Retry-After": "1"})
    if is_write:
        return outcome_unknown()
    if late:
        return LedgerTimeout("The ledger did not answer in time.")
    if not progress.answered and isinstance(error, _Broken):
        return LedgerFailing("The ledger broke off before it answered.")
    return LedgerBroken("The ledger broke off or answered nonsense.")


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # How many calls are in flight is bounded before they come here.
        connector=_Connector(limit=0, keepalive_timeout=15),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        skip_auto_headers=("User-Agent",),
        auto_decompress=False,
        trace_configs=[_progress_trace()],
        request_class=_Request,
        middlewares=(_send_once,),
    )


def _progress_trace() -> aiohttp.TraceConfig:
    """Notes in a call's `progress` when it has a connection: from there on it may be sent."""

    async def connecting(_session: object, context: Any, _params: object) -> None:
        # A kept connection may have been found stale: nothing was sent on it.
        context.trace_request_ctx.connected = False

    async def connected(_session: object, context: Any, _params: object) -> None:
        context.trace_request_ctx.connected = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(connecting)
    trace.on_connection_create_end.append(connected)
    trace.on_connection_reuseconn.append(connected)
    return trace


class _Broken(Exception):
    """A dead connection, which aiohttp does not take for a reason to send again."""


_FOREIGN = (_Broken, aiohttp.ClientError, OSError, TimeoutError, ValueError, zlib.error)


class _Connector(aiohttp.TCPConnector):
    """Makes connections that do not hear out interim answers without end, as aiohttp's do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        make: Any = partial(_Protocol, loop=asyncio.get_running_loop())
        self._factory = make


class _Protocol(ResponseHandler):
    async def read(self) -> Any:
        for _ in range(_MAX_INTERIM):
            answer = await super().read()
            if not 100 <= answer[0].code <= 199 or answer[0].code == 101:
                return answer
        raise LedgerBroken("The ledger announces an answer and does not give it.")


class _Stale(Exception):
    """A kept connection on which the ledger said something unasked; nothing was sent on it."""


class _Request(aiohttp.ClientRequest):
    """Sends only where no answer lies waiting: it would be taken for the answer to this request."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        if conn.protocol.should_close:
            raise _Stale
        return await super().send(conn)


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    while True:
        try:
            return await handler(request)
        except _Stale:
            # That connection is closed; the pool has another, or makes one.
            continue
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise _Broken from error


async def _body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole decoded body. Raises `LedgerBroken` over the limit or for an unknown coding."""
    coding = response.headers.get("Content-Encoding", "identity").lower()
    body = bytearray()
    async for chunk in _decoded(response.content.iter_any(), coding):
        body += chunk
        if len(body) > limit:
            body.clear()  # the error's traceback holds it for a while
            raise UnexpectedAnswer("The ledger's answer is too large.")
    return bytes(body)


async def _decoded(chunks: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """The chunks with gzip or deflate undone, a bounded piece at a time."""
    if coding == "identity":
        async for chunk in chunks:
            yield chunk
        return
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError("unknown content coding")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    async for chunk in chunks:
        piece = bytes(_INFLATE)
        while chunk or len(piece) == _INFLATE:
            yield (piece := inflate.decompress(chunk, _INFLATE))
            chunk = inflate.unconsumed_tail
        if inflate.unused_data:
            raise ValueError("something follows the compressed body")
    if not inflate.eof:
        raise ValueError("the compressed body breaks off")


def _reply(
    response: aiohttp.ClientResponse, body: bytes, is_write: bool, elapsed: float
) -> LedgerReply:
    return LedgerReply(
        status=response.status,
        body=body,
        next_cursor=None if is_write else _next_cursor(response),
        replayed=response.headers.get("Idempotency-Replayed", "").lower() == "true",
        retry_after=retry_after(response.headers.get("Retry-After"), time.time()),
        elapsed=elapsed,
        age=_age(response.headers.get("Age", "")),
        cache_control=tuple(response.headers.getall("Cache-Control", ())),
    )


def _age(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _next_cursor(response: aiohttp.ClientResponse) -> str | None:
    """The cursor in the link to the next page; where the link points is never looked at."""
    links = response.links.items()
    link = next((link for rel, link in links if "next" in rel.lower().split()), None)
    if link is None:
        return None
    url = link["url"]
    cursor = url.query.get("cursor") if isinstance(url, URL) else None
    if not cursor or len(cursor) > MAX_CURSOR:
        raise ValueError("a link to the next page without a usable cursor")
    return cursor
