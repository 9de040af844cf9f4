"""A ledger of N rows that are computed from their index when asked for and never held.

Row `i` (0 is the oldest) belongs to the user `i % 10`, to the order `ord-{i // 100}`, and was
written `i` seconds after the first. Fields that are null in every row are left out, as are
balances. Read-only, and a filter is refused: to apply it, any number of rows might have to be made
for one page.
"""

import re
import time
from bisect import bisect_left
from datetime import UTC, datetime

from gateway.errors import InvalidQuery
from gateway.sandbox.pages import MAX_PAGE, Page, Selection, Window

OWNERS = ("alice", *(f"user{n}" for n in range(1, 10)))
ROWS_PER_ORDER = 100

_ORDER = re.compile(r"ord-(0|[1-9][0-9]*)")
_FIRST_SECOND = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())
_TEMPLATE = (
    '{"id":"00000000-0000-4000-8000-%012d","username":"%s","type":"trade","status":"completed",'
    '"amount":"%s0.%08d","currency":"BTC","ticker":"BTC-USD","order_id":"ord-%d",'
    '"lp_id":"lp-1","timestamp":"%s"}'
)


class GeneratedRows:
    """`total` rows, newest first; the time and memory of a page do not depend on `total`."""

    def __init__(self, total: int) -> None:
        self._total = total

    def page(self, selection: Selection, window: Window) -> Page:
        """A page of at most `limit` rows (1000 if none is given); InvalidQuery for a filter."""
        if selection.is_filtered:
            raise InvalidQuery("Generated rows cannot be filtered.")
        indices = self._indices(selection)
        # The sequence number of row i is i + 1, as in the store, where the first is 1.
        end = len(indices) if window.before is None else bisect_left(indices, window.before - 1)
        start = max(0, end - (window.limit or MAX_PAGE))
        rows = [_row(index) for index in reversed(indices[start:end])]
        return Page(rows, indices[start] + 1 if start > 0 else None)

    def _indices(self, selection: Selection) -> range:
        if selection.username is not None:
            return self._indices_of_user(selection.username)
        if selection.order_id is not None:
            return self._indices_of_order(selection.order_id)
        return range(self._total)

    def _indices_of_user(self, username: str) -> range:
        if username not in OWNERS:
            return range(0)
        return range(OWNERS.index(username), self._total, len(OWNERS))

    def _indices_of_order(self, order_id: str) -> range:
        found = _ORDER.fullmatch(order_id)
        if found is None:
            return range(0)
        first = int(found[1]) * ROWS_PER_ORDER
        return range(first, min(first + ROWS_PER_ORDER, self._total))

    def pending_deposits(self, username: str) -> dict[str, list[bytes]]:
        """Always none: every generated row is a completed trade."""
        return {}


def _row(index: int) -> bytes:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_FIRST_SECOND + index))
    sign = "-" if index % 2 else ""
    values = (index, OWNERS[index % 10], sign, index % 99_999_999 + 1, index // ROWS_PER_ORDER)
    return (_TEMPLATE % (*values, moment)).encode()
