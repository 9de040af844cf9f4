"""The one reader of JSON from outside: RFC 8259, and of its "SHOULD"s the strict side."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
MAX_CONTAINERS = 10_000
MAX_INTEGER_DIGITS = 100
MAX_SHOWN = 64

_DIGITS_AS_1 = bytes.maketrans(b"0123456789", b"1111111111")
_TOO_MANY = b"1" * (MAX_INTEGER_DIGITS + 1)
_NESTING = frozenset({dict, list})
# A string, also one without an end: whatever it is, it is passed over once.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)


class MalformedJSON(ValueError):
    """The bytes are not JSON we read. The message is ours; it quotes no more than one key."""


class DuplicateKey(MalformedJSON):
    """An object has a key twice (RFC 8259 §4); `key` is that key as `shown`."""

    def __init__(self, key: str) -> None:
        self.key = shown(key)
        super().__init__(f"duplicate key {self.key!r}")


def shown(name: str) -> str:
    """A name from outside made fit for an answer or a log: 64 printable characters at most."""
    kept = name[:MAX_SHOWN]
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in kept)


def parse(data: bytes) -> object:
    """The JSON value in `data`: dict, list, str, int, float, bool or None.

    Raises MalformedJSON for whatever is not exactly one JSON text in UTF-8 without a BOM, and
    for what RFC 8259 leaves open but no two readers agree on: duplicate keys (DuplicateKey),
    lone surrogates, NaN and infinities, floats out of range, integers over 100 digits, nesting
    deeper than 64, and more than 10 000 objects and arrays.
    """
    # A call for each integer costs more than all the rest: only where one can be too long.
    suspect = _TOO_MANY in data.translate(_DIGITS_AS_1)
    return _read(_decoded(data), _integer if suspect else int, _finite)


def parse_with_number_texts(data: bytes) -> object:
    """As `parse`, with the same refusals, but every number is the str it was written as."""
    return _read(_decoded(data), _integer_text, _finite_text)


def _read(
    text: str, parse_int: Callable[[str], object], parse_float: Callable[[str], object]
) -> object:
    _check_containers(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=parse_int,
            parse_float=parse_float,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        # Unchained: the decoder's error carries the whole document.
        raise MalformedJSON(f"not valid JSON at character {error.pos}") from None
    except RecursionError:
        raise MalformedJSON("nested too deeply") from None
    _check_depth(text, value)
    _check_surrogates(text, value)
    return value


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedJSON("not UTF-8") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if not pairs:  # for speed: nothing takes longer than `{}` tens of thousands of times
        return {}
    members = dict(pairs)
    if len(members) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise DuplicateKey(next(key for key, count in counts.items() if count > 1))
    return members


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS and len(text.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise MalformedJSON(f"an integer has more than {MAX_INTEGER_DIGITS} digits")
    return int(text)


def _integer_text(text: str) -> str:
    _integer(text)
    return text


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise MalformedJSON("a number is out of range")
    return value


def _finite_text(text: str) -> str:
    _finite(text)
    return text


def _constant(_text: str) -> object:
    raise MalformedJSON("NaN and infinities are not JSON")


def _check_containers(text: str) -> None:
    # Before one is made: a hundred thousand cost the garbage collector more than the reader.
    if _containers(text) > MAX_CONTAINERS and _containers(_STRING.sub("", text)) > MAX_CONTAINERS:
        raise MalformedJSON("too many objects and arrays")


def _containers(text: str) -> int:
    return text.count("[") + text.count("{")


def _check_depth(text: str, value: Any) -> None:
    # Bounded below any interpreter's stack, so that the answer does not depend on the caller's.
    if _containers(text) <= MAX_DEPTH or type(value) not in _NESTING:
        return
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if outer and type(outer) is dict else outer)
            if type(inner) in _NESTING
        ]
        if not level:
            return
    raise MalformedJSON("nested too deeply")


def _check_surrogates(text: str, value: object) -> None:
    # Strict UTF-8 has none, so one can only come from an escape; the encoder finds it.
    if "\\u" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedJSON("a string has a lone surrogate") from None
