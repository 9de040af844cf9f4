"""How a client makes a call: once, on a connection of its own, and noted with what came of it."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import aiohttp

from tests.conftest import caller
from tests.history import Call, Fate, Kind, fate

# No call takes so long, whatever becomes of it.
PATIENCE_S = 20.0
# Some clients leave before they are answered: how many, and after how long at most.
LEAVING, LEAVES_AFTER_S = 0.03, 0.03
# How often a write is made at most, and how long a client waits at most before it repeats it.
REPEATS = 3
PAUSE_S = 0.05

Who = tuple[str, str]


class Unanswered(Exception):
    """The connection broke, in a shape that aiohttp does not take for a reason to send again."""


async def send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        raise Unanswered from error


@cache
def identity(who: Who) -> Mapping[str, str]:
    """The headers of somebody."""
    return caller(*who)


class Ask(NamedTuple):
    """What to ask for, who asks, and what that is to a checker."""

    kind: Kind
    who: Who
    method: str
    path: str
    asked: Mapping[str, Any]
    number: int = 0
    body: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Notebook:
    """What all clients did and know: their calls, and the ids of the newest rates by name."""

    hot_rates: int = 4
    calls: list[Call] = field(default_factory=list)
    rates: dict[str, str] = field(default_factory=dict)
    writes: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, call: Call) -> None:
        self.calls.append(call)
        self._news.set()

    async def reaches(self, calls: int) -> None:
        """Returns when so many calls have been made."""
        while len(self.calls) < calls:
            self._news.clear()
            await self._news.wait()

    def next_write(self) -> int:
        self.writes += 1
        return self.writes

    def learn(self, rate: Mapping[str, Any]) -> None:
        """Remembers a rate; an older one is forgotten for it, so that calls meet."""
        self.rates[rate["baseInstrumentCode"]] = rate["id"]
        for name in list(self.rates)[: -self.hot_rates]:
            del self.rates[name]


class Caller:
    """Makes the calls of one client, each on a new connection or all on one that is kept."""

    def __init__(self, base: str, notebook: Notebook, chance: random.Random) -> None:
        self._base, self._notebook, self._chance = base, notebook, chance
        self._name = f"{chance.getrandbits(64):x}"
        self._count = 0
        self._session: aiohttp.ClientSession

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Holds the connections."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=self._chance.random() < 0.5),
            middlewares=(send_once,),
        ) as self._session:
            yield

    async def write(self, ask: Ask, *, keyed: bool) -> Call:
        """A write; with a key it may be made twice at once, and is repeated until it is known."""
        if not keyed:
            return await self.once(ask)
        key = f"key-{ask.number}"
        if self._chance.random() < 0.05:
            await asyncio.gather(self.once(ask, key), self.once(ask, key))
        for _ in range(REPEATS):
            call = await self.once(ask, key)
            if fate(call) not in (Fate.UNKNOWN, Fate.NOT_SENT):
                break
            await asyncio.sleep(self._chance.uniform(0.0, PAUSE_S))
        return call

    async def once(self, ask: Ask, key: str | None = None) -> Call:
        """One call."""
        self._count += 1
        name, began = f"{self._name}.{self._count}", time.monotonic()
        came: dict[str, Any] = {}
        try:
            came = await self._exchange(ask, {**self._headers(ask, key), "X-Request-Id": name})
        except aiohttp.ClientConnectorError:
            came = {"sent": False}
            await asyncio.sleep(PAUSE_S)
        except (Unanswered, aiohttp.ClientError):
            pass
        call = Call(
            name=name,
            kind=ask.kind,
            caller=ask.who[0],
            role=ask.who[1],
            asked=ask.asked,
            write=f"w{ask.number}" if ask.number else "",
            began=began,
            ended=time.monotonic(),
            **came,
        )
        self._notebook.note(call)
        return call

    async def _exchange(self, ask: Ask, headers: Mapping[str, str]) -> dict[str, Any]:
        body = None if ask.body is None else json.dumps(ask.body).encode()
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S, sock_read=self._patience())
        async with self._session.request(
            ask.method, self._base + ask.path, headers=headers, data=body, timeout=timeout
        ) as response:
            text = await response.read()
            answer, echo = json.loads(text) if text else None, response.headers["X-Request-Id"]
            return {"status": response.status, "answer": answer, "echo": echo}

    def _patience(self) -> float:
        if self._chance.random() < LEAVING:
            return self._chance.uniform(0.001, LEAVES_AFTER_S)
        return PATIENCE_S

    def _headers(self, ask: Ask, key: str | None) -> dict[str, str]:
        headers = dict(identity(ask.who))
        if ask.body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        if ask.method == "GET" and self._chance.random() < 0.05:
            headers["Cache-Control"] = "no-cache"
        return headers
