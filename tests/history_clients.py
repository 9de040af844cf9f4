"""Clients that ask a gateway for whatever chance says, and note each call and what came of it."""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import aiohttp

from tests.conftest import RATES, caller
from tests.history import Call, Fate, Kind, fate

USERS = ("dora", "emil", "fay", "gus")
STAFF = (("root", "admin"), ("settle", "service"))
CURRENCIES = ("EUR", "USD", "BTC")
# No call may stop a test; what ends one is the gateway, much earlier.
PATIENCE_S = 20.0
# How often a write is repeated, and how many rates the calls keep to.
REPEATS = 3
HOT_RATES = 8
# How long a client waits at most before it repeats a call that failed.
PAUSE_S = 0.05

Who = tuple[str, str]
# How often what is asked for.
APPETITE: Mapping[str, int] = {
    "action": 18,
    "create": 5,
    "patch": 18,
    "delete": 2,
    "rate": 24,
    "rates": 8,
    "own_rows": 10,
    "all_rows": 8,
    "order": 4,
    "forbidden": 2,
}


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
        for name in list(self.rates)[:-HOT_RATES]:
            del self.rates[name]


class Client:
    """One client with a connection of its own, kept or not; `chance` decides what it asks."""

    def __init__(
        self,
        base: str,
        notebook: Notebook,
        chance: random.Random,
        appetite: Mapping[str, int] = APPETITE,
    ) -> None:
        self._base, self._notebook, self._chance = base, notebook, chance
        self._kinds, self._weights = list(appetite), list(appetite.values())
        self._name = f"{chance.getrandbits(64):x}"
        self._count = 0

    async def run(self, calls: int, over: asyncio.Event) -> None:
        """Calls until it is over and all clients together have made so many calls."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=self._chance.random() < 0.5),
            middlewares=(send_once,),
        ) as self._session:
            while len(self._notebook.calls) < calls or not over.is_set():
                (kind,) = self._chance.choices(self._kinds, self._weights)
                await getattr(self, kind)()

    # What is asked for.

    async def action(self) -> None:
        await self._action(self._staff())

    async def create(self) -> None:
        number = self._notebook.next_write()
        name = f"R{number}"
        body = {**_set(number), "baseInstrumentCode": name, "counterInstrumentCode": "EUR"}
        ask = Ask(Kind.CREATE, self._staff(), "POST", RATES, {"rate": name}, number, body)
        call = await self._write(ask, self._sometimes())
        if fate(call) is Fate.DONE:
            self._notebook.learn(call.answer)

    async def patch(self) -> None:
        await self._patch(self._staff())

    async def delete(self) -> None:
        for name, path in self._known():
            number = self._notebook.next_write()
            ask = Ask(Kind.DELETE, self._staff(), "DELETE", path, {"rate": name}, number)
            await self._write(ask, self._sometimes())

    async def rate(self) -> None:
        for name, path in self._known():
            asked = {"rate": name, "id": path.rpartition("/")[2]}
            await self._attempt(Ask(Kind.RATE, self._anybody(), "GET", path, asked))

    async def rates(self) -> None:
        path, asked = RATES, {}
        if self._chance.random() < 0.3:
            for name, _ in self._known():
                path, asked = f"{RATES}?baseInstrumentCode={name}", {"rate": name}
        call = await self._attempt(Ask(Kind.RATES, self._anybody(), "GET", path, asked))
        if fate(call) is Fate.DONE and call.answer:
            self._notebook.learn(self._chance.choice(call.answer[-HOT_RATES:]))

    async def own_rows(self) -> None:
        user = self._chance.choice(USERS)
        path = self._chance.choice(("/ledger", f"/ledger/{user}"))
        await self._attempt(Ask(Kind.ROWS, (user, "user"), "GET", path, {"username": user}))

    async def all_rows(self) -> None:
        user, currency = self._chance.choice(USERS), self._chance.choice(CURRENCIES)
        choices: tuple[tuple[str, dict[str, str]], ...] = (
            ("/ledger", {}),
            (f"/ledger?currency={currency}", {"currency": currency}),
            (f"/ledger/{user}", {"username": user}),
        )
        path, asked = self._chance.choice(choices)
        await self._attempt(Ask(Kind.ROWS, self._staff(), "GET", path, asked))

    async def order(self) -> None:
        order_id, (name, role) = self._order(), self._anybody()
        asked = {"order_id": order_id, **({"username": name} if role == "user" else {})}
        await self._attempt(Ask(Kind.ROWS, (name, role), "GET", f"/ledger/order/{order_id}", asked))

    async def forbidden(self) -> None:
        """What a user may not do: read another's rows, or write."""
        user, other = self._chance.sample(USERS, 2)
        match self._chance.randrange(3):
            case 0:
                path, asked = f"/ledger/{other}", {"username": other}
                await self._attempt(Ask(Kind.ROWS, (user, "user"), "GET", path, asked))
            case 1:
                await self._action((user, "user"))
            case _:
                await self._patch((user, "user"))

    async def _action(self, who: Who) -> None:
        number, sign = self._notebook.next_write(), self._chance.choice(("", "-"))
        asked = {
            "type": "withdrawal" if sign else "deposit",
            "username": self._chance.choice(USERS),
            "currency": self._chance.choice(CURRENCIES),
            "amount": f"{sign}{number}.250",
        }
        if self._chance.random() < 0.5:
            asked |= {"type": "trade", "order_id": self._order(), "ticker": "ANY"}
        await self._write(Ask(Kind.ACTION, who, "POST", "/ledger", asked, number, asked), True)

    async def _patch(self, who: Who) -> None:
        for name, path in self._known():
            number = self._notebook.next_write()
            ask = Ask(Kind.PATCH, who, "PATCH", path, {"rate": name}, number, _set(number))
            await self._write(ask, self._sometimes())

    # Whom and what chance picks.

    def _staff(self) -> Who:
        return self._chance.choice(STAFF)

    def _anybody(self) -> Who:
        return self._chance.choice((self._staff(), (self._chance.choice(USERS), "user")))

    def _known(self) -> list[tuple[str, str]]:
        """The name and path of one of the rates; none while none is known."""
        rates = [(name, f"{RATES}/{rate_id}") for name, rate_id in self._notebook.rates.items()]
        return self._chance.sample(rates, 1) if rates else []

    def _order(self) -> str:
        """The id of an order that several actions share."""
        return f"order-{self._notebook.writes // 50}-{self._chance.randrange(3)}"

    def _sometimes(self) -> bool:
        return self._chance.random() < 0.6

    # How it is asked.

    async def _write(self, ask: Ask, keyed: bool) -> Call:
        """A write; with a key it may be made twice at once, and is repeated until it is known."""
        if not keyed:
            return await self._attempt(ask)
        key = f"key-{ask.number}"
        if self._chance.random() < 0.05:
            await asyncio.gather(self._attempt(ask, key), self._attempt(ask, key))
        for _ in range(REPEATS):
            call = await self._attempt(ask, key)
            if fate(call) not in (Fate.UNKNOWN, Fate.NOT_SENT):
                break
            await asyncio.sleep(self._chance.uniform(0.0, PAUSE_S))
        return call

    async def _attempt(self, ask: Ask, key: str | None = None) -> Call:
        """Makes one call and notes it."""
        self._count += 1
        name, began = f"{self._name}.{self._count}", time.monotonic()
        came: dict[str, Any] = {}
        try:
            # Some leave before they are answered.
            leaves = self._chance.random() < 0.03
            async with asyncio.timeout(self._chance.uniform(0, 0.03) if leaves else PATIENCE_S):
                came = await self._exchange(ask, {**self._headers(ask, key), "X-Request-Id": name})
        except aiohttp.ClientConnectorError:
            came = {"sent": False}
            await asyncio.sleep(PAUSE_S)
        except (Unanswered, aiohttp.ClientError, TimeoutError):
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
        url = self._base + ask.path
        async with self._session.request(ask.method, url, headers=headers, data=body) as response:
            text = await response.read()
            answer, echo = json.loads(text) if text else None, response.headers["X-Request-Id"]
            return {"status": response.status, "answer": answer, "echo": echo}

    def _headers(self, ask: Ask, key: str | None) -> dict[str, str]:
        headers = dict(identity(ask.who))
        if ask.body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        if ask.method == "GET" and self._chance.random() < 0.05:
            headers["Cache-Control"] = "no-cache"
        return headers


def _set(number: int) -> dict[str, Any]:
    """The two fields that every write of a rate sets."""
    return {"amount": number, "scale": 2, "source": f"w{number}"}
