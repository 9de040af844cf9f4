"""The ledger client: one call, its deadline, and every foreign error translated into one of ours.

It never repeats a call and never follows a redirect.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote_plus

from yarl import URL

from gateway.calls import LedgerCall, LedgerReply, judged, next_link, outcome_unknown, retry_after
from gateway.config import Ledger
from gateway.errors import (
    GatewayError,
    LedgerBroken,
    LedgerFailing,
    LedgerTimeout,
    LedgerUnreachable,
)
from gateway.upstream import ENDED, FOREIGN, Origin, Progress, Response, Upstream, request

MAX_CURSOR = 2048
# How long the ledger may take to say that it is well, in seconds, if not less is configured.
_PING_S = 1.0
_ACCEPT = {"Accept": "application/json", "Accept-Encoding": "identity"}


class LedgerClient:
    """Calls one ledger over connections that are kept while `run` is."""

    def __init__(self, settings: Ledger) -> None:
        url = URL(settings.base_url.rstrip("/"), encoded=True)
        self._settings = settings
        self._prefix = url.raw_path.rstrip("/")
        self._origin = Origin(url, settings.connect_timeout_s, settings.read_timeout_s)
        self._upstream = Upstream()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Keeps the connections."""
        async with self._upstream.run():
            yield

    async def send(self, call: LedgerCall, timeout_s: float) -> LedgerReply:
        """One call, sent at most once, answered within so many seconds.

        Raises `LedgerUnreachable` (certainly not sent), `LedgerTimeout`, `LedgerBroken`, and for a
        write that was sent and not answered `OutcomeUnknown`. Raises `ValueError`, and sends
        nothing, if something in the call does not belong in the head of a request.
        """
        return judged(await self._exchange(call, timeout_s), call.is_write)

    async def ping(self) -> float:
        """Seconds that `GET /health` took. Raises `GatewayError` if the ledger is not up."""
        call = LedgerCall("GET", "/health", (), "gateway", "health")
        reply = await self._exchange(call, min(_PING_S, self._settings.read_timeout_s))
        if not reply.is_success:
            raise LedgerBroken("The ledger says that it is not well.")
        return reply.elapsed

    async def _exchange(self, call: LedgerCall, timeout_s: float) -> LedgerReply:
        started = time.monotonic()
        asked = request(call.method, self._target(call), self._headers(call), call.body)
        progress = Progress()
        try:
            response = await self._upstream.exchange(
                self._origin, asked, self._settings.max_reply_bytes, timeout_s, progress
            )
            return _reply(response, call.is_write, time.monotonic() - started)
        except FOREIGN as error:
            raise translated(error, call.is_write, progress) from error

    async def fetch(self, url: str, limit: int, timeout_s: float) -> bytes:
        """A document that is not the ledger's, without any credential. Raises `GatewayError`."""
        progress = Progress()
        try:
            there = URL(url)
            server = Origin(there, timeout_s, timeout_s)
            asked = request("GET", there.raw_path_qs, {"Host": server.host, **_ACCEPT}, None)
            response = await self._upstream.exchange(server, asked, limit, timeout_s, progress)
            if response.status != 200:
                raise ValueError("not a document")
            return response.body
        except FOREIGN as error:
            raise translated(error, False, progress) from error

    def _target(self, call: LedgerCall) -> str:
        path = self._prefix + call.path
        if not call.query:
            return path
        return f"{path}?{'&'.join([f'{_quoted(key)}={_quoted(text)}' for key, text in call.query])}"

    def _headers(self, call: LedgerCall) -> dict[str, str]:
        headers = {"Host": self._origin.host, **_ACCEPT}
        headers |= {"username": call.username, "X-Request-Id": call.request_id}
        if self._settings.token is not None:
            headers["Authorization"] = f"Bearer {self._settings.token}"
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        if call.idempotency_key is not None:
            headers["Idempotency-Key"] = call.idempotency_key
        return headers


def _quoted(text: str) -> str:
    """A name or value as it stands in a query."""
    if text.isascii() and text.isalnum():
        return text
    return quote_plus(text, "?/:@!$'()*,", errors="ignore")


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
    if not progress.answered and isinstance(error, ENDED):
        return LedgerFailing("The ledger broke off before it answered.")
    return LedgerBroken("The ledger broke off or answered nonsense.")


def _reply(response: Response, is_write: bool, elapsed: float) -> LedgerReply:
    headers = response.headers
    links = () if is_write else headers.getall("Link", ())
    wait = headers.get("Retry-After")
    return LedgerReply(
        status=response.status,
        body=response.body,
        next_cursor=_next_cursor(", ".join(links)) if links else None,
        replayed=headers.get("Idempotency-Replayed", "").lower() == "true",
        retry_after=None if wait is None else retry_after(wait, time.time()),
        elapsed=elapsed,
        age=_age(headers.get("Age", "")),
        cache_control=tuple(headers.getall("Cache-Control", ())),
    )


def _age(said: str) -> float:
    # RFC 9111 section 5.1 has the first of a list taken, section 1.2.2 this for what is larger.
    text = said.partition(",")[0].strip()
    return min(float(text), 2.0**31) if text.isascii() and text.isdigit() else 0.0


def _next_cursor(links: str) -> str | None:
    """The cursor in the link to the next page; where the link points is never looked at."""
    link = next_link(links)
    if link is None:
        return None
    cursor = URL(link).query.get("cursor")
    if not cursor or len(cursor) > MAX_CURSOR:
        raise ValueError("a link to the next page without a usable cursor")
    return cursor
