"""The strict fields that the schemas share.

Every field hands back exactly what came in, or raises ValidationError with a reason of ours.
Patterns are matched as a whole (`fullmatch`: `$` would accept a trailing newline). The metadata
says the same in OpenAPI 3.1 / ECMA-262 terms, for the served document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import ValidationError, fields, validate

from schemas.violations import NOT_AN_OBJECT, REQUIRED

USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
"""A user name; for `fullmatch`, as the patterns below."""

ORDER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""An order id."""

UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
"""A UUID in its usual spelling (RFC 9562 section 4), in either case."""

IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")
"""An `Idempotency-Key`: visible ASCII."""

STATUSES = ("pending", "completed", "canceled", "failed")
"""The statuses of a ledger row."""

MAX_AMOUNT = 10**38 - 1
MAX_SCALE = 38
MAX_METADATA_KEYS = 1000
MAX_METADATA_KEY = 100
MAX_METADATA_TEXT = 2000

MESSAGES: dict[str, Any] = {"required": REQUIRED, "null": "must not be null"}

_CURRENCY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_INSTRUMENT = re.compile(r"[A-Z0-9._-]{1,32}")
_NON_ZERO = r"([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)"
_DIGITS = re.compile(r"([^0-9]*[0-9]){1,38}[^0-9]*")
_LINE = r"[^\x00-\x1f\x7f-\x9f]"
_LINES = r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


class StrictString(fields.String):
    """A JSON string for which `accepts` is true; `openapi` are its OpenAPI properties."""

    def __init__(
        self,
        accepts: Callable[[str], object],
        reason: str,
        openapi: Mapping[str, Any],
        *,
        required: bool = False,
        allow_none: bool = False,
    ) -> None:
        super().__init__(
            required=required, allow_none=allow_none, metadata=openapi, error_messages=MESSAGES
        )
        self._accepts = accepts
        self._reason = reason

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> str:
        if not isinstance(value, str) or not self._accepts(value):
            raise ValidationError(self._reason)
        return value


def matched(
    pattern: re.Pattern[str], reason: str, minimum: int, maximum: int, *, required: bool = False
) -> StrictString:
    """A string that is all `pattern`, of `minimum` to `maximum` characters."""
    openapi = {"pattern": f"^{pattern.pattern}$", "minLength": minimum, "maxLength": maximum}
    return StrictString(pattern.fullmatch, reason, openapi, required=required)


def user_name(*, required: bool = False) -> StrictString:
    """1 to 64 of ASCII letters, digits, `.`, `_`, `@`, `+`, `-`; the first alphanumeric."""
    return matched(USERNAME, "must be a user name", 1, 64, required=required)


def order_id(*, required: bool = False) -> StrictString:
    """1 to 128 of ASCII letters, digits, `.`, `_`, `:`, `-`; the first alphanumeric."""
    return matched(ORDER_ID, "must be an order id", 1, 128, required=required)


def currency_code(*, required: bool = False) -> StrictString:
    """1 to 32 of ASCII letters, digits, `.`, `_`, `-`; the first alphanumeric."""
    return matched(_CURRENCY, "must be a currency code", 1, 32, required=required)


def instrument_code(*, required: bool = False) -> StrictString:
    """1 to 32 of upper-case ASCII letters, digits, `.`, `_`, `-`."""
    return matched(_INSTRUMENT, "must be an instrument code", 1, 32, required=required)


def one_of(choices: tuple[str, ...], *, required: bool = False) -> StrictString:
    """One of `choices`, spelt exactly so."""
    reason = f"must be one of {', '.join(choices)}"
    return StrictString(choices.__contains__, reason, {"enum": list(choices)}, required=required)


def money(sign: str = "-?", *, required: bool = False) -> StrictString:
    """A plain non-zero decimal in a string: at most 38 digits, no exponent, no plus.

    `sign` is a pattern: `-?` for either, `` for credits only, `-` for debits only.
    """
    pattern = re.compile(sign + _NON_ZERO)
    kind = {"": "positive ", "-": "negative "}.get(sign, "")
    openapi = {
        "pattern": f"^{pattern.pattern}$",
        "allOf": [{"pattern": f"^{_DIGITS.pattern}$"}],
        "maxLength": 40,
        "description": "a decimal of at most 38 digits",
    }

    def accepts(value: str) -> bool:
        return len(value) <= 40 and bool(pattern.fullmatch(value) and _DIGITS.fullmatch(value))

    reason = f"must be a {kind}decimal in a string: non-zero, at most 38 digits"
    return StrictString(accepts, reason, openapi, required=required)


def timestamp(*, required: bool = False) -> StrictString:
    """An RFC 3339 date-time with at most nine fractional digits, that exists in UTC.

    Leap seconds (`:60`) and year 0 are refused: Python's calendar has neither.
    """
    openapi = {"format": "date-time", "minLength": 20, "maxLength": 35}
    return StrictString(_is_instant, "must be an RFC 3339 timestamp", openapi, required=required)


def _is_instant(value: str) -> bool:
    if not _RFC3339.fullmatch(value):
        return False
    try:
        # To UTC, because years 1 and 9999 can leave the calendar by their offset.
        datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return True


def text(maximum: int, *, required: bool = False) -> StrictString:
    """One line of 1 to `maximum` characters, none of them a control character."""
    pattern = re.compile(f"{_LINE}{{1,{maximum}}}")
    reason = f"must be 1 to {maximum} characters without control characters"
    return matched(pattern, reason, 1, maximum, required=required)


def comment(maximum: int, *, required: bool = False) -> StrictString:
    """Lines of 1 to `maximum` characters in all, not only white space."""
    lines = re.compile(f"{_LINES}{{1,{maximum}}}")
    openapi = {"pattern": rf"^{_LINES}*[^\s\x00-\x1f\x7f-\x9f]{_LINES}*$", "maxLength": maximum}

    def accepts(value: str) -> bool:
        return bool(lines.fullmatch(value)) and not value.isspace()

    reason = f"must be 1 to {maximum} characters, not blank, without control characters"
    return StrictString(accepts, reason, openapi, required=required)


def description(maximum: int) -> StrictString:
    """Lines of up to `maximum` characters in all, or null."""
    pattern = re.compile(f"{_LINES}{{0,{maximum}}}")
    openapi = {"pattern": f"^{_LINES}*$", "maxLength": maximum}
    reason = f"must be at most {maximum} characters without control characters, or null"
    return StrictString(pattern.fullmatch, reason, openapi, allow_none=True)


class ExactInteger(fields.Integer):
    """A JSON integer from 0 to `maximum`; not a boolean, not 1.0, not a string."""

    def __init__(self, maximum: int, *, required: bool = False) -> None:
        self._reason = f"must be an integer from 0 to {maximum}"
        bounds = validate.Range(min=0, max=maximum, error=self._reason)
        super().__init__(required=required, validate=bounds, error_messages=MESSAGES)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> int:
        if type(value) is not int:
            raise ValidationError(self._reason)
        return value


class Metadata(fields.Dict):
    """A flat object: at most 1000 keys of 1 to 100 characters; values strings (up to 2000),
    numbers, booleans or null."""

    def __init__(self) -> None:
        scalars = [{"type": kind} for kind in ("number", "boolean", "null")]
        values = [{"type": "string", "maxLength": MAX_METADATA_TEXT}, *scalars]
        openapi = {
            "additionalProperties": {"anyOf": values},
            "maxProperties": MAX_METADATA_KEYS,
            "description": f"keys have 1 to {MAX_METADATA_KEY} characters",
        }
        super().__init__(metadata=openapi, error_messages=MESSAGES)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError(NOT_AN_OBJECT)
        if len(value) > MAX_METADATA_KEYS:
            raise ValidationError(f"must have at most {MAX_METADATA_KEYS} keys")
        if not all(1 <= len(key) <= MAX_METADATA_KEY for key in value):
            raise ValidationError(f"must have keys of 1 to {MAX_METADATA_KEY} characters")
        if not all(map(_is_metadata_value, value.values())):
            raise ValidationError("must have flat values, and strings of at most 2000 characters")
        return value


def _is_metadata_value(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_METADATA_TEXT
    return value is None or isinstance(value, bool | int | float)
