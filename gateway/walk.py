"""The walk: who asks, may they, what do they want, the ledger's answer, what they may see of it."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import msgspec

from gateway import rows, views
from gateway.authn import Authenticator
from gateway.authz import Access, Principal, View, may, own_name, view_of
from gateway.batches import RowIndex, Rows
from gateway.bodies import check_unconditional, checked_body, idempotency_key
from gateway.cache import CachedLedger
from gateway.calls import LedgerCall, outcome_unknown
from gateway.cursors import START, CursorSigner, Position
from gateway.endpoints import Api, Endpoint, Reply, fill
from gateway.errors import Forbidden, InvalidQuery
from gateway.exchange import Answer, Ask
from gateway.freshness import Lifetime, Wishes, wishes
from gateway.kept import Found, Outcome
from gateway.pages import Page, Patience, limited, pages, rebatched
from gateway.queries import Pairs, understood
from gateway.rate_limit import RateLimit
from gateway.refusals import refusal
from gateway.representations import Representation, represent
from gateway.writes import Writes
from schemas.queries import ListQuery, list_query, no_query, rate_filters


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of the walk. Times in seconds, pages in rows."""

    hidden_fields: frozenset[str]
    page_size: int
    total_s: float
    lifetimes: dict[Api, Lifetime]


class Visit(msgspec.Struct, frozen=True):
    """One request under way, identified and allowed."""

    endpoint: Endpoint
    ask: Ask
    principal: Principal
    access: Access
    params: dict[str, str]
    view: View
    wish: Wishes

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
        ask.trace.principal, ask.trace.edition = principal, self._authenticator.edition
        ask.trace.headers = self._rate_limit.take(principal.username, time.monotonic())
        access = may(principal, endpoint.roles)
        params = endpoint.params(ask.raw_path)
        own_name(principal, access, params.get("username"))
        view = view_of(principal, self._rules.hidden_fields)
        wish = wishes(ask.headers)
        visit = Visit(endpoint, ask, principal, access, params, view, wish)
        if endpoint.is_write:
            return await self._write(visit)
        if endpoint.is_list:
            return await self._list(visit)
        return await self._read(visit)

    async def _write(self, visit: Visit) -> Answer:
        endpoint, ask = visit.endpoint, visit.ask
        understood(no_query, ask.raw_query)
        check_unconditional(ask.headers)
        key = idempotency_key(ask.headers, required=endpoint.idempotency_key_required)
        body = await checked_body(endpoint, ask)
        call = msgspec.structs.replace(_call(visit, ()), idempotency_key=key, body=body)
        reply, joined = await self._writes.send(call, partial(self._ledger.write, call, visit.tag))
        ask.trace.ledger_time += reply.elapsed
        if not reply.is_success:
            raise refusal(reply, endpoint.api, visit.principal)
        try:
            body = views.written(endpoint, reply.body)
        except rows.UnreadableBody as error:
            # It was carried out, or was not: the status alone is no answer to a write.
            raise outcome_unknown() from error
        headers = {"Idempotency-Replayed": "true"} if reply.replayed or joined else {}
        return Answer(endpoint.status, body, headers)

    async def _read(self, visit: Visit) -> Answer:
        """A reply that comes whole: pending deposits, a rate, the rates."""
        allowed = rate_filters if visit.endpoint.reply is Reply.RATES else no_query
        filters = understood(allowed, visit.ask.raw_query)
        return await _whole(visit, await self._fetch(visit, _call(visit, filters)))

    async def _list(self, visit: Visit) -> Answer:
        query = understood(list_query, visit.ask.raw_query)
        start = self._start(visit, query)
        size = self._rules.page_size if query.limit is None or visit.mixed else query.limit
        read = partial(self._page, visit, query, size)
        found = await read(start.cursor)
        if start.after is None and _suffices(found, query.limit, visit):
            cursor = found.reading.reply.next_cursor
            position = Position(cursor) if cursor is not None else None
            return await _whole(visit, found, self._linked(visit, query, position))
        patience = Patience(self._rules.total_s, lasting=query.limit is None)
        following = partial(_next_page, visit, read, patience)
        source = pages(following, _page(visit, found, start.cursor))
        if query.limit is None:
            return await _streamed(visit, rebatched(source, size) if visit.mixed else source)
        seen, position = await limited(source, query.limit, start, mixed=visit.mixed)
        if not seen and visit.mixed and start is START:
            raise _not_yours()
        body = await views.of_rows(visit.endpoint, seen, visit.view)
        return Answer(200, await represent(body), self._linked(visit, query, position))

    def _linked(self, visit: Visit, query: ListQuery, position: Position | None) -> dict[str, str]:
        """The headers that lead on from a page."""
        if position is None:
            return {}
        return {"Link": _link(visit, query, self._signer.seal(position, _bound(visit, query)))}

    def _start(self, visit: Visit, query: ListQuery) -> Position:
        if query.cursor is None:
            return START
        if query.limit is None:
            raise InvalidQuery("A cursor goes with a limit.", fields={"limit": "missing"})
        return self._signer.open(query.cursor, _bound(visit, query))

    async def _page(
        self, visit: Visit, query: ListQuery, size: int, cursor: str | None
    ) -> Found[RowIndex]:
        pairs = (*query.filters, ("limit", str(size)), *([("cursor", cursor)] if cursor else []))
        # A long list would push everything else out of the cache: of a stream only the head stays.
        keep = cursor is None or query.limit is not None
        return await self._fetch(visit, _call(visit, pairs), keep=keep)

    async def _fetch(self, visit: Visit, call: LedgerCall, *, keep: bool = True) -> Found[Any]:
        """What the ledger answered to a read; its refusal is raised."""
        trace, endpoint = visit.ask.trace, visit.endpoint
        lifetime = self._rules.lifetimes[endpoint.api] if keep else Lifetime(0.0)
        reader = views.READERS[endpoint.reply]
        found = await self._ledger.read(call, reader, visit.tag, lifetime, visit.wish)
        reply = found.reading.reply
        if trace.found is None or not visit.mixed:
            # In a list that is mixed, later pages would tell how many rows are somebody else's.
            trace.heed(found)
        trace.ledger_time += reply.elapsed if found.outcome is Outcome.MISS else 0.0
        if reply.is_success:
            return found
        if visit.mixed and reply.status in (404, 410):
            # A 404 beside the 403 for other people's orders would tell which orders exist.
            raise _not_yours()
        raise refusal(reply, endpoint.api, visit.principal)


async def _whole(
    visit: Visit, found: Found[Any], headers: Mapping[str, str] = MappingProxyType({})
) -> Answer:
    """The answer from all of one reply; its body is made once for all who may see the same."""
    endpoint, kept = visit.endpoint, found.kept
    # Everybody sees the same of rates.
    name = (endpoint.name, visit.view if endpoint.api is Api.LEDGER else None)
    make = partial(_represented, visit, found)
    representation = await (kept.view(name, make) if kept is not None else make())
    visit.ask.trace.rows_dropped += representation.dropped
    return Answer(200, representation, headers)


async def _represented(visit: Visit, found: Found[Any]) -> Representation:
    """What the caller may see of all of one reply."""
    value: Any = found.reading.value
    body, dropped = await views.shown(visit.endpoint, value, visit.view)
    if visit.mixed and dropped == rows.rows_in(value):
        visit.ask.trace.rows_dropped += dropped
        raise _not_yours()
    return await represent(body, dropped)


async def _streamed(visit: Visit, source: AsyncIterator[Page]) -> Answer:
    """All visible rows: in chunks, or at once where they are on the last page or on none."""
    seen: Rows | list[bytes] = []
    async for page in source:
        seen = page.rows
        if seen and page.next_cursor is not None:
            return Answer(200, views.stream(visit.endpoint, visit.view, seen, source))
        if seen:
            break
    if visit.mixed and not seen:
        raise _not_yours()
    body = await views.of_rows(visit.endpoint, seen, visit.view)
    return Answer(200, await represent(body))


def _suffices(found: Found[RowIndex], limit: int | None, visit: Visit) -> bool:
    """Whether this one reply is all that is asked for: the last page, or just one page."""
    reading = found.reading
    if limit is None:
        return reading.reply.next_cursor is None
    count = 0 if reading.value is None else len(reading.value.seen(visit.view))
    if reading.reply.next_cursor is None:
        return count <= limit
    return count == limit and not visit.mixed


async def _next_page(
    visit: Visit,
    read: Callable[[str | None], Awaitable[Found[RowIndex]]],
    patience: Patience,
    cursor: str,
) -> Page:
    if visit.ask.gone():
        raise ConnectionResetError
    page = _page(visit, await read(cursor), cursor)
    patience.spend(found=bool(page.rows))
    return page


def _page(visit: Visit, found: Found[RowIndex], cursor: str | None) -> Page:
    """The part of a page that may be seen; what may not is counted."""
    index = found.reading.value or RowIndex()
    seen = index.seen(visit.view)
    visit.ask.trace.rows_dropped += len(index) - len(seen)
    return Page(cursor, seen, found.reading.reply.next_cursor)


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


def _link(visit: Visit, query: ListQuery, cursor: str) -> str:
    """The link to the next page (RFC 8288), relative: no header of the request shows in it."""
    path = fill(visit.endpoint.path, visit.params)
    pairs = (*query.filters, ("limit", str(query.limit)), ("cursor", cursor))
    return f'<{path}?{urlencode(pairs)}>; rel="next"'


def _not_yours() -> Forbidden:
    """One answer for orders of others and orders of nobody."""
    return Forbidden("None of this order's rows are yours.")
