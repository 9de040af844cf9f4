"""Gateways with a bug, each of a kind that has cost somebody money: a history shows every one."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import aiohttp
import pytest

from gateway import cache, ledger, walk
from gateway.app import create_app, shared
from gateway.calls import LedgerCall, LedgerReply
from gateway.errors import GatewayError, LedgerUnreachable
from gateway.pages import Page, ReadPage
from gateway.server import listening
from tests.conftest import config_for
from tests.history import Rule
from tests.history_checks import violations
from tests.history_clients import APPETITE, Client, Notebook
from tests.history_faults import FaultyProxy, Odds
from tests.history_world import SETTINGS, WitnessLedger

CLIENTS = 6
CALLS = 500
SEED = 1
PATIENCE_S = 60.0
ODDS = Odds(cut=0.03, slow=0.3, late=0.01)
# The circuit stays closed, so that there is much to be found in few calls.
SETTINGS_HERE = {**SETTINGS, "BREAKER__FAILURE_RATIO": "1", "LEDGER__MAX_IN_FLIGHT": "50"}

Plant = Callable[[pytest.MonkeyPatch], None]


async def broken_rules(appetite: Mapping[str, int] = APPETITE) -> Counter[Rule]:
    """How often a history of calls to a gateway in this process breaks which rule."""
    witness, notebook, over = WitnessLedger(), Notebook(), asyncio.Event()
    over.set()
    async with (
        asyncio.timeout(PATIENCE_S),
        witness.run() as port,
        FaultyProxy(port, random.Random(f"{SEED} faults"), ODDS).run() as proxy,
    ):
        settings = {name.lower(): value for name, value in SETTINGS_HERE.items()}
        config = config_for(proxy.url, **settings)
        gateway = create_app(config, shared(config))
        async with listening(gateway.api, "127.0.0.1", 0) as api:
            chances = [random.Random(f"{SEED} client {index}") for index in range(CLIENTS)]
            url = f"http://127.0.0.1:{api}"
            clients = [Client(url, notebook, chance, appetite) for chance in chances]
            await asyncio.gather(*(client.run(CALLS, over) for client in clients))
    found = violations(notebook.calls, witness.state())
    return Counter(rule for rule, _ in found)


async def test_without_a_bug_every_call_is_explained() -> None:
    assert await broken_rules() == {}


def sends_again(patch: pytest.MonkeyPatch) -> None:
    """aiohttp hears of a dead connection, and repeats what it takes for idempotent."""
    send_once = ledger._send_once

    async def send(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        try:
            return await send_once(request, handler)
        except ledger._Broken as error:
            assert isinstance(error.__cause__, aiohttp.ClientError)
            raise error.__cause__ from None

    patch.setattr(ledger, "_send_once", send)


def takes_silence_for_refusal(patch: pytest.MonkeyPatch) -> None:
    """A write that was not answered passes for one that was not sent."""

    def translated(error: Exception, is_write: bool, progress: ledger.Progress) -> GatewayError:
        if is_write:
            return LedgerUnreachable("not sent")
        return ledger_translated(error, is_write, progress)

    ledger_translated = ledger.translated
    patch.setattr(ledger, "translated", translated)


def keeps_the_key(patch: pytest.MonkeyPatch) -> None:
    """The ledger gets a key of the gateway's own, another one for each call."""
    headers_of = ledger.LedgerClient._headers

    def headers(client: ledger.LedgerClient, call: LedgerCall) -> dict[str, str]:
        headers = headers_of(client, call)
        return headers | {"Idempotency-Key": call.request_id} if call.is_write else headers

    patch.setattr(ledger.LedgerClient, "_headers", headers)


def tells_nobody_of_writes(patch: pytest.MonkeyPatch) -> None:
    """What is kept is used although it was written over."""
    patch.setattr(cache.Generations, "bump", lambda _self, _tag: None)


def tells_of_writes_too_early(patch: pytest.MonkeyPatch) -> None:
    """What is read while a write is under way is kept beyond its end."""

    async def write(self: cache.CachedLedger, call: LedgerCall, tag: str) -> LedgerReply:
        self._generations.bump(tag)
        return await self._ledger.send(call)

    patch.setattr(cache.CachedLedger, "write", write)


def shows_all_rows(patch: pytest.MonkeyPatch) -> None:
    """A user sees everybody's rows of an order."""
    patch.setattr(walk.rows, "passes", lambda _row, _view: True)


def closes_broken_lists(patch: pytest.MonkeyPatch) -> None:
    """A list that breaks off on the way looks complete."""
    whole = walk.pages

    async def pages(read: ReadPage, cursor: str | None) -> AsyncIterator[Page]:
        begun = False
        try:
            async for page in whole(read, cursor):
                begun = True
                yield page
        except GatewayError:
            if not begun:
                raise

    patch.setattr(walk, "pages", pages)


def mixes_up_callers(patch: pytest.MonkeyPatch) -> None:
    """Who asks for one rate may get another that was asked for at the same time."""


WRITER = {"action": 20, "create": 10, "patch": 20, "delete": 20, "rate": 5, "rates": 5}
READER = {**APPETITE, "all_rows": 20, "own_rows": 20}


@pytest.mark.parametrize(
    ("plant", "appetite", "rule"),
    [
        (sends_again, WRITER, Rule.RESENT),
        (takes_silence_for_refusal, WRITER, Rule.EFFECT),
        (keeps_the_key, WRITER, Rule.EFFECT),
        (tells_nobody_of_writes, APPETITE, Rule.STALE),
        (tells_of_writes_too_early, APPETITE, Rule.STALE),
        (shows_all_rows, READER, Rule.ANSWER),
        (closes_broken_lists, READER, Rule.STALE),
    ],
)
async def test_a_gateway_with_a_bug_makes_a_history_that_nothing_explains(
    monkeypatch: pytest.MonkeyPatch, plant: Plant, appetite: Mapping[str, int], rule: Rule
) -> None:
    plant(monkeypatch)
    found = await broken_rules(appetite)
    print(found)
    assert found[rule]
