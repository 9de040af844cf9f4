"""A bound on the calls in flight to the ledger: some wait a little, the rest are turned away."""

import asyncio
from dataclasses import dataclass

from gateway.errors import Overloaded


@dataclass(frozen=True, slots=True)
class BulkheadRules:
    """How many calls at once, how many more may wait, and for how many seconds."""

    max_in_flight: int
    max_waiting: int
    max_wait_s: float


class Bulkhead:
    """Holds a place for each call in flight.

    `async with` it takes one for the time of a call, or raises `Overloaded` if there is none soon
    enough.
    """

    def __init__(self, rules: BulkheadRules) -> None:
        self._rules = rules
        self._places = asyncio.Semaphore(rules.max_in_flight)
        # When a place was last taken or given back, in the loop's time.
        self._moved = 0.0
        self.in_flight = 0
        self.waiting = 0

    async def __aenter__(self) -> None:
        await self._enter()
        self.in_flight += 1
        self._moved = _now()

    async def __aexit__(self, *_: object) -> None:
        self.in_flight -= 1
        self._moved = _now()
        self._places.release()

    async def _enter(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        # Where no call has ended for so long, none is about to.
        hangs = _now() - self._moved >= self._rules.max_wait_s
        if hangs or self.waiting >= self._rules.max_waiting:
            raise overloaded()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._rules.max_wait_s):
                await self._places.acquire()
        except TimeoutError as error:
            raise overloaded() from error
        finally:
            self.waiting -= 1


def _now() -> float:
    return asyncio.get_running_loop().time()


def overloaded() -> Overloaded:
    """More is asked of the ledger than it can answer; nothing was sent."""
    return Overloaded("The ledger is busy; this was not sent.", headers={"Retry-After": "1"})
