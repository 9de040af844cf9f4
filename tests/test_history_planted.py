"""Gateways with a bug, each of a kind that has cost somebody money: a history shows every one."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway import cache, ledger, upstream
from gateway.app import create_app, shared
from gateway.authz import View
from gateway.batches import RowIndex, Rows
from gateway.calls import LedgerCall, LedgerReply
from gateway.errors import GatewayError, LedgerUnreachable
from gateway.pages import Page, ReadPage
from gateway.pages import pages as pages_of
from gateway.server import listening
from tests.conftest import config_for
from tests.history import Call, Rule
from tests.history_calls import Notebook
from tests.history_checks import violations
from tests.history_clients import BUSY, Appetite, Client
from tests.history_faults import FaultyProxy, Odds
from tests.history_world import SETTINGS, Fleet, WitnessLedger

SEED = 1
CLIENTS = 10
CALLS = 400
PATIENCE_S = 60.0
# In few calls much is to be found: a bad line, short pages, and a circuit that never opens.
ODDS = Odds(cut=0.04, slow=0.3, late=0.01, slow_s=0.02)
HERE = {
    **SETTINGS,
    "BREAKER__FAILURE_RATIO": "1",
    "LEDGER__MAX_IN_FLIGHT": "50",
    "LEDGER__PAGE_SIZE": "20",
}
# What is asked for where a bug shows.
WRITER = {"action": 20, "create": 15, "patch": 10, "delete": 25, "rate": 5, "rates": 5}
WATCHER = {"action": 4, "create": 2, "patch": 6, "rate": 10, "rates": 50, "own_rows": 25}
READER = {"action": 30, "all_rows": 30, "own_rows": 20, "order": 20}

Plant = Callable[[pytest.MonkeyPatch], None]


@asynccontextmanager
async def faulty_ledger(witness: WitnessLedger) -> AsyncIterator[str]:
    """The address of a ledger behind a bad line."""
    proxy = partial(FaultyProxy, chance=random.Random(f"{SEED} faults"), odds=ODDS)
    async with (
        asyncio.timeout(PATIENCE_S),
        witness.run() as port,
        proxy(port).run() as line,
    ):
        yield line.url


async def make_calls(url: str, appetite: Appetite) -> Sequence[Call]:
    notebook, over = Notebook(hot_rates=3), asyncio.Event()
    over.set()
    chances = [random.Random(f"{SEED} client {index}") for index in range(CLIENTS)]
    clients = [Client(url, notebook, chance, [appetite]) for chance in chances]
    await asyncio.gather(*(client.run(CALLS, over) for client in clients))
    return notebook.calls


async def broken_rules(appetite: Appetite) -> Counter[Rule]:
    """How often a history of calls to a gateway in this process breaks which rule."""
    witness = WitnessLedger()
    async with faulty_ledger(witness) as ledger_url:
        settings = {name.lower(): value for name, value in HERE.items()}
        config = config_for(ledger_url, **settings)
        gateway = create_app(config, shared(config))
        async with listening(gateway.api, "127.0.0.1", 0) as port:
            calls = await make_calls(f"http://127.0.0.1:{port}", appetite)
    return Counter(rule for rule, _ in violations(calls, witness.state()))


@pytest.fixture(autouse=True)
def quiet() -> None:
    """A gateway in this process that logs nothing."""
    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=silent)


async def test_without_a_bug_every_call_is_explained() -> None:
    assert await broken_rules(BUSY) == {}


def sends_again(patch: pytest.MonkeyPatch) -> None:
    """The HTTP client hears of a dead connection, and repeats what it takes for idempotent."""
    exchange_once = upstream.Upstream.exchange

    async def exchange(
        self: upstream.Upstream, origin: upstream.Origin, request: bytes, *rest: Any
    ) -> upstream.Response:
        try:
            return await exchange_once(self, origin, request, *rest)
        except upstream.ENDED:
            if request.startswith((b"POST", b"PATCH")):
                raise
            return await exchange_once(self, origin, request, *rest)

    patch.setattr(upstream.Upstream, "exchange", exchange)


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
        # On a slow line others read meanwhile.
        await asyncio.sleep(0.02)
        return await self._ledger.send(call)

    patch.setattr(cache.CachedLedger, "write", write)


def shows_all_rows(patch: pytest.MonkeyPatch) -> None:
    """A user sees everybody's rows of an order."""
    everything = View(owner=None, hidden=frozenset(), ambiguous=True)
    patch.setattr(RowIndex, "seen", lambda index, _view: Rows(index.batches, everything))


def closes_broken_lists(patch: pytest.MonkeyPatch) -> None:
    """A list that breaks off on the way looks complete."""

    async def pages(read: ReadPage, page: Page) -> AsyncIterator[Page]:
        begun = False
        try:
            async for found in pages_of(read, page):
                begun = True
                yield found
        except GatewayError:
            if not begun:
                raise

    patch.setattr("gateway.walk.pages", pages)


@pytest.mark.parametrize(
    ("plant", "appetite", "rule"),
    [
        (sends_again, WRITER, Rule.RESENT),
        (takes_silence_for_refusal, WRITER, Rule.EFFECT),
        (keeps_the_key, WRITER, Rule.EFFECT),
        (tells_nobody_of_writes, WATCHER, Rule.STALE),
        (tells_of_writes_too_early, WATCHER, Rule.STALE),
        (shows_all_rows, READER, Rule.ANSWER),
        (closes_broken_lists, READER, Rule.STALE),
    ],
)
async def test_a_bug_makes_a_history_that_nothing_explains(
    monkeypatch: pytest.MonkeyPatch, plant: Plant, appetite: Appetite, rule: Rule
) -> None:
    plant(monkeypatch)
    found = await broken_rules(appetite)
    assert found[rule] > 0


DEAF_WORKERS = """
import mmap
shared = mmap.mmap

def mapped(file, *rest, **options):
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return shared(file, *rest, **(private if file == -1 else options))

mmap.mmap = mapped
from gateway.__main__ import main
raise SystemExit(main())
"""


async def test_workers_that_do_not_hear_of_each_others_writes_make_one(tmp_path: Path) -> None:
    witness = WitnessLedger()
    async with faulty_ledger(witness) as ledger_url, AsyncExitStack() as stack:
        fleet = Fleet(stack, tmp_path, ledger_url, ("-c", DEAF_WORKERS))
        await fleet.start()
        calls = await make_calls(fleet.url, WATCHER)
        await fleet.stop()
    found = Counter(rule for rule, _ in violations(calls, witness.state()))
    assert found[Rule.STALE] > 0
