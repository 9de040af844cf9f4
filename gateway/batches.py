"""Rows that came together: the text they stand in, and whose they are. Pure; no I/O."""

from collections.abc import Iterator, Sequence
from io import BytesIO

import msgspec

from gateway.authz import View
from gateway.pieces import PIECE

# What may be cut up in vain, in bytes: it takes less time than to count first.
_SHORT = 1 << 20
# So many rows, if they are short, are handled at a time.
_AT_ONCE = 4096

_array = msgspec.json.Decoder(list[msgspec.Raw])


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Rows that stand together: their text with the commas between them, on its own or in that of
    the reply, and whose each of them is (None: not said, or said twice).
    """

    text: bytes | memoryview
    owners: tuple[str | None, ...]

    def count(self, view: View) -> int:
        """How many of the rows a view may see."""
        if view.owner is not None:
            return self.owners.count(view.owner)
        return len(self.owners) - (0 if view.ambiguous else self.owners.count(None))

    def rows(self, view: View) -> list[bytes]:
        """The rows that a view may see."""
        places = self._places(view)
        if not places:
            return []
        text = bytes(self.text)
        # Each row is an object and has a brace; if there are no more of them, it begins there.
        if len(text) <= _SHORT or text.count(b"{") == len(self.owners):
            flat = _behind_braces(text)
            if len(flat) == len(self.owners):
                return [b"{" + flat[place].rstrip(b", \t\r\n") for place in places]
        rows = _array.decode(b"[%b]" % text)
        return [bytes(rows[place]) for place in places]

    def _places(self, view: View) -> Sequence[int]:
        """Where among the rows those stand that a view may see."""
        wanted, owners = view.owner, self.owners
        if wanted is not None:
            return [place for place, owner in enumerate(owners) if owner == wanted]
        if view.ambiguous:
            return range(len(owners))
        return [place for place, owner in enumerate(owners) if owner is not None]


class Rows:
    """The rows of a reply that a view may see, in their order. They are counted, and cut out batch
    by batch, each time that they are asked for.
    """

    __slots__ = ("_batches", "_view")

    def __init__(self, batches: tuple[Batch, ...], view: View) -> None:
        self._batches = batches
        self._view = view

    def __len__(self) -> int:
        return sum([batch.count(self._view) for batch in self._batches])

    def __iter__(self) -> Iterator[bytes]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[bytes]]:
        """So many of a list at a time as can be cut out in a moment."""
        for batch in self._batches:
            found = batch.rows(self._view)
            parts = max(len(batch.text) // PIECE, len(found) // _AT_ONCE, 1)
            step = -(-len(found) // parts) or 1
            yield from (found[at : at + step] for at in range(0, max(len(found), 1), step))


class RowIndex(msgspec.Struct, frozen=True, gc=False):
    """The rows of a reply."""

    batches: tuple[Batch, ...] = ()

    def __len__(self) -> int:
        return sum([len(batch.owners) for batch in self.batches])

    def seen(self, view: View) -> Rows:
        """Those that a view may see."""
        return Rows(self.batches, view)


def _behind_braces(text: bytes) -> list[bytes]:
    """What stands behind each opening brace, up to the next."""
    if b"\n" in text:
        return text.split(b"{")[1:]
    # Lines are found in half the time.
    return BytesIO(text.replace(b"{", b"\n")).readlines()[1:]
