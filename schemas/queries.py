"""Query strings: raw text to pairs, and pairs to what a route understands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from marshmallow import Schema, ValidationError, fields, validate

from schemas.fields import (
    MAX_METADATA_KEY,
    MAX_METADATA_TEXT,
    STATUSES,
    StrictString,
    currency_code,
    instrument_code,
    matched,
    one_of,
    text,
    timestamp,
)
from schemas.rates import MAX_SOURCE
from schemas.strict_json import MalformedJSON, parse_with_number_texts
from schemas.violations import NOT_AN_OBJECT, Violations, load

MAX_PARAMETERS = 32
MAX_LIMIT = 1000
QUERY = "query"

Pairs = Sequence[tuple[str, str]]
"""Decoded (name, value) pairs in the order they came."""

Filters = tuple[tuple[str, str], ...]
"""Decoded (name, value) pairs, names unique and sorted: equal for equal questions."""

_METADATA = "metadata."
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")
_KIND = re.compile(r"[A-Za-z0-9_]{1,64}")
_CURSOR = re.compile(r"[A-Za-z0-9_.~=-]{1,4096}")


def parse_query(raw: str) -> list[tuple[str, str]]:
    """The decoded pairs of a raw query string, without its `?`; `+` is a space.

    Raises Violations for more than 32 parameters, one without a name, a bad escape, bytes that
    are not UTF-8, and control characters.
    """
    if not raw:
        return []
    if raw.count("&") >= MAX_PARAMETERS:
        raise Violations(invalid={QUERY: f"has more than {MAX_PARAMETERS} parameters"})
    return [_pair(part) for part in raw.split("&")]


def _pair(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    if not name:
        raise Violations(invalid={QUERY: "has a parameter without a name"})
    return _decoded(name), _decoded(value)


def _decoded(part: str) -> str:
    if _BAD_ESCAPE.search(part):
        raise Violations(invalid={QUERY: "has a bad percent escape"})
    try:
        decoded = unquote_to_bytes(part.replace("+", " ")).decode("utf-8")
    except UnicodeError:
        raise Violations(invalid={QUERY: "is not UTF-8"}) from None
    if _CONTROL.search(decoded):
        raise Violations(invalid={QUERY: "has a control character"})
    return decoded


class Limit(fields.Integer):
    """A page's length in a query: ASCII digits, 1 to 1000, without sign or leading zero."""

    def __init__(self) -> None:
        self._reason = f"must be an integer from 1 to {MAX_LIMIT}"
        super().__init__(validate=validate.Range(min=1, max=MAX_LIMIT, error=self._reason))

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> int:
        if not _LIMIT.fullmatch(value):
            raise ValidationError(self._reason)
        return int(value)


class ListQuerySchema(Schema):
    """The query of a ledger list."""

    limit = Limit()
    cursor = matched(_CURSOR, "must be a cursor of this list", 1, 4096)
    type = matched(_KIND, "must be a type of row", 1, 64)
    currency = currency_code()
    status = one_of(STATUSES)
    since = timestamp()
    until = timestamp()


class RateListQuerySchema(Schema):
    """The query of the list of rates; beside it goes any `metadata.<key>`."""

    baseInstrumentCode = instrument_code()
    counterInstrumentCode = instrument_code()
    source = text(MAX_SOURCE)
    metadata = StrictString(
        bool,
        "must not be empty",
        {
            "minLength": 1,
            "description": 'a flat JSON object, {"key":"value"}: the same as metadata.key=value',
        },
    )


@dataclass(frozen=True)
class ListQuery:
    """A ledger list's question: the page asked for (None: all), and the filters to forward."""

    limit: int | None
    cursor: str | None
    filters: Filters


_LIST = ListQuerySchema()
_RATES = RateListQuerySchema()
_METADATA_VALUE = text(MAX_METADATA_TEXT)


def list_query(pairs: Pairs) -> ListQuery:
    """The query of a ledger list. Raises Violations."""
    loaded = load(_LIST, _unique(pairs))
    limit, cursor = loaded.pop("limit", None), loaded.pop("cursor", None)
    return ListQuery(limit, cursor, tuple(sorted(loaded.items())))


def no_query(pairs: Pairs) -> Filters:
    """No filters at all. Raises Violations if there is any parameter."""
    if pairs:
        raise Violations(unexpected=[name for name, _ in pairs])
    return ()


def rate_filters(pairs: Pairs) -> Filters:
    """The filters of the list of rates, `metadata={…}` taken apart. Raises Violations."""
    given = _unique(pairs)
    plain = {name: value for name, value in given.items() if not name.startswith(_METADATA)}
    loaded = load(_RATES, plain)
    tagged = [(name, value) for name, value in given.items() if name.startswith(_METADATA)]
    tagged += _metadata_pairs(loaded.pop("metadata", "{}"))
    if len(loaded) + len(tagged) > MAX_PARAMETERS:
        raise Violations(invalid={QUERY: f"has more than {MAX_PARAMETERS} filters"})
    for name, value in tagged:
        _check_metadata(name, value)
    return tuple(sorted((loaded | _unique(tagged)).items()))


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise Violations(invalid={name: "is given more than once"})
        found[name] = value
    return found


def _metadata_pairs(raw: str) -> list[tuple[str, str]]:
    """`metadata.<key>` pairs of a JSON object; numbers stay as they are written."""
    try:
        document = parse_with_number_texts(raw.encode("utf-8", "surrogatepass"))
    except MalformedJSON:
        raise Violations(invalid={"metadata": "is not valid JSON"}) from None
    if not isinstance(document, dict):
        raise Violations(invalid={"metadata": NOT_AN_OBJECT})
    return [(_METADATA + key, _scalar(value)) for key, value in document.items()]


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        raise Violations(invalid={"metadata": "must be flat"})
    return {True: "true", False: "false", None: "null"}[value]  # type: ignore[index]


def _check_metadata(name: str, value: str) -> None:
    key = name.removeprefix(_METADATA)
    if not 1 <= len(key) <= MAX_METADATA_KEY or _CONTROL.search(key):
        raise Violations(invalid={name: f"must name a key of 1 to {MAX_METADATA_KEY} characters"})
    try:
        _METADATA_VALUE.deserialize(value)
    except ValidationError as error:
        raise Violations(invalid={name: str(error.messages[0])}) from None
