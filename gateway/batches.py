"""Rows that came together: the text they stand in, and whose they are. Pure; no I/O."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from gateway.authz import View

T = TypeVar("T")

_array = msgspec.json.Decoder(list[msgspec.Raw])


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Rows that stand together: the array they came in, and whose each of them is (None: not said,
    or said twice).
    """

    array: bytes
    owners: tuple[str | None, ...]

    def count(self, view: View) -> int:
        """How many of the rows a view may see."""
        if view.owner is not None:
            return self.owners.count(view.owner)
        return len(self.owners) - (0 if view.ambiguous else self.owners.count(None))

    def rows(self, view: View) -> list[bytes]:
        """The rows that a view may see."""
        if not self.count(view):
            return []
        # Each row is an object and has a brace; if there are no more of them, it begins there.
        flat = self.array.split(b"{")[1:]
        if len(flat) == len(self.owners):
            return [b"{" + row.rstrip(b", \t\r\n]") for row in self._seen(flat, view)]
        return [bytes(row) for row in self._seen(_array.decode(self.array), view)]

    def _seen(self, rows: list[T], view: View) -> Iterable[T]:
        if view.owner is None and view.ambiguous:
            return rows
        pairs = zip(rows, self.owners, strict=True)
        if view.owner is None:
            return [row for row, owner in pairs if owner is not None]
        return [row for row, owner in pairs if owner == view.owner]
