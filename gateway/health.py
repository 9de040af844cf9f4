"""Whether the gateway is alive, ready, and what it sees of the ledger."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from gateway import __version__
from gateway.cache import CachedLedger
from gateway.coherence import Coherence
from gateway.errors import GatewayError
from gateway.guard import GuardedLedger
from gateway.keyring import Keyring
from gateway.ledger import LedgerClient
from gateway.revocations import Revocations

# The ledger is asked at most this often, however often its health is.
_PROBE_EVERY_S = 1.0


class Health:
    """Knows the parts whose state operators ask for. `now` is a monotonic clock in seconds."""

    def __init__(
        self,
        keyring: Keyring,
        revocations: Revocations,
        client: LedgerClient,
        guarded: GuardedLedger,
        cached: CachedLedger,
        now: Callable[[], float] = time.monotonic,
        coherence: Coherence | None = None,
    ) -> None:
        self._keyring = keyring
        self._revocations = revocations
        self._client = client
        self._guarded = guarded
        self._cached = cached
        self._coherence = coherence
        self._now = now
        self._started = now()
        self._probing = asyncio.Lock()
        self._probed = float("-inf")
        self._seen: dict[str, Any] = {}
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome. A ledger outage alone does not change that."""
        return self._keyring.ready and not self.draining

    async def report(self) -> dict[str, Any]:
        """All of it, JSON-ready; times in seconds; no secret and no user data."""
        report = {
            "status": "ok" if self.ready else "not ready",
            "version": __version__,
            "uptime_s": round(self._now() - self._started, 3),
            "draining": self.draining,
            "keys": self._keys(),
            "ledger": await self._ledger(),
            "guard": self._guarded.state(),
            "cache": self._cached.statistics(),
        }
        if self._coherence is not None:
            report["coherence"] = self._coherence.state()
        return report

    def _keys(self) -> dict[str, Any]:
        age = self._keyring.age()
        return {
            "loaded": self._keyring.ready,
            "age_s": None if age is None else round(age, 3),
            "revocations_stale": self._revocations.stale,
        }

    async def _ledger(self) -> dict[str, Any]:
        async with self._probing:
            if self._now() - self._probed >= _PROBE_EVERY_S:
                self._seen = await self._probe()
                self._probed = self._now()
        return self._seen

    async def _probe(self) -> dict[str, Any]:
        try:
            latency = await self._client.ping()
        except GatewayError as error:
            return {"reachable": False, "error": error.code}
        return {"reachable": True, "latency_ms": round(latency * 1000, 3)}
