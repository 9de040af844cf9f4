"""Cuts a long list of rows, or an object of such lists, into short ones, so that reading it never
takes long at a time. Pure.

A place that looks like the end of one row and the beginning of the next is tried: if what stands
before it is a whole JSON array of rows, it is such a place. JSON text can be read in one way only,
so nothing within a row can pass for it. The same goes for groups.
"""

import re
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import msgspec

# How much is read at a time, in bytes: less than a millisecond's worth.
PIECE = 1 << 18
_SPACE = b" \t\r\n"
_OPENING = re.compile(
    rb'[ \t\r\n]*+(\{[ \t\r\n]*+"api_message"[ \t\r\n]*+:[ \t\r\n]*+"[ !#-\[\]-~]*+"[ \t\r\n]*+,'
    rb'[ \t\r\n]*+"api_data"[ \t\r\n]*+:[ \t\r\n]*+)?\['
)
T = TypeVar("T")


class _Kind(NamedTuple):
    """What may be cut: the brackets around it, and what stands between two of its parts."""

    opening: bytes
    closing: bytes
    between: re.Pattern[bytes]


_ROWS = _Kind(b"[", b"]", re.compile(rb"\}[ \t\r\n]*+(,)[ \t\r\n]*+\{"))
_GROUPS = _Kind(b"{", b"}", re.compile(rb'\][ \t\r\n]*+(,)[ \t\r\n]*+"'))


class Piece(NamedTuple, Generic[T]):
    """What a part was read as, and the part, which stands where it came and has no brackets."""

    value: T
    part: memoryview


class Uncut(ValueError):
    """The text cannot be cut; read as a whole it may still be what it should be."""


def pieces(text: bytes, read: Callable[[bytes], T]) -> Iterator[Piece[T]]:
    """Parts that together hold the rows of a list, bare or enveloped; each is read as an array.

    `read` raises what msgspec's decoders do for what is no array. Raises `Uncut`, also in the end.
    """
    return _cut(text, _bounds(text), read, _ROWS)


def pieces_of_groups(text: bytes, read: Callable[[bytes], T]) -> Iterator[Piece[T]]:
    """The same of an object of arrays: each part of it is read as an object."""
    if not text.startswith(b"{"):
        raise Uncut("not an object")
    return _cut(text, (1, _closed(text, len(text), b"}")), read, _GROUPS)


def _cut(
    text: bytes, bounds: tuple[int, int], read: Callable[[bytes], T], kind: _Kind
) -> Iterator[Piece[T]]:
    start, end = bounds
    cut = start - 1
    while cut != end:
        piece = _piece(text, cut + 1, end, read, kind)
        cut += 1 + len(piece.part)
        yield piece


def _piece(text: bytes, start: int, end: int, read: Callable[[bytes], T], kind: _Kind) -> Piece[T]:
    """The next piece: it ends at a comma, or at the end of all."""
    size = PIECE
    while True:
        found = kind.between.search(text, start + size, end)
        cut = found.start(1) if found is not None else end
        part = memoryview(text)[start:cut]
        try:
            return Piece(read(b"".join((kind.opening, part, kind.closing))), part)
        except (msgspec.DecodeError, RecursionError) as error:
            if cut == end:
                raise Uncut("it cannot be read") from error
            size *= 2


def _bounds(text: bytes) -> tuple[int, int]:
    """Where the rows begin, and where they end."""
    opening = _OPENING.match(text)
    if opening is None:
        raise Uncut("the rows are not where they are expected")
    end = _closed(text, len(text), b"}") if opening[1] is not None else len(text)
    return opening.end(), _closed(text, end, b"]")


def _closed(text: bytes, end: int, bracket: bytes) -> int:
    """Where the last bracket before `end` stands, if nothing but space follows it."""
    place = text.rfind(bracket, 0, end)
    if place < 0 or text[place + 1 : end].strip(_SPACE):
        raise Uncut("something follows the rows")
    return place
