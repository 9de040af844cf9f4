"""Lists: the ledger's pages one after the other, shown whole or a page at a time.

At most one page is held, however long the list is. What describes a page (its length, whether more
follow) is computed from the rows that the caller may see.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from gateway.batches import Rows
from gateway.cursors import Position
from gateway.errors import InvalidCursor, LedgerBroken, LedgerTimeout
from gateway.rows import identity


@dataclass(frozen=True, slots=True)
class Page:
    """The visible rows of a page, the cursor that fetched it and the one that fetches the next."""

    cursor: str | None
    rows: Rows | list[bytes]
    next_cursor: str | None


ReadPage = Callable[[str], Awaitable[Page]]


async def pages(read: ReadPage, page: Page) -> AsyncIterator[Page]:
    """This page and those behind it. Raises `LedgerBroken` if the ledger leads in a circle."""
    waymark, steps, limit = page.cursor, 0, 1
    while True:
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return
        if cursor == waymark:
            raise LedgerBroken("The ledger's pages lead in a circle.")
        # Brent's cycle detection: one remembered cursor finds a circle of any length.
        steps += 1
        if steps == limit:
            waymark, steps, limit = cursor, 0, limit * 2
        del page
        page = await read(cursor)


class Patience:
    """How long a list may be looked for in the ledger's pages: so many seconds, and where it is
    `lasting` as long again whenever something of it is found.
    """

    def __init__(
        self, seconds: float, *, lasting: bool, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._lasting = lasting
        self._now = now
        self._until = now() + seconds

    def spend(self, *, found: bool) -> None:
        """Raises `LedgerTimeout` when there is none left."""
        if found and self._lasting:
            self._until = self._now() + self._seconds
        if self._now() >= self._until:
            raise LedgerTimeout("The ledger did not come to the end of the list in time.")


async def in_turns(rows: Rows | list[bytes]) -> AsyncIterator[list[bytes]]:
    """So many of the rows at a time as can be cut out in a moment; others get their turn in
    between.
    """
    batches = rows.batches() if isinstance(rows, Rows) else [rows]
    for count, batch in enumerate(batches):
        if count:
            await asyncio.sleep(0)
        yield batch


async def rebatched(source: AsyncIterator[Page], size: int) -> AsyncIterator[Page]:
    """The same rows in pages of `size` of them: where the ledger cut its own, with other people's
    rows between, must not show. The last page, and no other, has no next cursor.
    """
    left: list[bytes] = []
    async for page in source:
        async for rows in in_turns(page.rows):
            left += rows
            whole = range(0, len(left) - size, size)
            for start in whole:
                yield Page(None, left[start : start + size], "more")
            del left[: len(whole) * size]
        del page
    yield Page(None, left, None)


async def limited(
    source: AsyncIterator[Page], limit: int, start: Position, *, mixed: bool
) -> tuple[list[bytes], Position | None]:
    """At most `limit` visible rows from `start`, and where more follow, if they do.

    In a list that is `mixed` the ledger's cursors would tell of other people's rows: positions are
    then marks of rows that the caller may see, looked for from the beginning.
    """
    found: list[bytes] = []
    after = start.after
    async for page in source:
        async for part in in_turns(page.rows):
            rows, after = _beyond(part, after)
            found += islice(rows, limit + 1 - len(found))
            if len(found) > limit:
                last = mark(found[limit - 1])
                return found[:limit], Position(None if mixed else page.cursor, last)
        if len(found) == limit and not mixed:
            return found, Position(page.next_cursor) if page.next_cursor is not None else None
        del page
    if after is not None:
        raise InvalidCursor("The row that the cursor points at is no longer in the list.")
    return found, None


def mark(row: bytes) -> str:
    """What a cursor remembers of a row: a digest of its id, or of all of it if it has none."""
    digest = hashlib.sha256(identity(row)).digest()[:15]
    return base64.urlsafe_b64encode(digest).decode()


def _beyond(rows: Iterable[bytes], after: str | None) -> tuple[Iterator[bytes], str | None]:
    """The rows behind the marked one; none, and the mark again, if it is not among them."""
    left = iter(rows)
    if after is None or any(mark(row) == after for row in left):
        return left, None
    return left, after
