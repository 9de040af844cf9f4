"""A ledger connection that breaks at any byte: no write is lost, doubled or wrongly reported.

Everything here speaks over real connections: a caller, the gateway, a proxy that spoils one
exchange at one byte, and the sandbox ledger, whose memory tells what really happened.
"""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import aiohttp
import msgspec
import pytest
import structlog
from aiohttp.test_utils import TestServer

from gateway import cache, views
from gateway.app import create_app, shared
from gateway.calls import LedgerCall, LedgerReply, outcome_unknown
from gateway.endpoints import Reply
from gateway.errors import (
    GatewayError,
    LedgerBroken,
    LedgerTimeout,
    LedgerUnreachable,
    NotFound,
    OutcomeUnknown,
)
from gateway.freshness import Lifetime
from gateway.generations import Generations
from gateway.guard import GuardedLedger
from gateway.ledger import LedgerClient
from gateway.replies import LedgerConnection
from gateway.sandbox import LEDGER_ID, ORGANIZATION_ID, create_sandbox
from gateway.sandbox.pages import Selection, Window
from gateway.sandbox.store import Stamp, Store
from gateway.sandbox.wire import LEDGER, dumped
from gateway.upstream import ENDED, Response, Upstream
from tests.conftest import CREDENTIAL, NO_RETRIES, RATES, SERVICE, GatewayServer, caller, config_for
from tests.proxy import ON_ACCEPT, PATIENCE_S, Exchange, Fault, FaultProxy, Kind, Stream, message

AS_SERVICE = caller(*SERVICE)
HOST = "127.0.0.1"
OWNER = (ORGANIZATION_ID, LEDGER_ID)
LONG_AGO = datetime(2024, 1, 28, 21, 12, tzinfo=UTC)
# What says that the ledger has certainly not carried it out.
NOT_SENT = {"LEDGER_UNREACHABLE", "CIRCUIT_OPEN", "OVERLOADED"}
UNKNOWN = (504, "OUTCOME_UNKNOWN")
# A circuit that never opens: here, a ledger that always fails is the rule.
NO_CIRCUIT = {"breaker__min_calls": "100000"}
HASTY = {"ledger__read_timeout_s": "0.6"}

V = TypeVar("V")


# The bench.


@dataclass(frozen=True)
class Heard:
    """An answer as it came; `code` only if it is an error."""

    status: int
    code: str | None
    body: bytes
    replayed: bool


class Caller:
    """Calls a gateway over kept connections, with little work of its own: there are many calls."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Heard:
        """The answer to a request; underscores in header names become hyphens."""
        reader, writer = await self._connection()
        given = {name.replace("_", "-"): value for name, value in headers.items()} | AS_SERVICE
        if body is not None:
            given |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
        lines += [f"{name}: {value}" for name, value in given.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        head, _, text = (await message(reader)).partition(b"\r\n\r\n")
        self._kept.append((reader, writer))
        return _heard(head.lower(), text)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return self._kept.pop() if self._kept else await asyncio.open_connection(HOST, self._port)

    async def leave(self) -> None:
        """Ends the connections."""
        for _, writer in self._kept:
            writer.close()
            await writer.wait_closed()


def _heard(head: bytes, text: bytes) -> Heard:
    status, code = int(head.split()[1]), None
    assert b"\r\nconnection: close" not in head
    if status >= 400:
        document = json.loads(text)
        code = str(document.get("code") or document["api_message"])
    return Heard(status, code, text, b"\r\nidempotency-replayed: true" in head)


@dataclass
class Bench:
    """A caller of a gateway, the proxy behind it, and the ledger's memory behind that."""

    caller: Caller
    proxy: FaultProxy
    store: Store
    guarded: GuardedLedger

    async def prepare(self, *, fresh: bool) -> None:
        """Sees to it that the next call is the first on its connection, or is not."""
        if fresh:
            await self.proxy.disconnect()
        elif self.proxy.kept == 0:
            found = await self.caller.ask("GET", "/ledger/nobody", Cache_Control="no-cache")
            assert found.status == 200


@asynccontextmanager
async def ledger() -> AsyncIterator[TestServer]:
    """The sandbox ledger; on leaving, all that it was doing is done."""
    server = TestServer(create_sandbox(token=CREDENTIAL))
    await server.start_server()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def gateway_to(server: TestServer, **settings: str) -> AsyncIterator[Bench]:
    """A gateway before a ledger, with a proxy of its own between them."""
    async with FaultProxy(HOST, int(server.port or 0)).run() as proxy:
        config = config_for(proxy.url, **{**NO_RETRIES, **NO_CIRCUIT, **settings})
        gateway = create_app(config, shared(config))
        listener = GatewayServer(gateway.api)
        guarded: Any = gateway.health._guarded
        # A retry comes at once.
        guarded._chance = lambda: 0.0
        async with listener:
            caller = Caller(int(listener.port or 0))
            yield Bench(caller, proxy, server.app[LEDGER].store, guarded)
            await caller.leave()


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Thousands of lines that nobody reads take a while."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))


# What is asked, and how it is seen to have happened.


@dataclass(frozen=True)
class Deed:
    """A write of which there can be many, each with a number; `times` it was done is remembered
    by the ledger, and `result` is what a caller must be answered then.
    """

    method: str
    status: int
    path: Callable[[int], str]
    body: Callable[[int], bytes | None]
    times: Callable[[Store, int], int]
    result: Callable[[Store, int], bytes]
    keyed: bool = True
    on_rates: bool = True


def _rows(store: Store, number: int) -> list[bytes]:
    return store.page(Selection(username=f"u{number:05}"), Window()).rows


def _action(number: int) -> bytes:
    return (
        b'{"type":"deposit","username":"u%05d","currency":"BTC","amount":"1.50",'
        b'"timestamp":"2024-01-28T21:12:00Z"}' % number
    )


def _rate_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def _rate_path(number: int) -> str:
    return f"{RATES}/{_rate_id(number)}"


def _rate(store: Store, number: int) -> dict[str, Any]:
    return store.rate(OWNER, _rate_id(number))


def add_rate(store: Store, number: int) -> None:
    """A rate with a number."""
    given = {
        "baseInstrumentCode": f"C{number:05}",
        "counterInstrumentCode": "BTC",
        "amount": 1,
        "scale": 2,
        "source": "tests",
    }
    store.create_rate(OWNER, given, Stamp(_rate_id(number), LONG_AGO))


POST = Deed(
    "POST",
    201,
    path=lambda _number: "/ledger",
    body=_action,
    times=lambda store, number: len(_rows(store, number)),
    result=lambda store, number: (
        b'{"api_message":"LEDGER_POST_SUCCESS","api_data":[%b]}' % _rows(store, number)[0]
    ),
    on_rates=False,
)
PATCH = Deed(
    "PATCH",
    200,
    path=_rate_path,
    body=lambda _number: b'{"amount":2}',
    times=lambda store, number: int(_rate(store, number)["amount"] == 2),
    result=lambda store, number: dumped(_rate(store, number)),
)
DELETE = Deed(
    "DELETE",
    204,
    path=_rate_path,
    body=lambda _number: None,
    times=lambda store, number: int(_rate(store, number)["deletedAt"] is not None),
    result=lambda _store, _number: b"",
    keyed=False,
)


# What happened, and what of it must not have.


@dataclass
class Attempt:
    """One call of a caller's; how often the ledger had done it by then, and with what result."""

    heard: Heard
    times: int
    result: bytes | None
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        return 200 <= self.heard.status < 300

    @property
    def told(self) -> tuple[int, str | None]:
        return self.heard.status, self.heard.code


@dataclass
class Story:
    """A deed, the fault on its way, what the caller did, and how often it was done in the end."""

    deed: Deed
    number: int
    fault: Fault
    fresh: bool
    attempts: list[Attempt]
    times: int = 0

    def __str__(self) -> str:
        how = "fresh" if self.fresh else "reused"
        codes = [attempt.told for attempt in self.attempts]
        return f"{self.deed.method} {self.number} {self.fault} {how} {codes}"


def violations(story: Story) -> list[str]:
    """What in a story may not be, whatever the ledger and the network did."""
    found = [f"done {story.times} times"] if story.times > 1 else []
    if story.attempts[-1].succeeded and story.times != 1:
        found.append("done at last, and not at the ledger")
    if story.deed.keyed and not story.attempts[-1].succeeded:
        found.append("never done")
    earlier, heard = 0, False
    for attempt in story.attempts:
        found += _violations_of(attempt, earlier, heard, story.deed)
        earlier = attempt.times
        heard = heard or any(exchange.heard_whole for exchange in attempt.exchanges)
    return [f"{story}: {what}" for what in found]


def _violations_of(attempt: Attempt, earlier: int, heard: bool, deed: Deed) -> Iterator[str]:
    sent = attempt.exchanges
    if len(sent) > 1:
        yield f"sent {len(sent)} times for one call"
    if attempt.succeeded:
        if not attempt.times:
            yield "a success that did not happen"
        if (attempt.heard.status, attempt.heard.body) != (deed.status, attempt.result):
            yield "an answer that the ledger did not give"
        if attempt.heard.replayed < bool(earlier):
            yield "a repetition that is not told"
        if attempt.heard.replayed and not heard:
            yield "told as a repetition, and it was the first"
    elif attempt.heard.code in NOT_SENT:
        if any(exchange.heard_whole for exchange in sent):
            yield "called not sent, and the ledger heard it"
    elif attempt.told != UNKNOWN:
        yield "blamed on somebody else"


async def call(bench: Bench, deed: Deed, number: int, attempt: int = 0) -> Attempt:
    """Makes a call, with a request id that tells the attempts apart."""
    key = {"Idempotency_Key": f"key-{number:05}"} if deed.keyed else {}
    heard = await bench.caller.ask(
        deed.method,
        deed.path(number),
        deed.body(number),
        X_Request_Id=_request_id(number, attempt),
        **key,
    )
    times = deed.times(bench.store, number)
    return Attempt(heard, times, deed.result(bench.store, number) if times else None)


def _request_id(number: int, attempt: int) -> str:
    return f"r-{number:05}-{attempt:03}"


async def tell(
    bench: Bench, deed: Deed, number: int, fault: Fault, *more: Fault, fresh: bool
) -> Story:
    """A caller's write meets a fault, and is repeated with its key until it is known to be done;
    repetitions may meet more of them.
    """
    await bench.prepare(fresh=fresh)
    attempts: list[Attempt] = []
    async with asyncio.timeout(PATIENCE_S):
        for one in (fault, *more):
            bench.proxy.faults.append(one)
            asked = call(bench, deed, number, len(attempts))
            attempts.append(await _spoilt(bench, asked, one))
            assert one.reached.is_set(), one
            if attempts[-1].succeeded:
                break
        while deed.keyed and not attempts[-1].succeeded and attempts[-1].heard.status >= 500:
            attempts.append(await call(bench, deed, number, len(attempts)))
    return Story(deed, number, fault, fresh, attempts)


async def _spoilt(bench: Bench, asked: Coroutine[Any, Any, V], fault: Fault) -> V:
    """The answer to what meets a fault; one that delays is over when something else was answered,
    so that the gateway and the ledger have seen the first part.
    """
    if fault.kind is not Kind.DELAY:
        return await asked
    asking = asyncio.create_task(asked)
    await fault.reached.wait()
    for path in ("/health/live", "/ledger/nobody"):
        assert (await bench.caller.ask("GET", path)).status == 200
    assert not asking.done()
    fault.release.set()
    return await asking


def complete(stories: Iterable[Story], bench: Bench) -> None:
    """Adds what is known only in the end."""
    sent = bench.proxy.by_request()
    for story in stories:
        story.times = story.deed.times(bench.store, story.number)
        for number, attempt in enumerate(story.attempts):
            attempt.exchanges = sent.get(_request_id(story.number, number), [])


def surprises(story: Story) -> list[str]:
    """Where a first answer is not just what it could have been: too careful is wrong, too."""
    first, fault = story.attempts[0], story.fault
    if fault.offset == ON_ACCEPT:
        return [] if first.told == UNKNOWN else [f"{story}: expected unknown"]
    if [exchange.fresh for exchange in first.exchanges] != [story.fresh]:
        return [f"{story}: on another kind of connection"]
    answer = first.exchanges[0].answer
    whole = fault.stream is Stream.ANSWER and fault.offset >= len(answer)
    whole = whole or fault.kind is Kind.DELAY
    wanted = (story.deed.status, None) if whole else UNKNOWN
    if first.told != wanted:
        return [f"{story}: expected {wanted}"]
    return []


# Where it goes wrong.


@dataclass(frozen=True)
class Lengths:
    """Of a request and its answer, in bytes; heads apart from bodies."""

    request: int
    request_head: int
    answer: int
    answer_head: int

    @classmethod
    def of(cls, exchange: Exchange) -> "Lengths":
        heads = (message.index(b"\r\n\r\n") + 4 for message in (exchange.request, exchange.answer))
        request_head, answer_head = heads
        return cls(len(exchange.request), request_head, len(exchange.answer), answer_head)

    def everywhere(self) -> Iterator[tuple[Stream, int]]:
        """Before each byte of both, and behind the last."""
        yield from ((Stream.REQUEST, offset) for offset in range(self.request + 1))
        yield from ((Stream.ANSWER, offset) for offset in range(self.answer + 1))

    def here_and_there(self, step: int) -> Iterator[tuple[Stream, int]]:
        """Around the bounds of both, and at every so manieth byte."""
        for stream, head, whole in (
            (Stream.REQUEST, self.request_head, self.request),
            (Stream.ANSWER, self.answer_head, self.answer),
        ):
            bounds = {0, 1, *range(head - 4, head + 2), whole - 1}
            found = bounds | set(range(0, whole, step))
            yield from ((stream, offset) for offset in sorted(found) if offset < whole)


async def lengths_of(deed: Deed) -> Lengths:
    """How long the messages of a deed are."""
    async with ledger() as server, gateway_to(server) as bench:
        if deed.on_rates:
            add_rate(bench.store, 0)
        assert (await call(bench, deed, 0)).succeeded
        return Lengths.of(bench.proxy.exchanges[-1])


# Its number, what goes wrong, and whether on a fresh connection.
Place = tuple[int, Fault, bool]


# In which way, and whether on a fresh connection; from byte to byte they take turns.
_TURNS = ((Kind.CUT, True), (Kind.RESET, False), (Kind.RESET, True), (Kind.CUT, False))


def breaks(lengths: Lengths, *turns: int) -> list[Place]:
    """At each byte the connection breaks, once for each turn; two turns are a cut and a reset.

    Within the body of the answer, where one byte is like the next, the first turn has to do.
    """
    faults = [(Fault(Stream.REQUEST, ON_ACCEPT, kind), True) for kind in (Kind.CUT, Kind.RESET)]
    for stream, offset in lengths.everywhere():
        alike = stream is Stream.ANSWER and lengths.answer_head < offset < lengths.answer - 1
        for turn in turns[:1] if alike else turns:
            kind, fresh = _TURNS[(offset + offset // 4 + turn) % 4]
            faults.append((Fault(stream, offset, kind), fresh))
    return [(number, *fault) for number, fault in enumerate(faults, 1)]


def some(lengths: Lengths, kind: Kind, step: int) -> list[Place]:
    """Here and there, on a fresh connection and on a kept one in turn."""
    places = enumerate(lengths.here_and_there(step), 1)
    return [(number, Fault(*place, kind), bool(number % 2)) for number, place in places]


async def told(deed: Deed, places: Sequence[Place], lanes: int = 1, **settings: str) -> list[Story]:
    """A story for each place; in each lane one after the other, over a gateway of its own."""
    found: list[Story] = []
    # The sandbox looks at every rate there is before it changes one.
    for start in range(0, len(places), _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        async with ledger() as server:
            told = [_lane(server, deed, part[lane::lanes], settings) for lane in range(lanes)]
            by_lane = await asyncio.gather(*told)
        for bench, stories in by_lane:
            complete(stories, bench)
            found += stories
    assert len(found) == len(places)
    return found


_AT_ONCE = 200


async def _lane(
    server: TestServer, deed: Deed, places: Sequence[Place], settings: dict[str, str]
) -> tuple[Bench, list[Story]]:
    stories = []
    async with gateway_to(server, **settings) as bench:
        for number, fault, fresh in places:
            if deed.on_rates:
                add_rate(bench.store, number)
            stories.append(await tell(bench, deed, number, fault, fresh=fresh))
    return bench, stories


def wrong_with(stories: Sequence[Story]) -> list[str]:
    """What may not be, and what is a surprise."""
    return [one for story in stories for check in (violations, surprises) for one in check(story)]


DEEDS = pytest.mark.parametrize("deed", [POST, PATCH, DELETE], ids=lambda deed: deed.method)


@pytest.mark.parametrize(
    ("deed", "turns"),
    [(POST, (0, 2)), (PATCH, (0,)), (DELETE, (0, 2))],
    ids=["POST", "PATCH", "DELETE"],
)
async def test_a_write_whose_connection_breaks_at_any_byte_is_done_once(
    deed: Deed, turns: tuple[int, ...]
) -> None:
    assert wrong_with(await told(deed, breaks(await lengths_of(deed), *turns))) == []


async def test_a_write_of_which_the_rest_never_comes_is_done_once() -> None:
    async def waited_for(deed: Deed) -> list[str]:
        places = some(await lengths_of(deed), Kind.HANG, 61)
        return wrong_with(await told(deed, places, lanes=12, **HASTY))

    # All at once: they do nothing but wait.
    assert await asyncio.gather(*map(waited_for, (POST, PATCH, DELETE))) == [[], [], []]


@DEEDS
async def test_a_write_that_comes_in_two_parts_is_a_write(deed: Deed) -> None:
    places = some(await lengths_of(deed), Kind.DELAY, 13)
    stories = await told(deed, places)
    assert wrong_with(stories) == []
    assert {len(story.attempts) for story in stories} == {1}


# Fault after fault, and many callers at once.


def _anywhere(rng: random.Random, lengths: Lengths, *kinds: Kind) -> Fault:
    return Fault(*rng.choice(list(lengths.everywhere())), rng.choice(kinds))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_write_that_meets_fault_after_fault_is_done_once(seed: int) -> None:
    rng = random.Random(seed)
    deeds = [POST, PATCH, replace(DELETE, keyed=True)]
    lengths = {deed.method: await lengths_of(deed) for deed in deeds}
    stories = []
    async with ledger() as server, gateway_to(server) as bench:
        for number in range(1, 41):
            add_rate(bench.store, number)
            deed = rng.choice(deeds)
            kinds = (Kind.CUT, Kind.RESET, Kind.DELAY)
            faults = [
                _anywhere(rng, lengths[deed.method], *kinds) for _ in range(rng.randint(2, 5))
            ]
            fresh = rng.random() < 0.5
            stories.append(await tell(bench, deed, number, *faults, fresh=fresh))
    complete(stories, bench)
    assert [one for story in stories for one in violations(story)] == []
    assert any(len(story.attempts) > 3 for story in stories)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_writes_of_many_at_once_are_done_once_each(seed: int) -> None:
    rng = random.Random(seed)
    lengths = await lengths_of(POST)
    faults = [_anywhere(rng, lengths, Kind.CUT, Kind.RESET) for _ in range(80)]
    places = [rng.random() < 0.7 for _ in range(100)]

    async def insist(bench: Bench, number: int) -> Story:
        attempts = [await call(bench, POST, number)]
        async with asyncio.timeout(PATIENCE_S):
            while not attempts[-1].succeeded:
                attempts.append(await call(bench, POST, number, len(attempts)))
        return Story(POST, number, faults[0], False, attempts)

    async with ledger() as server, gateway_to(server) as bench:
        left = iter(faults)
        bench.proxy.faults.extend(next(left, None) if bad else None for bad in places)
        stories = await asyncio.gather(*(insist(bench, number) for number in range(1, 51)))
    complete(stories, bench)
    assert [one for story in stories for one in violations(story)] == []
    assert not bench.proxy.faults
    assert sum(len(story.attempts) for story in stories) > 100


# When the ledger certainly did not hear of it.


async def test_what_a_ledger_that_is_not_there_is_told_later_is_done_once() -> None:
    fault = Fault(Stream.REQUEST, ON_ACCEPT, Kind.CUT)
    async with ledger() as server, gateway_to(server) as bench:
        await bench.proxy.leave()
        attempts = [await call(bench, POST, 1)]
        await bench.proxy.listen()
        attempts.append(await call(bench, POST, 1, attempt=1))
    story = Story(POST, 1, fault, True, attempts)
    complete([story], bench)
    assert violations(story) == []
    assert [(one.heard.code, len(one.exchanges)) for one in attempts] == [
        ("LEDGER_UNREACHABLE", 0),
        (None, 1),
    ]


async def test_what_finds_no_place_is_not_sent_and_done_later() -> None:
    fault = Fault(Stream.ANSWER, 10, Kind.DELAY)
    crowded = {"ledger__max_in_flight": "1", "ledger__max_waiting": "0"}
    async with ledger() as server, gateway_to(server, **crowded) as bench:
        bench.proxy.faults.append(fault)
        slow = asyncio.create_task(call(bench, POST, 1))
        await fault.reached.wait()
        attempts = [await call(bench, POST, 2)]
        fault.release.set()
        first = Story(POST, 1, fault, True, [await slow])
        attempts.append(await call(bench, POST, 2, attempt=1))
        second = Story(POST, 2, fault, False, attempts)
    complete([first, second], bench)
    assert violations(first) + violations(second) == []
    assert [(one.heard.code, len(one.exchanges)) for one in attempts] == [
        ("OVERLOADED", 0),
        (None, 1),
    ]


async def test_an_open_circuit_sends_nothing_and_all_is_done_once_when_it_closes() -> None:
    now = 1000.0
    async with ledger() as server, gateway_to(server, breaker__min_calls="4") as bench:
        bench.guarded._now = lambda: now
        stories = []
        for number in range(1, 9):
            fault = Fault(Stream.ANSWER, 10, Kind.RESET)
            bench.proxy.faults.append(fault)
            stories.append(Story(POST, number, fault, True, [await call(bench, POST, number)]))
        bench.proxy.faults.clear()
        now += 5.0
        for story in stories:
            story.attempts.append(await call(bench, POST, story.number, attempt=1))
    complete(stories, bench)
    assert [one for story in stories for one in violations(story)] == []
    assert [
        (story.attempts[0].heard.code, len(story.attempts[0].exchanges)) for story in stories
    ] == [
        *[("OUTCOME_UNKNOWN", 1)] * 4,
        *[("CIRCUIT_OPEN", 0)] * 4,
    ]


# Reads.


@dataclass
class Reading:
    """What a read that met a fault was answered, and the next one; and what is right."""

    fault: Fault
    fresh: bool
    right: bytes
    first: Heard
    next: Heard
    exchanges: list[Exchange] = field(default_factory=list)
    next_exchanges: int = 0

    def __str__(self) -> str:
        how = "fresh" if self.fresh else "reused"
        return f"GET {self.fault} {how} {self.first.status} {self.first.code}"


def wrong_with_reading(reading: Reading, tries: int) -> list[str]:
    """What may not be in a reading when a read may be sent so many times."""
    found = []
    if reading.first.status == 200 and reading.first.body != reading.right:
        found.append("a success with something else")
    if reading.first.status not in (200, 502, 504):
        found.append("blamed on somebody else")
    if len(reading.exchanges) > tries:
        found.append(f"sent {len(reading.exchanges)} times")
    if (reading.next.status, reading.next.body) != (200, reading.right):
        found.append("something else the next time")
    if reading.next_exchanges != (0 if reading.first.status == 200 else 1):
        found.append("a failure kept, or a success not kept")
    return [f"{reading}: {what}" for what in found]


def surprises_of_reading(reading: Reading, tries: int) -> list[str]:
    """Where a read is not answered with just what it could have been."""
    fault = reading.fault
    begun = whole = False
    if fault.stream is Stream.ANSWER:
        answer = reading.exchanges[0].answer
        begun = fault.offset >= answer.index(b"\r\n\r\n") + 4
        whole = fault.offset >= len(answer)
    repeated = tries > 1 and not begun and fault.kind in (Kind.CUT, Kind.RESET)
    wanted: tuple[int, str | None] = (502, "LEDGER_BROKEN")
    if fault.kind is Kind.HANG:
        wanted = (504, "LEDGER_TIMEOUT")
    if whole or repeated or fault.kind is Kind.DELAY:
        wanted = (200, None)
    found = []
    if (reading.first.status, reading.first.code) != wanted:
        found.append(f"expected {wanted}")
    connections = [reading.fresh, True][fault.offset == ON_ACCEPT : 2 if repeated else 1]
    if [exchange.fresh for exchange in reading.exchanges] != connections:
        found.append(f"expected {len(connections)} exchanges, on other connections")
    return [f"{reading}: {what}" for what in found]


async def _get(bench: Bench, number: int, attempt: int) -> Heard:
    ids = _request_id(number, attempt)
    return await bench.caller.ask("GET", _rate_path(number), X_Request_Id=ids)


async def read(bench: Bench, number: int, fault: Fault, *, fresh: bool) -> Reading:
    """A caller's read meets a fault, and is repeated once."""
    add_rate(bench.store, number)
    await bench.prepare(fresh=fresh)
    bench.proxy.faults.append(fault)
    first = await _spoilt(bench, _get(bench, number, 0), fault)
    again = await _get(bench, number, 1)
    return Reading(fault, fresh, dumped(_rate(bench.store, number)), first, again)


async def readings(
    places: Sequence[Place], settings: dict[str, str], lanes: int = 1
) -> list[Reading]:
    """A reading for each place; in each lane one after the other, over a gateway of its own."""

    async def lane(server: TestServer, part: Sequence[Place]) -> list[Reading]:
        async with gateway_to(server, **settings) as bench:
            found = [await read(bench, number, fault, fresh=fresh) for number, fault, fresh in part]
        sent = bench.proxy.by_request()
        for (number, *_), reading in zip(part, found, strict=True):
            reading.exchanges = sent.get(_request_id(number, 0), [])
            reading.next_exchanges = len(sent.get(_request_id(number, 1), []))
        return found

    async with ledger() as server:
        by_lane = await asyncio.gather(*(lane(server, places[n::lanes]) for n in range(lanes)))
    return [reading for part in by_lane for reading in part]


async def lengths_of_read() -> Lengths:
    """How long the messages of a read are."""
    async with ledger() as server, gateway_to(server) as bench:
        add_rate(bench.store, 0)
        assert (await _get(bench, 0, 0)).status == 200
        return Lengths.of(bench.proxy.exchanges[-1])


def wrong_with_readings(found: Sequence[Reading], tries: int) -> list[str]:
    """What may not be, and what is a surprise."""
    checks = (wrong_with_reading, surprises_of_reading)
    return [one for reading in found for check in checks for one in check(reading, tries)]


CACHED = {"cache__rates_ttl_s": "3600"}
RETRIES = {"ledger__retry_ratio": "1", "ledger__retry_floor": "1000"}


@pytest.mark.parametrize(("tries", "settings"), [(1, {}), (2, RETRIES)], ids=["once", "twice"])
async def test_a_read_whose_connection_breaks_at_any_byte_is_right_or_an_error(
    tries: int, settings: dict[str, str]
) -> None:
    # Every other byte; those between are in the other one of these two tests.
    places = breaks(await lengths_of_read(), 0)[tries - 1 :: 2]
    found = await readings(places, CACHED | settings)
    assert len(found) == len(places)
    assert wrong_with_readings(found, tries) == []


@pytest.mark.parametrize(
    ("kind", "step", "lanes"), [(Kind.HANG, 61, 16), (Kind.DELAY, 13, 1)], ids=["hang", "delay"]
)
async def test_a_read_of_which_the_rest_comes_late_or_never_is_right_or_an_error(
    kind: Kind, step: int, lanes: int
) -> None:
    places = some(await lengths_of_read(), kind, step)
    hasty = HASTY if kind is Kind.HANG else {}
    found = await readings(places, CACHED | RETRIES | hasty, lanes)
    assert len(found) == len(places)
    assert wrong_with_readings(found, tries=2) == []


# Reads after a write of which nobody knows.


async def truths(deed: Deed, places: Sequence[Place]) -> list[str]:
    """Where a read that was known before is not, after a write met a fault, what the ledger has."""
    found = []
    deed = replace(deed, keyed=False)
    async with ledger() as server, gateway_to(server, **CACHED) as bench:
        for number, fault, fresh in places:
            add_rate(bench.store, number)
            before = await _get(bench, number, 1)
            story = await tell(bench, deed, number, fault, fresh=fresh)
            after = await _get(bench, number, 2)
            assert before.status == 200
            if (after.status, after.body) != (200, dumped(_rate(bench.store, number))):
                found.append(f"{story}: {after}")
    return found


@pytest.mark.parametrize("deed", [PATCH, DELETE], ids=lambda deed: deed.method)
async def test_after_a_write_that_met_a_fault_a_read_is_what_the_ledger_has(deed: Deed) -> None:
    places = some(await lengths_of(deed), Kind.CUT, 17)
    assert await truths(deed, places) == []


@pytest.mark.parametrize("stream", list(Stream))
@pytest.mark.parametrize("deed", [PATCH, DELETE], ids=lambda deed: deed.method)
async def test_what_was_read_while_a_write_was_under_way_is_not_kept(
    deed: Deed, stream: Stream
) -> None:
    for number, found in enumerate(await read_between(deed, stream)):
        old, new, truth = found
        assert (old.status, new.status) == (200, 200), number
        assert new.body == truth
        assert (old.body == new.body) == (stream is Stream.ANSWER)


async def read_between(deed: Deed, stream: Stream) -> list[tuple[Heard, Heard, bytes]]:
    """What is read while a write waits, what is read after it, and what is right then."""
    found = []
    async with ledger() as server, gateway_to(server, **CACHED) as bench:
        for number in range(10):
            add_rate(bench.store, number)
            fault = Fault(stream, number * 10, Kind.DELAY)
            bench.proxy.faults.append(fault)
            writing = asyncio.create_task(call(bench, deed, number))
            await asyncio.wait_for(fault.reached.wait(), PATIENCE_S)
            between = await _get(bench, number, 1)
            fault.release.set()
            assert (await writing).succeeded
            after = await _get(bench, number, 2)
            found.append((between, after, dumped(_rate(bench.store, number))))
    return found


# The tests of the tests: each of these gateways is wrong, and is found out.

Plant = Callable[[pytest.MonkeyPatch], None]
_good_send, _good_headers = LedgerClient.send, LedgerClient._headers
_good_exchange = Upstream.exchange


def sends_again_by_itself(patch: pytest.MonkeyPatch) -> None:
    """As HTTP clients do with what may be repeated by its method."""

    async def exchange(self: Upstream, *arguments: Any) -> Response:
        try:
            return await _good_exchange(self, *arguments)
        except ENDED:
            return await _good_exchange(self, *arguments)

    patch.setattr(Upstream, "exchange", exchange)


def asks_twice(patch: pytest.MonkeyPatch) -> None:
    async def send(self: LedgerClient, call: LedgerCall, timeout_s: float) -> LedgerReply:
        try:
            return await _good_send(self, call, timeout_s)
        except OutcomeUnknown:
            return await _good_send(self, call, timeout_s)

    patch.setattr(LedgerClient, "send", send)


def hopes_for_the_best(patch: pytest.MonkeyPatch) -> None:
    async def send(self: LedgerClient, call: LedgerCall, timeout_s: float) -> LedgerReply:
        try:
            return await _good_send(self, call, timeout_s)
        except OutcomeUnknown:
            return LedgerReply(201, b"" if call.method == "DELETE" else b'[{"id":"1"}]')

    patch.setattr(LedgerClient, "send", send)


def fails(error: GatewayError) -> Plant:
    """Every fault of the ledger's is this error."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("gateway.ledger.translated", lambda *_arguments: error)

    return plant


def has_keys_of_its_own(patch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()

    def headers(self: LedgerClient, call: LedgerCall) -> dict[str, str]:
        return _good_headers(self, call) | {"Idempotency-Key": f"own-{next(numbers):05}"}

    patch.setattr(LedgerClient, "_headers", headers)


def drops_the_key(patch: pytest.MonkeyPatch) -> None:
    def headers(self: LedgerClient, call: LedgerCall) -> dict[str, str]:
        return _good_headers(self, msgspec.structs.replace(call, idempotency_key=None))

    patch.setattr(LedgerClient, "_headers", headers)


def keeps_a_replay_to_itself(patch: pytest.MonkeyPatch) -> None:
    async def send(self: LedgerClient, call: LedgerCall, timeout_s: float) -> LedgerReply:
        return msgspec.structs.replace(await _good_send(self, call, timeout_s), replayed=False)

    patch.setattr(LedgerClient, "send", send)


def despairs(patch: pytest.MonkeyPatch) -> None:
    """It takes no success for one the first time."""

    async def send(self: LedgerClient, call: LedgerCall, timeout_s: float) -> LedgerReply:
        reply = await _good_send(self, call, timeout_s)
        if call.is_write and not reply.replayed:
            raise outcome_unknown()
        return reply

    patch.setattr(LedgerClient, "send", send)


def takes_what_has_come(patch: pytest.MonkeyPatch) -> None:
    """A body that breaks off is a body."""

    async def body(
        _line: LedgerConnection, _headers: Any, payload: aiohttp.StreamReader, _limit: int
    ) -> bytes:
        found = b""
        with contextlib.suppress(aiohttp.ClientError):
            async for chunk in payload.iter_any():
                found += chunk
        return found

    patch.setattr("gateway.upstream.read_body", body)
    patch.setitem(views.READERS, Reply.RATE, as_it_is)


async def as_it_is(text: bytes) -> bytes:
    return text


def remembers_too_well(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Generations, "bump", lambda _self, _tag: None)


def never_remembers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache, "allowed", lambda _lifetime, _values: Lifetime(0.0))


@pytest.mark.parametrize(
    ("plant", "deed", "finding"),
    [
        (sends_again_by_itself, DELETE, "sent 2 times for one call"),
        (asks_twice, DELETE, "sent 2 times for one call"),
        (asks_twice, POST, "sent 2 times for one call"),
        (hopes_for_the_best, POST, "a success that did not happen"),
        (hopes_for_the_best, POST, "an answer that the ledger did not give"),
        (hopes_for_the_best, DELETE, "done at last, and not at the ledger"),
        (fails(LedgerUnreachable("")), POST, "called not sent, and the ledger heard it"),
        (fails(LedgerUnreachable("")), DELETE, "called not sent, and the ledger heard it"),
        (fails(LedgerBroken("")), POST, "blamed on somebody else"),
        (fails(LedgerTimeout("")), DELETE, "blamed on somebody else"),
        (fails(NotFound("")), POST, "blamed on somebody else"),
        (has_keys_of_its_own, POST, "done 2 times"),
        (drops_the_key, POST, "never done"),
        (keeps_a_replay_to_itself, POST, "a repetition that is not told"),
    ],
    ids=lambda value: getattr(value, "method", None),
)
async def test_a_gateway_that_is_wrong_about_writes_is_found_out(
    plant: Plant, deed: Deed, finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = some(await lengths_of(deed), Kind.CUT, 97)
    plant(monkeypatch)
    stories = await told(deed, places)
    assert finding in {one.rsplit(": ", 1)[1] for story in stories for one in violations(story)}


@pytest.mark.parametrize("deed", [POST, PATCH], ids=lambda deed: deed.method)
async def test_a_gateway_that_is_too_careful_is_found_out(
    deed: Deed, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = some(await lengths_of(deed), Kind.DELAY, 97)
    despairs(monkeypatch)
    stories = await told(deed, places)
    assert [one for story in stories for one in violations(story)] == []
    assert all(surprises(story) for story in stories)


@pytest.mark.parametrize(
    ("plant", "tries", "finding"),
    [
        (takes_what_has_come, 1, "a success with something else"),
        (takes_what_has_come, 1, "something else the next time"),
        (never_remembers, 2, "a failure kept, or a success not kept"),
        (sends_again_by_itself, 1, "sent 2 times"),
        (fails(NotFound("")), 1, "blamed on somebody else"),
        (fails(LedgerBroken("")), 2, "expected (200, None)"),
    ],
)
async def test_a_gateway_that_is_wrong_about_reads_is_found_out(
    plant: Plant, tries: int, finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = some(await lengths_of_read(), Kind.CUT, 97)
    plant(monkeypatch)
    found = await readings(places, CACHED | (RETRIES if tries > 1 else {}))
    assert finding in {one.rsplit(": ", 1)[1] for one in wrong_with_readings(found, tries)}


@pytest.mark.parametrize("deed", [PATCH, DELETE], ids=lambda deed: deed.method)
async def test_a_gateway_that_forgets_nothing_is_found_out(
    deed: Deed, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = some(await lengths_of(deed), Kind.CUT, 97)
    remembers_too_well(monkeypatch)
    assert await truths(deed, places) != []
    between = await read_between(deed, Stream.REQUEST)
    assert all(new.body != truth for _, new, truth in between)
