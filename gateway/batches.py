"""Rows that came together: the text they stand in, and whose they are. Pure; no I/O."""

from collections.abc import Sequence
from io import BytesIO

import msgspec

from gateway.authz import View

# What may be cut up in vain, in bytes: it takes less time than to count first.
_SHORT = 1 << 20

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
        places = self._places(view)
        if not places:
            return []
        # Each row is an object and has a brace; if there are no more of them, it begins there.
        if len(self.array) <= _SHORT or self.array.count(b"{") == len(self.owners):
            flat = _behind_braces(self.array)
            if len(flat) == len(self.owners):
                return [b"{" + flat[place].rstrip(b", \t\r\n]") for place in places]
        rows = _array.decode(self.array)
        return [bytes(rows[place]) for place in places]

    def _places(self, view: View) -> Sequence[int]:
        """Where among the rows those stand that a view may see."""
        wanted, owners = view.owner, self.owners
        if wanted is not None:
            return [place for place, owner in enumerate(owners) if owner == wanted]
        if view.ambiguous:
            return range(len(owners))
        return [place for place, owner in enumerate(owners) if owner is not None]


def _behind_braces(array: bytes) -> list[bytes]:
    """What stands behind each opening brace, up to the next."""
    if b"\n" in array:
        return array.split(b"{")[1:]
    # Lines are found in half the time.
    return BytesIO(array.replace(b"{", b"\n")).readlines()[1:]
