"""Writes in flight: a repeated one joins the first, and none is cut short by a leaving client."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.calls import LedgerCall, LedgerReply
from gateway.errors import KeyReused

Send = Callable[[], Coroutine[Any, Any, LedgerReply]]
_Name = tuple[str, str, str, str]


class Writes:
    """Sends each write once, as a task of its own that outlives who asked for it."""

    def __init__(self) -> None:
        self._keyed: dict[_Name, tuple[bytes | None, asyncio.Task[LedgerReply]]] = {}
        self._tasks: set[asyncio.Task[LedgerReply]] = set()

    async def send(self, call: LedgerCall, send: Send) -> tuple[LedgerReply, bool]:
        """The reply, and whether it is to an earlier call with the same key that was in flight.

        `send` sends this call. Raises `KeyReused` if the earlier one had another body, and what
        sending raises.
        """
        if call.idempotency_key is None:
            return await asyncio.shield(self._start(send)), False
        name = (call.username, call.method, call.path, call.idempotency_key)
        body, task = self._keyed.get(name, (None, None))
        if task is None:
            task = self._start(send)
            self._keyed[name] = (call.body, task)
            task.add_done_callback(lambda _task: self._keyed.pop(name))
            return await asyncio.shield(task), False
        if body != call.body:
            raise KeyReused("This idempotency key is in use for another body.")
        return await asyncio.shield(task), True

    async def finish(self) -> None:
        """Waits until no write is in flight; each has its own deadline."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _start(self, send: Send) -> asyncio.Task[LedgerReply]:
        task = asyncio.create_task(send())
        self._tasks.add(task)
        task.add_done_callback(self._landed)
        return task

    def _landed(self, task: asyncio.Task[LedgerReply]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Retrieved here, too: whoever asked may have left.
            task.exception()
