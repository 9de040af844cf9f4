"""What a reply becomes for those who may see a part of it: the API's envelope around the
ledger's own bytes. Pure; no I/O.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from gateway import rows
from gateway.authz import View
from gateway.endpoints import Endpoint, Reply
from gateway.pages import Page


async def _groups(body: bytes) -> list[tuple[bytes, rows.RowIndex]]:
    return rows.read_groups(body)


async def _rate(body: bytes) -> bytes:
    return rows.read_rate(body)


async def _rates(body: bytes) -> bytes:
    return rows.read_rates(body)


# How a successful reply to a read is taken apart; each raises `UnreadableBody`.
READERS: dict[Reply, Callable[[bytes], Awaitable[Any]]] = {
    Reply.ROWS: rows.read_rows,
    Reply.GROUPS: _groups,
    Reply.RATES: _rates,
    Reply.RATE: _rate,
}


def shown(endpoint: Endpoint, value: Any, view: View) -> tuple[bytes, int]:
    """The body of an answer from a whole reply, and how many of its rows are not in it."""
    if endpoint.reply is Reply.ROWS:
        seen = value.seen(view)
        return of_rows(endpoint, seen, view), len(value.rows) - len(seen)
    if endpoint.reply is Reply.GROUPS:
        return _of_groups(endpoint, value, view)
    return value, 0


def of_rows(endpoint: Endpoint, seen: list[rows.Row], view: View) -> bytes:
    """The body of an answer that is a list."""
    return enveloped(endpoint, b"[" + _joined(seen, view) + b"]")


def written(endpoint: Endpoint, body: bytes) -> bytes:
    """The body of the answer to a write. Raises `UnreadableBody`."""
    if endpoint.reply is Reply.NOTHING:
        if body:
            rows.read_rate(body)
        return b""
    if endpoint.reply is Reply.RATE:
        return rows.read_rate(body)
    return enveloped(endpoint, rows.read_row(body))


def enveloped(endpoint: Endpoint, data: bytes) -> bytes:
    """The envelope of the ledger API around a JSON text."""
    return b'{"api_message":"%b","api_data":%b}' % (endpoint.message.encode(), data)


async def stream(
    endpoint: Endpoint, view: View, first: list[rows.Row], source: AsyncIterator[Page]
) -> AsyncIterator[bytes]:
    """The envelope around all rows; it is closed only when the last page has come."""
    opening, closing = enveloped(endpoint, b"[]").split(b"]", 1)
    yield opening + _joined(first, view)
    del first  # at most one page is held
    async for page in source:
        chunk = _joined(page.rows, view)
        if chunk:
            yield b"," + chunk
    yield b"]" + closing


def _of_groups(
    endpoint: Endpoint, groups: list[tuple[bytes, rows.RowIndex]], view: View
) -> tuple[bytes, int]:
    """A group of which nothing may be seen is left out: its currency, too, is somebody else's."""
    kept, dropped = [], 0
    for currency, index in groups:
        seen = index.seen(view)
        dropped += len(index.rows) - len(seen)
        if seen or not index.rows:
            kept.append(currency + b":[" + _joined(seen, view) + b"]")
    return enveloped(endpoint, b"{" + b",".join(kept) + b"}"), dropped


def _joined(seen: list[rows.Row], view: View) -> bytes:
    return b",".join(rows.shown(seen, view.hidden))
