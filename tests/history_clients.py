"""Clients that ask a gateway for whatever chance says."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

from tests.conftest import RATES
from tests.history import Fate, Kind, fate
from tests.history_calls import Ask, Caller, Notebook, Who

USERS = ("dora", "emil", "fay", "gus")
STAFF = (("root", "admin"), ("settle", "service"))
CURRENCIES = ("EUR", "USD", "BTC")
Appetite = Mapping[str, int]
# How often what is asked for.
BUSY: Appetite = {
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
# Seldom a write: what is kept lives long enough to be used.
CALM: Appetite = {
    "action": 2,
    "create": 1,
    "patch": 3,
    "rate": 40,
    "rates": 15,
    "own_rows": 15,
    "all_rows": 10,
    "order": 10,
}
# After so many calls the mood of all clients changes.
MOOD_CALLS = 150


class Client:
    """One client; `chance` decides what it asks for, as often as the appetite of the time says."""

    def __init__(
        self,
        base: str,
        notebook: Notebook,
        chance: random.Random,
        appetites: Sequence[Appetite] = (BUSY, CALM),
    ) -> None:
        self._notebook, self._chance = notebook, chance
        self._caller = Caller(base, notebook, chance)
        self._appetites = appetites

    async def run(self, calls: int, over: asyncio.Event) -> None:
        """Calls until it is over and all clients together have made so many calls."""
        async with self._caller.run():
            while len(self._notebook.calls) < calls or not over.is_set():
                mood = len(self._notebook.calls) // MOOD_CALLS % len(self._appetites)
                appetite = self._appetites[mood]
                (kind,) = self._chance.choices(list(appetite), list(appetite.values()))
                await getattr(self, kind)()

    # What is asked for.

    async def action(self) -> None:
        await self._action(self._staff())

    async def create(self) -> None:
        number = self._notebook.next_write()
        name = f"R{number}"
        body = {**_set(number), "baseInstrumentCode": name, "counterInstrumentCode": "EUR"}
        ask = Ask(Kind.CREATE, self._staff(), "POST", RATES, {"rate": name}, number, body)
        call = await self._caller.write(ask, keyed=self._sometimes())
        if fate(call) is Fate.DONE:
            self._notebook.learn(call.answer)

    async def patch(self) -> None:
        await self._patch(self._staff())

    async def delete(self) -> None:
        for name, path in self._known():
            number = self._notebook.next_write()
            ask = Ask(Kind.DELETE, self._staff(), "DELETE", path, {"rate": name}, number)
            await self._caller.write(ask, keyed=self._sometimes())

    async def rate(self) -> None:
        for name, path in self._known():
            asked = {"rate": name, "id": path.rpartition("/")[2]}
            await self._caller.once(Ask(Kind.RATE, self._anybody(), "GET", path, asked))

    async def rates(self) -> None:
        path, asked = RATES, {}
        if self._chance.random() < 0.3:
            for name, _ in self._known():
                path, asked = f"{RATES}?baseInstrumentCode={name}", {"rate": name}
        call = await self._caller.once(Ask(Kind.RATES, self._anybody(), "GET", path, asked))
        if fate(call) is Fate.DONE and call.answer:
            self._notebook.learn(self._chance.choice(call.answer[-self._notebook.hot_rates :]))

    async def own_rows(self) -> None:
        user = self._chance.choice(USERS)
        path = self._chance.choice(("/ledger", f"/ledger/{user}"))
        await self._caller.once(Ask(Kind.ROWS, (user, "user"), "GET", path, {"username": user}))

    async def all_rows(self) -> None:
        user, currency = self._chance.choice(USERS), self._chance.choice(CURRENCIES)
        choices: tuple[tuple[str, dict[str, str]], ...] = (
            ("/ledger", {}),
            (f"/ledger?currency={currency}", {"currency": currency}),
            (f"/ledger/{user}", {"username": user}),
        )
        path, asked = self._chance.choice(choices)
        await self._caller.once(Ask(Kind.ROWS, self._staff(), "GET", path, asked))

    async def order(self) -> None:
        order_id, (name, role) = self._order(), self._anybody()
        asked = {"order_id": order_id, **({"username": name} if role == "user" else {})}
        await self._caller.once(
            Ask(Kind.ROWS, (name, role), "GET", f"/ledger/order/{order_id}", asked)
        )

    async def forbidden(self) -> None:
        """What a user may not do: read another's rows, or write."""
        user, other = self._chance.sample(USERS, 2)
        match self._chance.randrange(3):
            case 0:
                path, asked = f"/ledger/{other}", {"username": other}
                await self._caller.once(Ask(Kind.ROWS, (user, "user"), "GET", path, asked))
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
        ask = Ask(Kind.ACTION, who, "POST", "/ledger", asked, number, asked)
        await self._caller.write(ask, keyed=True)

    async def _patch(self, who: Who) -> None:
        for name, path in self._known():
            number = self._notebook.next_write()
            ask = Ask(Kind.PATCH, who, "PATCH", path, {"rate": name}, number, _set(number))
            await self._caller.write(ask, keyed=self._sometimes())

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


def _set(number: int) -> dict[str, Any]:
    """The two fields that every write of a rate sets."""
    return {"amount": number, "scale": 2, "source": f"w{number}"}
