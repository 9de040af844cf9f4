"""Whether a kept reply may be used: its lifetime, what the caller wishes, what the ledger allows.

RFC 9111 section 5.2 (Cache-Control) and RFC 5861 (stale replies). Pure; times are in seconds.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from multidict import CIMultiDictProxy

# It begins with what it looks for: in front of that, optional space would be tried again and again.
_DIRECTIVE = re.compile(r'([!#$%&\'*+.^_`|~\w-]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^",\s]*)))?')
_FOREVER = float("inf")


class Use(StrEnum):
    """What a kept reply is good for."""

    FRESH = "fresh"
    REVALIDATED = "while it is revalidated"
    IF_ERROR = "if the ledger fails"
    NONE = "nothing"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Up to what age a reply is good.

    Beyond `fresh_s` it may be used for `revalidate_s` more while another is fetched, and for
    `if_error_s` more if that fails; for up to `max_stale_s` more if the caller asks for it.
    """

    fresh_s: float
    revalidate_s: float = 0.0
    if_error_s: float = 0.0
    max_stale_s: float = 0.0

    @property
    def kept_s(self) -> float:
        """How long it is worth keeping."""
        return self.fresh_s + max(self.revalidate_s, self.if_error_s, self.max_stale_s)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller says in `Cache-Control`."""

    no_cache: bool = False
    no_store: bool = False
    max_age: float = _FOREVER
    stale_if_error: float = 0.0


NO_WISHES = Wishes()


def wishes(headers: CIMultiDictProxy[str]) -> Wishes:
    """What the headers of a request say."""
    values = headers.getall("Cache-Control", [])
    if not values:
        return NO_WISHES
    said = directives(values)
    return Wishes(
        no_cache="no-cache" in said,
        no_store="no-store" in said,
        max_age=_seconds(said, "max-age", _FOREVER),
        stale_if_error=_seconds(said, "stale-if-error", 0.0),
    )


def allowed(lifetime: Lifetime, values: Sequence[str]) -> Lifetime:
    """The lifetime of a reply with these `Cache-Control` headers, kept for all who share it."""
    if not values:
        return lifetime
    said = directives(values)
    if said.keys() & {"no-store", "private", "no-cache"}:
        return Lifetime(0.0)
    most = _seconds(said, "s-maxage", _seconds(said, "max-age", _FOREVER))
    if said.keys() & {"must-revalidate", "proxy-revalidate", "s-maxage"}:
        return Lifetime(min(lifetime.fresh_s, most))
    return replace(lifetime, fresh_s=min(lifetime.fresh_s, most))


def use_of(age: float, lifetime: Lifetime, wish: Wishes) -> Use:
    """What a reply of such an age is good for."""
    if wish.no_cache or wish.no_store:
        return Use.NONE
    young = age <= wish.max_age
    stale = age - lifetime.fresh_s
    if young and stale < 0:
        return Use.FRESH
    if young and stale < lifetime.revalidate_s:
        return Use.REVALIDATED
    unasked = lifetime.if_error_s if young else 0.0
    patience = max(unasked, min(wish.stale_if_error, lifetime.max_stale_s))
    # Without any, what is merely older than the caller wishes is not given to them either.
    return Use.IF_ERROR if stale < patience and patience > 0 else Use.NONE


def directives(values: Iterable[str]) -> dict[str, str]:
    """Name, in lower case, to argument; the first of a name counts."""
    said: dict[str, str] = {}
    for value in values:
        for found in _DIRECTIVE.finditer(value):
            name, quoted, plain = found.groups()
            said.setdefault(name.lower(), quoted if quoted is not None else plain or "")
    return said


def _seconds(said: dict[str, str], name: str, default: float) -> float:
    """The argument of a directive; one that is no number is taken for the strictest."""
    if name not in said:
        return default
    text = said[name]
    return float(text) if text.isascii() and text.isdigit() else 0.0
