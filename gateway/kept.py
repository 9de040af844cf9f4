"""What the cache keeps and finds: values that say what a reply was, how old it is, how it came."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from sys import getsizeof
from typing import Any, Generic, TypeVar

import msgspec

from gateway.calls import LedgerReply
from gateway.freshness import Lifetime
from gateway.representations import Representation, Room

T = TypeVar("T")
V = TypeVar("V")
_NAME = "ledger-gateway"
# What a view costs beside its body, in bytes.
VIEW_OVERHEAD = 256


class Outcome(StrEnum):
    """How an answer was come by; the worst stands last."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"


class Reading(msgspec.Struct, Generic[V], frozen=True):
    """What the ledger answered to a read: a reply without its body, and the body as it was read.

    `value` is None for a refusal.
    """

    reply: LedgerReply
    value: V | None


@dataclass(slots=True, eq=False, weakref_slot=True)
class Kept:
    """One reading, good while its tag has that generation, for a lifetime that began at `at`, in
    seconds on the monotonic clock: when it was asked for, less the age that it came with.

    `size` is what it takes to keep it, in bytes. There is `room` in it for `views`, the
    representations made of it, by what tells them apart, and for their codings. Those that take a
    while are made one at a time, under `making`. It is the `latest` until it has to make room or a
    later reading takes its place, however long somebody still makes an answer of it.
    """

    reading: Reading[Any]
    tag: str
    generation: int
    at: float
    lifetime: Lifetime
    size: int
    room: Room
    making: asyncio.Lock | None = None
    views: dict[Any, Representation] = field(default_factory=dict)
    latest: bool = True

    async def view(
        self, name: Any, make: Callable[[], Awaitable[Representation]]
    ) -> Representation:
        """The view of that name; if there is none it is made, and kept if there is room for it."""
        found = self.views.get(name)
        if found is None:
            async with self.making or nullcontext():
                found = self.views.get(name)
                if found is None:
                    found = await make()
                    self.remember(name, found)
        return found

    def remember(self, name: Any, view: Representation) -> None:
        """Keeps a view, if there is room for it."""
        if self.room.take(len(view.body) + VIEW_OVERHEAD):
            view.room = self.room
            self.views[shared(name)] = view


class Found(msgspec.Struct, Generic[V], frozen=True):
    """The answer to a read. `age` is in seconds; `left` is what is left of its lifetime, below zero
    if it is over. `kept` is where it is kept, if it is; `forwarded` says why the ledger was asked,
    in the words of RFC 9211 section 2.2.
    """

    reading: Reading[V]
    outcome: Outcome
    age: float = 0.0
    left: float = 0.0
    kept: Kept | None = None
    forwarded: str = "uri-miss"

    def cache_status(self) -> str:
        """The `Cache-Status` field (RFC 9211)."""
        left = int(self.left // 1)
        if self.outcome is Outcome.HIT:
            return cache_status_of_hit(left)
        if self.outcome is Outcome.STALE:
            return f"{_NAME}; fwd=stale; ttl={left}; detail=stale-if-error"
        return f"{_NAME}; fwd={self.forwarded}" + ("; stored" if self.kept is not None else "")


@lru_cache(maxsize=256)
def shared(value: T) -> T:
    """The same for all that are equal: many entries have it, and need only one of it."""
    return value


def key_size(key: tuple[str, tuple[tuple[Any, Any], ...]]) -> int:
    """What it takes to keep a target and pairs, in bytes: of short ones many times their length."""
    pairs = key[1]
    return sum(map(getsizeof, (key, *key, *pairs, *chain.from_iterable(pairs))))


def cache_status_of_hit(left: int) -> str:
    """The `Cache-Status` field for an answer that was known, with so many seconds left."""
    return f"{_NAME}; hit; ttl={left}"


def worst(one: Found[Any] | None, other: Found[Any]) -> Found[Any]:
    """Of the readings that one answer is made of, the one that speaks for all."""
    if one is None:
        return other
    if one.outcome is other.outcome:
        return max(one, other, key=lambda found: found.age)
    order = list(Outcome)
    return max(one, other, key=lambda found: order.index(found.outcome))
