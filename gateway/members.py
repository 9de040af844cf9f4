"""The members of a JSON object, as the bytes they are written in, and taking some of them out."""

import json
import re
from collections.abc import Iterator
from functools import cache

import msgspec

# What is possessive (`*+`) keeps no place to come back to: of a long text that takes a hundredfold.
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_tokens = re.compile(STRING + rb"|[\[\]{},]", re.DOTALL)
_SPACE = rb"[ \t\r\n]*+"
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_key = re.compile(rb"%b[{,]%b(%b)%b:%b" % (_SPACE, _SPACE, STRING, _SPACE, _SPACE), re.DOTALL)
_end = re.compile(rb"%b(?:\{%b)?\}%b" % (_SPACE, _SPACE, _SPACE))


def without(raw: bytes, hidden: frozenset[str]) -> bytes:
    """The object without its top-level members called `hidden`; the others keep every byte."""
    left = _quickly(raw, 1, hidden)
    return _slowly(raw, hidden) if left is None else left


def each_without(objects: list[bytes], hidden: frozenset[str]) -> bytes:
    """The objects, with commas between, each without its top-level members called `hidden`."""
    left = _quickly(b",".join(objects), len(objects), hidden)
    return b",".join([without(one, hidden) for one in objects]) if left is None else left


def values(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key as a JSON string, value) of each top-level member of an object, where they are arrays;
    from what is not an array on it may be something else. Raises what msgspec's decoders do.
    """
    return _values(raw, _object.decode(raw))


def members(raw: bytes, start: int = 1) -> Iterator[tuple[bytes, int, int, int]]:
    """(key as a JSON string, start, start of the value, end) of each top-level member of an object,
    from the place behind its brace, or behind one of them.

    A member reaches from one separating comma to the next, with the space around it.
    """
    depth, key = 0, None
    for token in _tokens.finditer(raw, start):
        mark = raw[token.start()]
        if mark in b"[{":
            depth += 1
        elif key is None and mark == ord('"'):
            key = token
        elif depth == 0 and mark in b",}" and key is not None:
            yield key[0], start, raw.index(b":", key.end()) + 1, token.start()
            start, key = token.end(), None
        elif mark in b"]}":
            depth -= 1


def name_of(key: bytes) -> str:
    """What a key means, a JSON string."""
    return str(json.loads(key)) if b"\\" in key else key[1:-1].decode()


def _values(raw: bytes, read: dict[str, msgspec.Raw]) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    for value in map(bytes, read.values()):
        key = _key.match(raw, place)
        if key is None or not raw.startswith(value, key.end()):
            break
        yield key[1], value
        place = key.end() + len(value)
    if not _end.fullmatch(raw, place):
        # A name stands twice, and the decoder has the last of them only.
        for name, _, start, end in members(raw, place or 1):
            yield name, raw[start:end].strip()


def _quickly(text: bytes, count: int, hidden: frozenset[str]) -> bytes | None:
    """So many objects without their hidden members; None where that is not plain to see."""
    if b"\\" in text:
        return None
    if not _mentions(text, hidden):
        return text
    if text.count(b"{") > count or b"[" in text:
        return None
    # Without escapes and nesting, a comma, a quote and a name begin a member wherever they stand.
    left = _flat(hidden).sub(b"", text)
    return None if _mentions(left, hidden) else left


def _mentions(raw: bytes, hidden: frozenset[str]) -> bool:
    return any(map(raw.__contains__, _written(hidden)))


@cache
def _written(hidden: frozenset[str]) -> tuple[bytes, ...]:
    return tuple(name.encode() for name in hidden)


@cache
def _flat(hidden: frozenset[str]) -> re.Pattern[bytes]:
    """A hidden member that is not the first, with the comma before it."""
    names = b"|".join(map(re.escape, _written(hidden)))
    key = rb',%b"(?:%b)"%b:%b' % (_SPACE, names, _SPACE, _SPACE)
    return re.compile(key + rb'(?:"[^"]*"%b|[^",{}\[\]]+)(?=[,}])' % _SPACE)


def _slowly(raw: bytes, hidden: frozenset[str]) -> bytes:
    spans = list(members(raw))
    kept = [raw[start:end] for key, start, _, end in spans if name_of(key) not in hidden]
    return raw if len(kept) == len(spans) else b"{" + b",".join(kept) + b"}"
