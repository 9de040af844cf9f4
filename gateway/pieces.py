"""Cuts a long list of rows into short ones, so that reading it never takes long at a time. Pure.

A place that looks like the end of one row and the beginning of the next is tried: if what stands
before it is a whole JSON array of rows, it is such a place. JSON text can be read in one way only,
so nothing within a row can pass for it.
"""

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

# How much is read at a time, in bytes: less than a millisecond's worth.
PIECE = 1 << 18
_SPACE = b" \t\r\n"
_OPENING = re.compile(
    rb'[ \t\r\n]*+(\{[ \t\r\n]*+"api_message"[ \t\r\n]*+:[ \t\r\n]*+"[ !#-\[\]-~]*+"[ \t\r\n]*+,'
    rb'[ \t\r\n]*+"api_data"[ \t\r\n]*+:[ \t\r\n]*+)?\['
)
_BETWEEN_GROUPS = re.compile(rb'\][ \t\r\n]*+(,)[ \t\r\n]*+"')
_BETWEEN = re.compile(rb"\}[ \t\r\n]*+(,)[ \t\r\n]*+\{")
T = TypeVar("T")


class Uncut(ValueError):
    """The text cannot be cut; read as a whole it may still be what it should be."""


def pieces(text: bytes, read: Callable[[bytes], T]) -> Iterator[T]:
    """Arrays that together hold the rows of a list, bare or enveloped, each as it was read.

    `read` raises what msgspec's decoders do for what is no array. Raises `Uncut`, also in the end.
    """
    return _cut(text, _bounds(text), read, _BETWEEN, b"[]")


def pieces_of_groups(text: bytes, read: Callable[[bytes], T]) -> Iterator[T]:
    """The same of an object of arrays: objects that together hold its members."""
    if not text.startswith(b"{"):
        raise Uncut("not an object")
    return _cut(text, (1, _closed(text, len(text), b"}")), read, _BETWEEN_GROUPS, b"{}")


def _cut(
    text: bytes,
    bounds: tuple[int, int],
    read: Callable[[bytes], T],
    between: re.Pattern[bytes],
    brackets: bytes,
) -> Iterator[T]:
    start, end = bounds
    cut = start - 1
    while cut != end:
        piece, cut = _piece(text, (cut + 1, end), read, between, brackets)
        yield piece


def _piece(
    text: bytes,
    bounds: tuple[int, int],
    read: Callable[[bytes], T],
    between: re.Pattern[bytes],
    brackets: bytes,
) -> tuple[T, int]:
    """The next piece, and where it ends: at a comma, or at the end of all."""
    start, end = bounds
    size = PIECE
    while True:
        found = between.search(text, start + size, end)
        cut = found.start(1) if found is not None else end
        try:
            return read(b"".join((brackets[:1], memoryview(text)[start:cut], brackets[1:]))), cut
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
