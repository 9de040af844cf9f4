"""The walk: who asks, may they, what do they want, the ledger's answer, what they may see of it."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlencode

from multidict import CIMultiDictProxy

from gateway import rows
from gateway.authn import Authenticator
from gateway.authz import Access, Principal, View, may, own_name, view_of
from gateway.bodies import checked_body, idempotency_key
from gateway.cache import CachedLedger, Reading
from gateway.calls import LedgerCall, outcome_unknown
from gateway.cursors import START, CursorSigner
from gateway.endpoints import Api, Endpoint, Reply, fill
from gateway.errors import Forbidden, InvalidQuery
from gateway.exchange import Answer, Ask
from gateway.pages import Page, limited, pages, rebatched
from gateway.rate_limit import RateLimit
from gateway.refusals import refusal
from gateway.writes import Writes
from schemas.queries import ListQuery, list_query, no_query, parse_query, rate_filters
from schemas.violations import Violations

Pairs = tuple[tuple[str, str], ...]
Q = TypeVar("Q")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of the walk. Times in seconds, pages in rows."""

    hidden_fields: frozenset[str]
    page_size: int
    ttl: dict[Api, float]


@dataclass(frozen=True, slots=True)
class Visit:
    """One request under way, identified and allowed."""

    endpoint: Endpoint
    ask: Ask
    principal: Principal
    access: Access
    params: dict[str, str]
    view: View

    @property
    def mixed(self) -> bool:
        """Whether the list holds rows that the caller must not even know of."""
        return self.access is Access.OWN_ROWS and self.endpoint.own_path is None

    @property
    def tag(self) -> str:
        """What a read depends on and a write changes."""
        return fill(self.endpoint.tag, self.params)


class Walk:
    """Answers every route of the table."""

    def __init__(
        self,
        authenticator: Authenticator,
        rate_limit: RateLimit,
        ledger: CachedLedger,
        writes: Writes,
        signer: CursorSigner,
        rules: Rules,
    ) -> None:
        self._authenticator = authenticator
        self._rate_limit = rate_limit
        self._ledger = ledger
        self._writes = writes
        self._signer = signer
        self._rules = rules

    async def __call__(self, endpoint: Endpoint, ask: Ask) -> Answer:
        """The answer to one request. Raises `GatewayError`."""
        principal = await self._authenticator.authenticate(
            ask.headers, username_required=endpoint.username_required
        )
        ask.trace.principal = principal
        ask.trace.headers = self._rate_limit.take(principal.username, time.monotonic())
        access = may(principal, endpoint.roles)
        params = endpoint.params(ask.raw_path)
        own_name(principal, access, params.get("username"))
        view = view_of(principal, self._rules.hidden_fields)
        visit = Visit(endpoint, ask, principal, access, params, view)
        if endpoint.is_write:
            return await self._write(visit)
        if endpoint.is_list:
            return await self._list(visit)
        return await self._read(visit)

    async def _write(self, visit: Visit) -> Answer:
        endpoint, ask = visit.endpoint, visit.ask
        _query(no_query, ask)
        key = idempotency_key(ask.headers, required=endpoint.idempotency_key_required)
        body = await checked_body(endpoint, ask)
        call = replace(_call(visit, ()), idempotency_key=key, body=body)
        reply, joined = await self._writes.send(call, partial(self._ledger.write, call, visit.tag))
        ask.trace.ledger_time += reply.elapsed
        if not reply.is_success:
            raise refusal(reply, endpoint.api, visit.principal)
        try:
            body = _written(endpoint, reply.body)
        except rows.UnreadableBody as error:
            # It was carried out, or was not: the status alone is no answer to a write.
            raise outcome_unknown() from error
        headers = {"Idempotency-Replayed": "true"} if reply.replayed or joined else {}
        return Answer(endpoint.status, body, headers)

    async def _read(self, visit: Visit) -> Answer:
        """A reply that comes whole: pending deposits, a rate, the rates."""
        allowed = rate_filters if visit.endpoint.reply is Reply.RATES else no_query
        filters = _query(allowed, visit.ask)
        reading = await self._fetch(visit, _call(visit, filters), _PARSERS[visit.endpoint.reply])
        return Answer(200, _shown(visit, reading.value))

    async def _list(self, visit: Visit) -> Answer:
        query = _query(list_query, visit.ask)
        bound = _bound(visit, query)
        if query.cursor is None:
            start = START
        elif query.limit is None:
            raise InvalidQuery("A cursor goes with a limit.", fields={"limit": "missing"})
        else:
            start = self._signer.open(query.cursor, bound)
        size = self._rules.page_size if query.limit is None or visit.mixed else query.limit
        read = partial(self._page, visit, query.filters, size, query.limit is None)
        source = pages(read, start.cursor)
        if query.limit is None:
            return await self._whole(visit, rebatched(source, size) if visit.mixed else source)
        found, position = await limited(source, query.limit, start, mixed=visit.mixed)
        if not found and visit.mixed and start is START:
            raise _not_yours()
        headers = {}
        if position is not None:
            headers["Link"] = _link(visit, query, self._signer.seal(position, bound))
        body = b",".join(rows.shown(found, visit.view.hidden))
        return Answer(200, _envelope(visit.endpoint, b"[" + body + b"]"), headers)

    async def _whole(self, visit: Visit, source: AsyncIterator[Page]) -> Answer:
        """All visible rows: streamed, or at once where the ledger's first page is its last."""
        chunk, more = b"", True
        async for page in source:
            chunk, more = _joined(page, visit.view), page.next_cursor is not None
            if chunk:
                break
        if not chunk and visit.mixed:
            raise _not_yours()
        if more:
            return Answer(200, _stream(visit, chunk, source))
        return Answer(200, _envelope(visit.endpoint, b"[" + chunk + b"]"))

    async def _page(
        self, visit: Visit, filters: Pairs, size: int, streaming: bool, cursor: str | None
    ) -> Page:
        query = (*filters, ("limit", str(size)), *([("cursor", cursor)] if cursor else []))
        # A long list would push everything else out of the cache: of a stream only the head stays.
        keep = cursor is None or not streaming
        reading = await self._fetch(visit, _call(visit, query), rows.read_rows, keep=keep)
        found = reading.value or []
        return Page(cursor, _seen(visit, found), reading.reply.next_cursor)

    async def _fetch(
        self, visit: Visit, call: LedgerCall, parse: Callable[[bytes], V], *, keep: bool = True
    ) -> Reading[V]:
        """What the ledger answered to a read; its refusal is raised."""
        ask, api = visit.ask, visit.endpoint.api
        ttl = self._rules.ttl[api] if keep else 0.0
        reading, known = await self._ledger.read(
            call, parse, visit.tag, ttl, fresh=_wants_fresh(ask.headers)
        )
        reply = reading.reply
        ask.trace.ledger_time += 0.0 if known else reply.elapsed
        ask.trace.cache = "hit" if known else "miss"
        if reply.is_success:
            return reading
        if visit.mixed and reply.status in (404, 410):
            # A 404 beside the 403 for other people's orders would tell which orders exist.
            raise _not_yours()
        raise refusal(reply, api, visit.principal)


def _query(read: Callable[[Pairs], Q], ask: Ask) -> Q:
    try:
        return read(tuple(parse_query(ask.raw_query)))
    except Violations as violations:
        reasons = violations.reasons()
        raise InvalidQuery("The query string breaks a rule.", fields=reasons) from violations


def _bound(visit: Visit, query: ListQuery) -> list[str]:
    """What a cursor is good for: one caller, one route, one set of filters."""
    principal = visit.principal
    pairs = (*visit.params.items(), *query.filters)
    own = [principal.username, principal.role.label, visit.endpoint.name]
    return own + [part for pair in pairs for part in pair]


def _call(visit: Visit, query: Pairs) -> LedgerCall:
    """The call to the ledger, on a path of ours filled with parameters that were checked."""
    endpoint, params = visit.endpoint, visit.params
    template = endpoint.path
    if visit.access is Access.OWN_ROWS and endpoint.own_path is not None:
        template, params = endpoint.own_path, {"username": visit.principal.username}
    return LedgerCall(
        endpoint.method,
        fill(template, params),
        query,
        visit.principal.username,
        visit.ask.trace.request_id,
    )


def _seen(visit: Visit, found: list[rows.Row]) -> list[rows.Row]:
    seen = [row for row in found if rows.passes(row, visit.view)]
    visit.ask.trace.rows_dropped += len(found) - len(seen)
    return seen


_PARSERS: dict[Reply, Callable[[bytes], Any]] = {
    Reply.GROUPS: rows.read_groups,
    Reply.RATES: rows.read_rates,
    Reply.RATE: rows.read_rate,
}


def _shown(visit: Visit, value: Any) -> bytes:
    """What was read of a whole reply, as the caller may see it."""
    if visit.endpoint.reply is not Reply.GROUPS:
        return bytes(value)
    groups = []
    for currency, found in value:
        seen = rows.shown(_seen(visit, found), visit.view.hidden)
        if seen or not found:
            groups.append(currency + b":[" + b",".join(seen) + b"]")
    return _envelope(visit.endpoint, b"{" + b",".join(groups) + b"}")


def _written(endpoint: Endpoint, body: bytes) -> bytes:
    """The body of the answer to a write. Raises `UnreadableBody`."""
    if endpoint.reply is Reply.NOTHING:
        return b""
    if endpoint.reply is Reply.RATE:
        return rows.read_rate(body)
    return _envelope(endpoint, rows.read_row(body))


def _envelope(endpoint: Endpoint, data: bytes) -> bytes:
    return b'{"api_message":"%b","api_data":%b}' % (endpoint.message.encode(), data)


def _joined(page: Page, view: View) -> bytes:
    return b",".join(rows.shown(page.rows, view.hidden))


async def _stream(visit: Visit, first: bytes, source: AsyncIterator[Page]) -> AsyncIterator[bytes]:
    """The envelope around all chunks; it is closed only when the last page has come."""
    opening, closing = _envelope(visit.endpoint, b"[]").split(b"]", 1)
    yield opening + first
    async for page in source:
        chunk = _joined(page, visit.view)
        if chunk:
            yield b"," + chunk
    yield b"]" + closing


def _link(visit: Visit, query: ListQuery, cursor: str) -> str:
    """The link to the next page (RFC 8288), relative: no header of the request shows in it."""
    path = fill(visit.endpoint.path, visit.params)
    pairs = (*query.filters, ("limit", str(query.limit)), ("cursor", cursor))
    return f'<{path}?{urlencode(pairs)}>; rel="next"'


def _wants_fresh(headers: CIMultiDictProxy[str]) -> bool:
    directives = ",".join(headers.getall("Cache-Control", [])).lower()
    return "no-cache" in directives or "no-store" in directives


def _not_yours() -> Forbidden:
    """One answer for orders of others and orders of nobody."""
    return Forbidden("None of this order's rows are yours.")
