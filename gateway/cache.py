"""Raw ledger replies, kept for a while and shared by everybody entitled to a part of them.

A reply is kept before anybody's rows are filtered out, so its key holds nothing of the caller. An
entry remembers the generation of its tag at the start of its fetch; a write bumps the tag before it
is sent and after it is answered. So no read after an acknowledged write gets an older reply, and no
fetch that began before a write fills the cache with the old state. The only file with cachetools.
"""

import asyncio
import mmap
import secrets
import time
import zlib
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import cachetools

from gateway.calls import LedgerCall, LedgerReply
from gateway.config import Cache
from gateway.errors import LedgerBroken
from gateway.guard import GuardedLedger
from gateway.rows import UnreadableBody

# What an entry costs beside its body, and each row of it, in bytes.
_OVERHEAD = 1024
_ROW_OVERHEAD = 160
_SLOTS = 1 << 16

Key = tuple[str, tuple[tuple[str, str], ...]]
Parse = Callable[[bytes], Any]
V = TypeVar("V")


def bounded_memo(size: int) -> MutableMapping[Any, Any]:
    """A mapping that forgets what was used longest ago, beyond `size` items."""
    # An LRU of no size raises on every item; items that live no time are forgotten at once.
    return cachetools.LRUCache(maxsize=size) if size else cachetools.TTLCache(maxsize=1, ttl=0)


class Generations:
    """A number per tag that changes with every bump; shared with processes forked later.

    Tags share a slot when their hashes meet: that costs a refetch, never a stale reply.
    """

    def __init__(self) -> None:
        self._slots = memoryview(mmap.mmap(-1, _SLOTS * 8)).cast("Q")

    def of(self, tag: str) -> int:
        """The tag's generation."""
        return int(self._slots[_slot(tag)])

    def bump(self, tag: str) -> None:
        """Gives the tag a generation that it never had."""
        self._slots[_slot(tag)] = secrets.randbits(64)


@dataclass(frozen=True, slots=True)
class Reading(Generic[V]):
    """What the ledger answered to a read: a reply without its body, and the body as it was read.

    `value` is None for a refusal. `size` is what it takes to keep it, in bytes.
    """

    reply: LedgerReply
    value: V | None
    size: int


@dataclass(frozen=True, slots=True)
class _Entry:
    reading: Reading[Any]
    generation: int
    ttl: float


@dataclass(slots=True)
class Counters:
    """How often the cache knew the answer."""

    hits: int = 0
    misses: int = 0


class CachedLedger:
    """The ledger, asked only for what is not known. `now` is a monotonic clock in seconds."""

    def __init__(
        self,
        ledger: GuardedLedger,
        settings: Cache,
        generations: Generations,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._generations = generations
        self._entries: cachetools.TLRUCache[Key, _Entry] = cachetools.TLRUCache(
            maxsize=settings.max_bytes if settings.enabled else 0,
            ttu=lambda _key, entry, at: at + entry.ttl,
            timer=now,
            getsizeof=lambda entry: entry.reading.size,
        )
        self._flights: dict[tuple[Key, int], asyncio.Task[Reading[Any]]] = {}
        self.counters = Counters()

    async def read(
        self,
        call: LedgerCall,
        parse: Callable[[bytes], V],
        tag: str,
        ttl: float,
        *,
        fresh: bool = False,
    ) -> tuple[Reading[V], bool]:
        """The answer to a GET, and whether it was known.

        `parse` reads its body, or raises `UnreadableBody`: then this raises `LedgerBroken` and
        nothing is kept. Raises what `GuardedLedger.send` does.

        Callers who ask the same at once share one call, which outlives any of them. `fresh` asks
        the ledger, whatever is known or under way.
        """
        key, generation = (call.path, call.query), self._generations.of(tag)
        entry = None if fresh else self._entries.get(key)
        if entry is not None and entry.generation == generation:
            self.counters.hits += 1
            return entry.reading, True
        self.counters.misses += 1
        flight = self._flights.get((key, generation))
        if flight is None or fresh:
            flight = self._take_off(call, parse, key, generation, ttl)
        return await asyncio.shield(flight), False

    async def write(self, call: LedgerCall, tag: str) -> LedgerReply:
        """The reply to a write, sent at most once. Raises what `GuardedLedger.send` does."""
        self._generations.bump(tag)
        try:
            return await self._ledger.send(call)
        finally:
            # Also after a failure: the write may have been carried out.
            self._generations.bump(tag)

    def statistics(self) -> dict[str, int]:
        """Entries, bytes, hits and misses so far."""
        return {
            "entries": len(self._entries),
            "bytes": int(self._entries.currsize),
            "hits": self.counters.hits,
            "misses": self.counters.misses,
        }

    def _take_off(
        self, call: LedgerCall, parse: Parse, key: Key, generation: int, ttl: float
    ) -> asyncio.Task[Reading[Any]]:
        """Starts a fetch; a read that begins after a write never joins one from before it."""
        flight = asyncio.create_task(self._fetch(call, parse, key, generation, ttl))
        self._flights[key, generation] = flight

        def land(task: asyncio.Task[Reading[Any]]) -> None:
            if self._flights.get((key, generation)) is task:
                del self._flights[key, generation]
            # Retrieved here, too: everybody who waited may have left.
            if not task.cancelled():
                task.exception()

        flight.add_done_callback(land)
        return flight

    async def _fetch(
        self, call: LedgerCall, parse: Parse, key: Key, generation: int, ttl: float
    ) -> Reading[Any]:
        reading = _read(await self._ledger.send(call), parse)
        # Overtaken by a fresh one, it may be older than what is known.
        latest = self._flights.get((key, generation)) is asyncio.current_task()
        keep = reading.reply.is_success and ttl > 0 and latest
        if keep and reading.size <= self._entries.maxsize:
            self._entries[key] = _Entry(reading, generation, ttl)
        return reading


def _slot(tag: str) -> int:
    return zlib.crc32(tag.encode()) % _SLOTS


def _read(reply: LedgerReply, parse: Parse) -> Reading[Any]:
    if not reply.is_success:
        return Reading(reply, None, 0)
    try:
        value = parse(reply.body)
    except UnreadableBody as error:
        raise LedgerBroken("The ledger's answer cannot be read.") from error
    rows = reply.body.count(b'"username"')
    size = len(reply.body) + rows * _ROW_OVERHEAD + _OVERHEAD
    return Reading(replace(reply, body=b""), value, size)
