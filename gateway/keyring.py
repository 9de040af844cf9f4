"""The keys that are trusted at this moment: from the configuration, and from a key set."""

import time
from collections.abc import Callable, Mapping

from gateway.key_set import KeySet
from gateway.keys import HMAC_BYTES, Key


class Keyring:
    """Finds the key for a token's header. `configured` maps an algorithm to its one key."""

    def __init__(
        self,
        configured: Mapping[str, Key],
        key_set: KeySet | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configured = configured
        self._key_set = key_set
        self._now = now
        self._loaded = now()

    @property
    def ready(self) -> bool:
        """Whether every source of keys has some."""
        return self._key_set.ready if self._key_set is not None else bool(self._configured)

    @property
    def edition(self) -> object:
        """Something else whenever other keys are trusted."""
        return self._key_set.keys if self._key_set is not None else self._configured

    def age(self) -> float | None:
        """Seconds since the keys were loaded; None if a key set never was."""
        return self._key_set.age() if self._key_set is not None else self._now() - self._loaded

    def find(self, algorithm: str, key_id: str | None) -> Key | None:
        """The key; a configured one has no id, so any id will do for it."""
        key = self._configured.get(algorithm)
        if key is None and self._key_set is not None:
            key = self._key_set.find(algorithm, key_id)
        return key

    async def refetch(self, algorithm: str) -> None:
        """Looks for keys that came since, where a key set has them."""
        if self._key_set is not None and algorithm not in HMAC_BYTES:
            await self._key_set.refetch()
