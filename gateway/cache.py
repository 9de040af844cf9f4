"""Raw ledger replies, kept for a while and shared by everybody entitled to a part of them.

A reply is kept before anybody's rows are filtered out, so its key holds nothing of the caller. An
entry remembers the generation of its tag at the start of its fetch; a write bumps the tag before it
is sent and after it is answered. So no read after an acknowledged write gets an older reply, and no
fetch that began before a write fills the cache with the old state. The only file with cachetools.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any, TypeVar

import cachetools
import msgspec

from gateway.calls import LedgerCall, LedgerReply
from gateway.coherence import Coherence
from gateway.config import Cache
from gateway.errors import GatewayError, LedgerBroken
from gateway.freshness import NO_WISHES, Lifetime, Use, Wishes, allowed, use_of
from gateway.generations import Generations
from gateway.guard import GuardedLedger
from gateway.kept import VIEW_OVERHEAD, Found, Kept, Outcome, Reading, key_size, shared
from gateway.representations import Room, one_at_a_time
from gateway.rows import UnreadableBody, rows_in

# What an entry costs beside its key and body, and each row of it; and what each row adds to the
# room for views, as each may have another owner. In bytes.
_OVERHEAD = 900
_ROW_OVERHEAD = 120
_ROW_ROOM = 160

Key = tuple[str, tuple[tuple[str, str], ...]]
Parse = Callable[[bytes], Awaitable[Any]]
Flight = asyncio.Task[tuple[Reading[Any], Kept | None]]
V = TypeVar("V")


def bounded_memo(size: int) -> MutableMapping[Any, Any]:
    """A mapping that forgets what was used longest ago, beyond `size` items."""
    # An LRU of no size raises on every item; items that live no time are forgotten at once.
    return cachetools.LRUCache(maxsize=size) if size else cachetools.TTLCache(maxsize=1, ttl=0)


class CachedLedger:
    """The ledger, asked only for what is not known. `now` is a monotonic clock in seconds; without
    `coherence` nobody else writes to the ledger.
    """

    def __init__(
        self,
        ledger: GuardedLedger,
        settings: Cache,
        generations: Generations,
        now: Callable[[], float] = time.monotonic,
        coherence: Coherence | None = None,
    ) -> None:
        self._ledger = ledger
        self._generations = generations
        self._now = now
        self._coherence = coherence
        self._entries = _Entries(
            maxsize=settings.max_bytes if settings.enabled else 0,
            ttu=lambda _key, kept, at: at + kept.lifetime.kept_s,
            timer=now,
            getsizeof=lambda kept: kept.size,
        )
        self._flights: dict[tuple[Key, int], Flight] = {}
        self._counts = dict.fromkeys(Outcome, 0)

    async def read(
        self,
        call: LedgerCall,
        parse: Callable[[bytes], Awaitable[V]],
        tag: str,
        lifetime: Lifetime,
        wish: Wishes = NO_WISHES,
    ) -> Found[V]:
        """The answer to a GET.

        `parse` reads its body, or raises `UnreadableBody`: then this raises `LedgerBroken` and
        nothing is kept. Raises what `GuardedLedger.send` does.

        Callers who ask the same at once share one call, which outlives any of them; one who wishes
        no kept answer gets a call begun for them.
        """
        generation = self._generations.of(tag)
        fetch = _Fetch((call.path, call.query), call, parse, tag, lifetime, generation)
        found = await self._read(fetch, wish)
        self.count(found.outcome)
        return found

    async def write(self, call: LedgerCall, tag: str) -> LedgerReply:
        """The reply to a write, sent at most once. Raises what `GuardedLedger.send` does."""
        await self._written(tag)
        try:
            return await self._ledger.send(call)
        finally:
            # Also after a failure: the write may have been carried out.
            await self._written(tag)

    def age_if_fresh(self, kept: Kept) -> float | None:
        """The age of an entry that may be used at this moment, whatever is known of the caller."""
        age = self._now() - kept.at
        fresh = kept.latest and age < self._lifetime(kept).fresh_s
        return age if fresh and self._generations.of(kept.tag) == kept.generation else None

    def count(self, outcome: Outcome) -> None:
        """Notes how an answer was come by."""
        self._counts[outcome] += 1

    def statistics(self) -> dict[str, int]:
        """Entries, bytes, and answers so far by how they were come by."""
        return {
            "entries": len(self._entries),
            "bytes": int(self._entries.currsize),
            "hits": self._counts[Outcome.HIT],
            "stale": self._counts[Outcome.STALE],
            "misses": self._counts[Outcome.MISS],
        }

    async def _read(self, fetch: "_Fetch", wish: Wishes) -> Found[Any]:
        kept = self._entry(fetch.key)
        if kept is not None and kept.generation != fetch.generation:
            kept = None
        use = self._use(kept, wish)
        if kept is not None and use in (Use.FRESH, Use.REVALIDATED):
            if use is Use.REVALIDATED:
                self._joined(fetch)
            return self._found(kept, Outcome.HIT)
        forwarded = self._reason(kept)
        try:
            # The flight has no name here: it holds its error, and that this frame.
            reading, stored = await asyncio.shield(self._flight(fetch, wish))
        except GatewayError:
            found = self._instead(fetch.key, kept, wish)
            if found is None:
                raise
            return found
        if reading.reply.status == 503 and (found := self._instead(fetch.key, kept, wish)):
            return found
        age = reading.reply.age
        return Found(reading, Outcome.MISS, age, kept=stored, forwarded=forwarded)

    def _entry(self, key: Key) -> Kept | None:
        if key not in self._entries:
            return None
        try:
            return self._entries[key]
        except KeyError:  # over at this very moment
            return None

    async def _written(self, tag: str) -> None:
        self._generations.bump(tag)
        if self._coherence is not None:
            await self._coherence.announce(tag)

    def _use(self, kept: Kept | None, wish: Wishes) -> Use:
        if kept is None:
            return Use.NONE
        return use_of(self._now() - kept.at, self._lifetime(kept), wish)

    def _lifetime(self, kept: Kept) -> Lifetime:
        """How long an entry is good for at this moment: less if others write and are not heard."""
        if self._coherence is None or self._coherence.connected:
            return kept.lifetime
        trusted_s = min(kept.lifetime.fresh_s, self._coherence.trust_s)
        return replace(kept.lifetime, fresh_s=trusted_s, revalidate_s=0.0)

    def _reason(self, kept: Kept | None) -> str:
        """Why the ledger is asked (RFC 9211 section 2.2)."""
        if kept is None:
            return "uri-miss"
        return "request" if self._use(kept, NO_WISHES) is Use.FRESH else "stale"

    def _instead(self, key: Key, kept: Kept | None, wish: Wishes) -> Found[Any] | None:
        """What is given because the ledger has failed: the latest, which may have come since."""
        kept = self._entry(key) or kept
        if kept is None or not self._tides_over(kept, wish):
            return None
        fresh = self._use(kept, wish) is Use.FRESH
        return self._found(kept, Outcome.HIT if fresh else Outcome.STALE)

    def _tides_over(self, kept: Kept, wish: Wishes) -> bool:
        """Whether an old entry may be used because the ledger has failed."""
        unchanged = self._generations.of(kept.tag) == kept.generation
        return unchanged and self._use(kept, wish) is not Use.NONE

    def _found(self, kept: Kept, outcome: Outcome) -> Found[Any]:
        age = self._now() - kept.at
        return Found(kept.reading, outcome, age, kept.lifetime.fresh_s - age, kept)

    def _flight(self, fetch: "_Fetch", wish: Wishes) -> Flight:
        if wish.no_store:
            return self._task(msgspec.structs.replace(fetch, lifetime=Lifetime(0.0)))
        return self._take_off(fetch) if wish.no_cache else self._joined(fetch)

    def _joined(self, fetch: "_Fetch") -> Flight:
        """The fetch under way, or one begun; a read that begins after a write never joins one from
        before it.
        """
        return self._flights.get(fetch.name) or self._take_off(fetch)

    def _take_off(self, fetch: "_Fetch") -> Flight:
        flight = self._flights[fetch.name] = self._task(fetch)

        def land(task: Flight) -> None:
            if self._flights.get(fetch.name) is task:
                del self._flights[fetch.name]

        flight.add_done_callback(land)
        return flight

    def _task(self, fetch: "_Fetch") -> Flight:
        task = asyncio.create_task(self._fetched(fetch))
        # An exception is retrieved here, too: everybody who waited may have left.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _fetched(self, fetch: "_Fetch") -> tuple[Reading[Any], Kept | None]:
        begun = self._now()
        reply = await self._ledger.send(fetch.call)
        reading = await _reading(reply, fetch)
        lifetime = allowed(fetch.lifetime, reply.cache_control)
        if lifetime.fresh_s <= 0 or not reply.is_success or not self._entries.maxsize:
            return reading, None
        # Overtaken by a fresh one, or by a write, it may be older than what is known.
        latest = self._flights.get(fetch.name) is asyncio.current_task()
        if not latest or self._generations.of(fetch.tag) != fetch.generation:
            return reading, None
        size, room = _measures(fetch, len(reply.body), rows_in(reading.value))
        if size > self._entries.maxsize:
            return reading, None
        at, lifetime = begun - reply.age, shared(lifetime)
        making = one_at_a_time(len(reply.body))
        kept = Kept(reading, fetch.tag, fetch.generation, at, lifetime, size, Room(room), making)
        self._store(fetch.key, kept)
        return reading, kept

    def _store(self, key: Key, kept: Kept) -> None:
        replaced = self._entry(key)
        if replaced is not None:
            replaced.latest = False
        path, query = key
        self._entries[path, shared(query)] = kept


class _Entries(cachetools.TLRUCache[Key, Kept]):
    def popitem(self) -> tuple[Key, Kept]:
        key, kept = super().popitem()
        kept.latest = False
        return key, kept


class _Fetch(msgspec.Struct, frozen=True):
    """One read that the ledger may be asked for, and the generation of its tag when it began."""

    key: Key
    call: LedgerCall
    parse: Parse
    tag: str
    lifetime: Lifetime
    generation: int

    @property
    def name(self) -> tuple[Key, int]:
        """What reads have in common that may share one call."""
        return self.key, self.generation


async def _reading(reply: LedgerReply, fetch: _Fetch) -> Reading[Any]:
    if not reply.is_success:
        return Reading(reply, None)
    try:
        value = await fetch.parse(reply.body)
    except UnreadableBody as error:
        raise LedgerBroken("The ledger's answer cannot be read.") from error
    return Reading(msgspec.structs.replace(reply, body=b""), value)


def _measures(fetch: _Fetch, length: int, rows: int) -> tuple[int, int]:
    """The size of an entry for a body of such a length with so many rows, and the room in it."""
    # As much for the views that are made of it as two whole bodies take, or one view for each row.
    room = 2 * (length + VIEW_OVERHEAD) + rows * _ROW_ROOM
    return length + rows * _ROW_OVERHEAD + _OVERHEAD + key_size(fetch.key) + room, room
