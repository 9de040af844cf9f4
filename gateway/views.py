"""What a reply becomes for those who may see a part of it: the API's envelope around the
ledger's own bytes. Pure; no I/O.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any

from gateway import rows
from gateway.authz import View
from gateway.batches import RowIndex, Rows
from gateway.endpoints import Endpoint, Reply
from gateway.pages import Page, in_turns

# So many of a reply's groups are shown at a time.
_GROUPS = 200
# More text at a time than this, in bytes, is left to a thread.
_LARGE = 1 << 20


async def _rate(body: bytes) -> bytes:
    return rows.read_rate(body)


# How a successful reply to a read is taken apart; each raises `UnreadableBody`.
READERS: dict[Reply, Callable[[bytes], Awaitable[Any]]] = {
    Reply.ROWS: rows.read_rows,
    Reply.GROUPS: rows.read_groups,
    Reply.RATES: rows.read_rates,
    Reply.RATE: _rate,
}


async def shown(endpoint: Endpoint, value: Any, view: View) -> tuple[bytes, int]:
    """The body of an answer from a whole reply, and how many of its rows are not in it.

    Others get their turn in between, however many rows there are.
    """
    if endpoint.reply is Reply.ROWS:
        seen = value.seen(view)
        return await of_rows(endpoint, seen, view), len(value) - len(seen)
    if endpoint.reply is Reply.GROUPS:
        return await _of_groups(endpoint, value, view)
    return value, 0


async def of_rows(endpoint: Endpoint, seen: Rows | list[bytes], view: View) -> bytes:
    """The body of an answer that is a list."""
    return _in_brackets(endpoint, await _in_turns(seen, view))


def written(endpoint: Endpoint, body: bytes) -> bytes:
    """The body of the answer to a write. Raises `UnreadableBody`."""
    if endpoint.reply is Reply.NOTHING:
        if body:
            rows.read_rate(body)
        return b""
    if endpoint.reply is Reply.RATE:
        return rows.read_rate(body)
    return _enveloped(endpoint.message, rows.read_row(body))


def _enveloped(message: str, data: bytes) -> bytes:
    """The envelope of the ledger API around a JSON text."""
    return b'{"api_message":"%b","api_data":%b}' % (message.encode(), data)


async def stream(
    endpoint: Endpoint, view: View, first: Rows | list[bytes], source: AsyncIterator[Page]
) -> AsyncIterator[bytes]:
    """The envelope around all rows; it is closed only when the last page has come."""
    before, closing = _brackets(endpoint.message)
    async for text in _texts(first, view):
        yield before + text
        before = b","
    del first  # at most one page is held
    async for page in source:
        async for text in _texts(page.rows, view):
            yield before + text
            before = b","
        del page
    yield closing if before == b"," else before + closing


async def _of_groups(
    endpoint: Endpoint, groups: list[tuple[bytes, RowIndex]], view: View
) -> tuple[bytes, int]:
    """A group of which nothing may be seen is left out: its currency, too, is somebody else's."""
    kept, dropped = [], 0
    for count, (currency, index) in enumerate(groups):
        if count % _GROUPS == 0:
            await asyncio.sleep(0)
        seen = index.seen(view)
        dropped += len(index) - len(seen)
        if seen or not index:
            texts = await _in_turns(seen, view) if seen else []
            kept.append(currency + b":[" + b",".join(texts) + b"]")
    return _enveloped(endpoint.message, b"{" + b",".join(kept) + b"}"), dropped


async def _in_turns(seen: Rows | list[bytes], view: View) -> list[bytes]:
    """The rows, those of a batch as one text."""
    return [text async for text in _texts(seen, view)]


async def _texts(seen: Rows | list[bytes], view: View) -> AsyncIterator[bytes]:
    async for batch in in_turns(seen):
        if view.hidden and sum(map(len, batch)) > _LARGE:
            # A long row is edited in one go.
            yield await asyncio.to_thread(rows.shown, batch, view.hidden)
        elif batch:
            yield rows.shown(batch, view.hidden)


def _in_brackets(endpoint: Endpoint, texts: list[bytes]) -> bytes:
    opening, closing = _brackets(endpoint.message)
    if not texts:
        return opening + closing
    # A long list is copied once.
    texts[0] = opening + texts[0]
    texts[-1] += closing
    return b",".join(texts)


@cache
def _brackets(message: str) -> tuple[bytes, bytes]:
    """What stands before and behind the rows."""
    opening, closing = _enveloped(message, b"[]").split(b"]", 1)
    return opening, b"]" + closing
