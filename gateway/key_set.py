"""A key set at a URL, kept up to date (RFC 7517). A fetch that fails never drops good keys."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from gateway.keys import Key

# The key server is asked for key ids that are not known this long after it was last asked for one,
# or did not answer, however many come.
REFETCH_EVERY_S = 30.0
_FIRST_RETRY_S = 1.0
MAX_KEY_SET_BYTES = 262_144
KEY_SET_TIMEOUT_S = 5.0

# (algorithm, key id) to key: an algorithm is pinned to each.
Keys = Mapping[tuple[str, str], Key]


@dataclass(frozen=True, slots=True)
class KeySetRules:
    """How often to refresh, and how long keys are good that could not be refreshed; in seconds."""

    refresh_s: float
    max_age_s: float


class KeySet:
    """The keys at a URL. `fetch` gets the document, `parse` reads it or raises ValueError;
    `changed` is called whenever other keys than before are trusted.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        parse: Callable[[bytes], Keys],
        rules: KeySetRules,
        changed: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._parse = parse
        self._rules = rules
        self._changed = changed
        self._now = now
        self.keys: Keys = {}
        self._loaded: float | None = None
        self._sought = float("-inf")
        self._flight: asyncio.Task[bool] | None = None

    @property
    def ready(self) -> bool:
        """Whether there are keys that may still be trusted."""
        age = self.age()
        return bool(self.keys) and age is not None and age < self._rules.max_age_s

    def age(self) -> float | None:
        """Seconds since the keys were loaded; None if they never were."""
        return None if self._loaded is None else self._now() - self._loaded

    def find(self, algorithm: str, key_id: str | None) -> Key | None:
        """The key with that id; without an id the only key for the algorithm."""
        if not self.ready:
            return None
        if key_id is not None:
            return self.keys.get((algorithm, key_id))
        candidates = [key for (name, _), key in self.keys.items() if name == algorithm]
        return candidates[0] if len(candidates) == 1 else None

    async def refetch(self) -> None:
        """Looks for a key that is not known, unless that was done a moment ago."""
        if self._flight is None:
            if self._now() - self._sought < REFETCH_EVERY_S:
                return
            self._sought = self._now()
        await self.load()

    async def load(self) -> bool:
        """Fetches the set; whether that worked. Callers at the same time share one fetch."""
        if self._flight is None:
            self._flight = asyncio.create_task(self._load())
            self._flight.add_done_callback(self._landed)
        return await asyncio.shield(self._flight)

    async def run(self) -> None:
        """Keeps the set fresh until it is cancelled."""
        pause = _FIRST_RETRY_S
        while True:
            if await self.load():
                pause = _FIRST_RETRY_S
                await asyncio.sleep(self._rules.refresh_s)
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._rules.refresh_s)

    async def _load(self) -> bool:
        try:
            keys = self._parse(await self._fetch())
            if not keys:
                raise ValueError("no usable key")
        except Exception as error:
            # Whatever it was, the refresher goes on: without it all keys would grow too old.
            structlog.get_logger().warning("key set not loaded", error=type(error).__name__)
            self._sought = self._now()
            return False
        if keys.keys() != self.keys.keys() or keys != self.keys:
            self.keys = keys
            self._changed()
        self._loaded = self._now()
        return True

    def _landed(self, _task: asyncio.Task[bool]) -> None:
        self._flight = None
