"""What stands around the clients: a ledger that keeps account, and gateways that come and go."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.sandbox.idempotency import Journal
from gateway.sandbox.pages import Selection, Window
from gateway.sandbox.server import create_sandbox
from gateway.sandbox.store import Store
from gateway.sandbox.wire import LEDGER, Ledger
from gateway.server import listening
from tests.conftest import CREDENTIAL, SECRET
from tests.gateway.processes import Running, free_ports, python
from tests.history import Delivery, LedgerState, Spell

# What is kept is kept for many calls, and not much longer than two gateways serve at once.
TTL_S = 1.0
TOTAL_S = 0.6
WORKERS = 2
# A worker that dies younger than that is not replaced.
INFANCY_S = 2.1
_STARTED = '"event":"started"'

# A gateway that loses its patience, gives up on the ledger and comes back to it, all in a moment.
SETTINGS = {
    "AUTH__SECRET": SECRET,
    "LEDGER__TOKEN": CREDENTIAL,
    "LEDGER__READ_TIMEOUT_S": "0.3",
    "LEDGER__TOTAL_TIMEOUT_S": str(TOTAL_S),
    "LEDGER__PAGE_SIZE": "50",
    "LEDGER__MAX_IN_FLIGHT": "4",
    "LEDGER__MAX_WAITING": "2",
    "LEDGER__MAX_WAIT_S": "0.05",
    "BREAKER__WINDOW_S": "1",
    "BREAKER__MIN_CALLS": "6",
    "BREAKER__OPEN_S": "0.1",
    "BREAKER__MAX_OPEN_S": "0.2",
    "CACHE__RATES_TTL_S": str(TTL_S),
    "CACHE__LEDGER_TTL_S": str(TTL_S),
    "SERVER__DRAIN_S": "0.3",
}


class WitnessLedger:
    """The sandbox, empty at first; it notes each write as it came."""

    def __init__(self) -> None:
        self._store = Store()
        self._deliveries: list[Delivery] = []
        self._app = create_sandbox()
        self._app[LEDGER] = Ledger(self._store, self._store, Journal(), CREDENTIAL)
        self._app.middlewares.insert(0, _noting(self._deliveries))

    @asynccontextmanager
    async def run(self) -> AsyncIterator[int]:
        """Serves on the port that is yielded."""
        async with listening(self._app, "127.0.0.1", 0) as port:
            yield port

    def state(self) -> LedgerState:
        """Everything in it."""
        rows = [json.loads(row) for row in self._store.page(Selection(), Window()).rows]
        return LedgerState(rows, list(self._store._rates.values()), self._deliveries)


def _noting(deliveries: list[Delivery]) -> Middleware:
    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if request.method != "GET":
            carried_out = response.status < 300 and "Idempotency-Replayed" not in response.headers
            deliveries.append(Delivery(request.headers["X-Request-Id"], carried_out))
        return response

    return note


def _children(process: int) -> list[int]:
    """The processes that a process has started, the eldest first."""
    return [
        int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


class Fleet:
    """The gateways on one port, one after the other; `spells` are the times of two at once.

    `said` is what those that have ended had to say.
    """

    def __init__(
        self,
        stack: AsyncExitStack,
        folder: Path,
        ledger_url: str,
        program: tuple[str, ...] = ("-m", "gateway"),
    ) -> None:
        self._stack, self._folder = stack, folder
        self._arguments = (*program, "serve", "--workers", str(WORKERS))
        api, ops = free_ports(2)
        ports = {"SERVER__PORT": str(api), "OPS__PORT": str(ops)}
        self._settings = {**SETTINGS, **ports, "LEDGER__BASE_URL": ledger_url}
        self._gateways: list[Running] = []
        self._born = 0.0
        self.url = f"http://127.0.0.1:{api}"
        self.spells: list[Spell] = []
        self.said = ""

    async def start(self) -> None:
        """A gateway, when its workers have started."""
        running = python(*self._arguments, cwd=self._folder, **self._settings)
        self._gateways.append(await self._stack.enter_async_context(running))
        for _ in range(WORKERS):
            await self._gateways[-1].line(_STARTED)
        self._born = time.monotonic()

    async def stop(self) -> None:
        """No gateway any more."""
        self._gateways[-1].send(signal.SIGTERM)
        await self._end(self._gateways[-1])

    async def replace(self) -> None:
        """The next gateway is there before the last one is told to go."""
        with self._spell():
            old = self._gateways[-1]
            await self.start()
            old.send(signal.SIGTERM)
            await self._end(old)

    async def lose_supervisor(self) -> None:
        """The process that watches the workers is killed, and all is started again."""
        with self._spell():
            old = self._gateways[-1]
            old.send(signal.SIGKILL)
            await self.start()
            # Ended is only when its workers have ended, too.
            await self._end(old)

    async def lose_worker(self) -> None:
        """A worker is killed, and there is another."""
        await asyncio.sleep(self._born + INFANCY_S - time.monotonic())
        supervisor = self._gateways[-1].process.pid
        os.kill(_children(supervisor)[0], signal.SIGKILL)
        await self._gateways[-1].line(_STARTED)
        self._born = time.monotonic()

    async def _end(self, gateway: Running) -> None:
        _, out, err = await gateway.ended()
        self.said += out + err

    @contextmanager
    def _spell(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.spells.append(Spell(began, time.monotonic(), TTL_S + TOTAL_S))
