"""What the query string of a request says. Callers repeat themselves: short ones are remembered."""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from gateway.errors import InvalidQuery
from schemas.queries import parse_query
from schemas.violations import Violations

Pairs = tuple[tuple[str, str], ...]
Q = TypeVar("Q")
# So many, of so many characters at most.
_REMEMBERED = 1024
_SHORT = 256


def understood(rule: Callable[[Pairs], Q], raw: str) -> Q:
    """A raw query string as one of the rules of `schemas.queries` reads it; `InvalidQuery`."""
    try:
        return _remembered(rule, raw) if len(raw) <= _SHORT else _read(rule, raw)
    except Violations as violations:
        reasons = violations.reasons()
        raise InvalidQuery("The query string breaks a rule.", fields=reasons) from violations


def _read(rule: Callable[[Pairs], Q], raw: str) -> Q:
    return rule(tuple(parse_query(raw)))


_remembered = lru_cache(_REMEMBERED)(_read)
