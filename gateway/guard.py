"""The ledger behind a guard: a deadline, bounded calls in flight, a breaker, a retry for reads."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from gateway.breaker import Breaker, BreakerRules, Circuit, Outcome
from gateway.bulkhead import Bulkhead, BulkheadRules, overloaded
from gateway.calls import LedgerCall, LedgerReply
from gateway.errors import (
    CircuitOpen,
    GatewayError,
    LedgerBroken,
    LedgerFailing,
    LedgerTimeout,
    LedgerUnreachable,
    OutcomeUnknown,
    UnexpectedAnswer,
)
from gateway.ledger import LedgerClient
from gateway.retries import RetryBudget, RetryRules, pause

_FAULTS = (LedgerBroken, LedgerTimeout, LedgerUnreachable, OutcomeUnknown)
# How often an ailing ledger is asked whether it is well, in seconds.
_WATCH_S = 0.5


@dataclass(frozen=True, slots=True)
class GuardRules:
    """How much the ledger is asked for, and how it is left alone. Times in seconds."""

    total_timeout_s: float
    bulkhead: BulkheadRules
    breaker: BreakerRules
    retries: RetryRules


class GuardedLedger:
    """Makes the calls of one gateway process to one ledger."""

    def __init__(
        self,
        client: LedgerClient,
        rules: GuardRules,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._watching: asyncio.Task[None] | None = None
        self._total_s = rules.total_timeout_s
        self._bulkhead = Bulkhead(rules.bulkhead)
        self._breaker = Breaker(rules.breaker)
        self._budget = RetryBudget(rules.retries)
        self._now = now
        self._chance = chance

    async def send(self, call: LedgerCall) -> LedgerReply:
        """The reply to a call; a write is sent at most once, a read at most twice.

        Raises what `LedgerClient.send` does, and `Overloaded` or `CircuitOpen` for a call that was
        not sent.
        """
        deadline = self._now() + self._total_s
        if call.is_write:
            return await self._attempt(call, deadline)
        self._budget.requested(self._now())
        wait = pause(self._chance())
        try:
            reply = await self._attempt(call, deadline)
            # A ledger that names a time to come back is not asked again before it.
            if reply.status != 503 or reply.retry_after is not None:
                return reply
            if not self._may_repeat(deadline - wait):
                return reply
        except (LedgerFailing, LedgerUnreachable):
            if not self._may_repeat(deadline - wait):
                raise
        await asyncio.sleep(wait)
        return await self._attempt(call, deadline)

    async def close(self) -> None:
        """Stops looking after a ledger that is ailing."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def state(self) -> dict[str, Any]:
        """What an operator wants to know of it."""
        now = self._now()
        return {
            "circuit": self._breaker.state(now),
            "in_flight": self._bulkhead.in_flight,
            "waiting": self._bulkhead.waiting,
            "retries_left": self._budget.left(now),
        }

    async def _attempt(self, call: LedgerCall, deadline: float) -> LedgerReply:
        if self._breaker.state(self._now()) is Circuit.OPEN:
            raise self._circuit_open()
        async with self._bulkhead:
            if self._now() >= deadline:
                raise overloaded()
            admission = self._breaker.admit(self._now())
            if admission is None:
                raise self._circuit_open()
            outcome = Outcome.ABANDONED
            try:
                reply = await self._client.send(call, deadline - self._now())
                outcome = Outcome.FAILED if reply.status == 503 else Outcome.SUCCEEDED
                return reply
            except UnexpectedAnswer:
                outcome = Outcome.SUCCEEDED
                raise
            except _FAULTS:
                outcome = Outcome.FAILED
                raise
            finally:
                self._breaker.report(admission, outcome, self._now())
                self._watch()

    def _watch(self) -> None:
        """Has somebody look after the ledger while the circuit is open."""
        idle = self._watching is None or self._watching.done()
        if idle and self._breaker.state(self._now()) is Circuit.OPEN:
            self._watching = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        """Ends the wait of an open circuit when the ledger is well again.

        A ledger that says all the while that it is well, and fails, is not believed.
        """
        was_ailing = False
        while self._breaker.state(self._now()) is Circuit.OPEN:
            try:
                await self._client.ping()
            except GatewayError:
                was_ailing = True
            else:
                if was_ailing:
                    self._breaker.hasten(self._now())
                    return
            await asyncio.sleep(_WATCH_S)

    def _may_repeat(self, deadline: float) -> bool:
        return self._now() < deadline and self._budget.spend(self._now())

    def _circuit_open(self) -> CircuitOpen:
        wait = str(ceil(self._breaker.wait(self._now())))
        return CircuitOpen(
            "The ledger is failing; this was not sent.", headers={"Retry-After": wait}
        )
