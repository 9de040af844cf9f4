"""Which rows, how many, and from where: the values of a paged read.

A cursor names the sequence number of the last row already given, so rows that are added at the head
move nothing. It holds no filter and no owner: those come from the request that carries it.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.errors import InvalidCursor

MAX_PAGE = 1000
_CURSOR = re.compile(r"before:([1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class Row:
    """A registered row: its JSON text, written once, and what it is found by."""

    sequence: int
    username: str
    type: str
    status: str
    currency: str
    timestamp: datetime
    json: bytes


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are wanted; None means any. `since` and `until` are both inclusive."""

    username: str | None = None
    order_id: str | None = None
    type: str | None = None
    currency: str | None = None
    status: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_filtered(self) -> bool:
        """True when anything beyond the owner or the order narrows the rows."""
        narrowing = (self.type, self.currency, self.status, self.since, self.until)
        return any(value is not None for value in narrowing)

    def matches(self, row: Row) -> bool:
        """True when the row passes the filters; owner and order are left to an index."""
        return (
            self.type in (None, row.type)
            and self.currency in (None, row.currency)
            and self.status in (None, row.status)
            and (self.since is None or self.since <= row.timestamp)
            and (self.until is None or row.timestamp <= self.until)
        )


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` rows (None: no limit), of those with a sequence number below `before`."""

    limit: int | None = None
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """JSON texts of rows, newest first; `next_before` is set when more follow."""

    rows: list[bytes]
    next_before: int | None


class LedgerRows(Protocol):
    """What can be asked of rows, held or generated."""

    def page(self, selection: Selection, window: Window) -> Page:
        """The selected rows inside the window, newest first."""

    def pending_deposits(self, username: str) -> dict[str, list[bytes]]:
        """The user's pending deposits by currency, newest first."""


def encode_cursor(before: int) -> str:
    """The opaque form of a position."""
    return base64.urlsafe_b64encode(f"before:{before}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """The position in a cursor; raises InvalidCursor unless `encode_cursor` wrote it."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        found = _CURSOR.fullmatch(base64.urlsafe_b64decode(padded).decode("ascii"))
    except (UnicodeError, binascii.Error):
        found = None
    # Decoding is lenient about padding and foreign characters; only our own spelling counts.
    if found is None or encode_cursor(int(found[1])) != cursor:
        raise InvalidCursor("The cursor is not one of this ledger.")
    return int(found[1])
