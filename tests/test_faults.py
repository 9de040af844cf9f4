"""A ledger connection that breaks at any byte: no write is lost, doubled or wrongly reported.

Everything here speaks over real connections: a caller, the gateway, a proxy that spoils one
exchange at one byte, and the sandbox ledger, whose memory tells what really happened.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer

from gateway.app import create_app, shared
from gateway.guard import GuardedLedger
from gateway.sandbox import LEDGER_ID, ORGANIZATION_ID, create_sandbox
from gateway.sandbox.pages import Selection, Window
from gateway.sandbox.store import Stamp, Store
from gateway.sandbox.wire import LEDGER, dumped
from tests.conftest import CREDENTIAL, NO_RETRIES, RATES, SERVICE, caller, config_for
from tests.proxy import ON_ACCEPT, PATIENCE_S, Exchange, Fault, FaultProxy, Kind, Stream

AS_SERVICE = caller(*SERVICE)
OWNER = (ORGANIZATION_ID, LEDGER_ID)
LONG_AGO = datetime(2024, 1, 28, 21, 12, tzinfo=UTC)
# What says that the ledger has certainly not carried it out.
NOT_SENT = {"LEDGER_UNREACHABLE", "CIRCUIT_OPEN", "OVERLOADED"}
UNKNOWN = (504, "OUTCOME_UNKNOWN")
# A circuit that never opens: here, a ledger that always fails is the rule.
NO_CIRCUIT = {"breaker__min_calls": "100000"}
HASTY = {"ledger__read_timeout_s": "0.3"}


# The bench.


@dataclass
class Bench:
    """A caller's client of a gateway, the proxy behind it, and the ledger's memory behind that."""

    client: TestClient[Any, Any]
    proxy: FaultProxy
    store: Store
    guarded: GuardedLedger

    async def prepare(self, *, fresh: bool) -> None:
        """Sees to it that the next call is the first on its connection, or is not."""
        if fresh:
            await self.proxy.disconnect()
        elif self.proxy.connections == 0:
            headers = AS_SERVICE | {"Cache-Control": "no-cache"}
            async with self.client.get("/ledger/nobody", headers=headers) as response:
                assert response.status == 200


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
    async with FaultProxy("127.0.0.1", int(server.port or 0)).run() as proxy:
        config = config_for(proxy.url, **{**NO_RETRIES, **NO_CIRCUIT, **settings})
        gateway = create_app(config, shared(config))
        client: TestClient[Any, Any] = TestClient(TestServer(gateway.api))
        guarded: Any = gateway.health._guarded
        # A retry comes at once.
        guarded._chance = lambda: 0.0
        async with client:
            yield Bench(client, proxy, server.app[LEDGER].store, guarded)


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
    """One call of a caller's, and how often the ledger had done it when it was answered."""

    status: int
    code: str | None
    body: bytes
    replayed: bool
    times: int
    result: bytes | None
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        return 200 <= self.status < 300


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
        codes = [attempt.code or attempt.status for attempt in self.attempts]
        return f"{self.deed.method} {self.number} {self.fault} {how} {codes}"


def violations(story: Story) -> list[str]:
    """What in a story may not be, whatever the ledger and the network did."""
    found = [f"done {story.times} times"] if story.times > 1 else []
    if story.attempts[-1].succeeded and story.times != 1:
        found.append("done at last, and not at the ledger")
    if story.deed.keyed and not story.attempts[-1].succeeded:
        found.append("never done")
    earlier = 0
    for attempt in story.attempts:
        found += _violations_of(attempt, earlier, story.deed)
        earlier = attempt.times
    return [f"{story}: {what}" for what in found]


def _violations_of(attempt: Attempt, earlier: int, deed: Deed) -> Iterator[str]:
    sent = attempt.exchanges
    if len(sent) > 1:
        yield f"sent {len(sent)} times for one call"
    if attempt.succeeded:
        if not attempt.times:
            yield "a success that did not happen"
        if attempt.status != deed.status or attempt.body != attempt.result:
            yield "an answer that the ledger did not give"
        if attempt.replayed < bool(earlier):
            yield "a repetition that is not told"
    elif attempt.code in NOT_SENT:
        if any(exchange.heard_whole for exchange in sent):
            yield "called not sent, and the ledger heard it"
    elif (attempt.status, attempt.code) != UNKNOWN:
        yield "blamed on somebody else"


async def call(bench: Bench, deed: Deed, number: int, attempt: int = 0) -> Attempt:
    """Makes a call, with a request id that tells the attempts apart."""
    headers = AS_SERVICE | {"X-Request-Id": _request_id(number, attempt)}
    body = deed.body(number)
    if deed.keyed:
        headers["Idempotency-Key"] = f"key-{number:05}"
    if body is not None:
        headers["Content-Type"] = "application/json"
    async with bench.client.request(
        deed.method, deed.path(number), data=body, headers=headers
    ) as response:
        text = await response.read()
        replayed = response.headers.get("Idempotency-Replayed") == "true"
        times = deed.times(bench.store, number)
        result = deed.result(bench.store, number) if times else None
        return Attempt(response.status, _code(response, text), text, replayed, times, result)


def _request_id(number: int, attempt: int) -> str:
    return f"r-{number:05}-{attempt:03}"


def _code(response: aiohttp.ClientResponse, text: bytes) -> str | None:
    if response.status < 400:
        return None
    body = json.loads(text)
    return str(body.get("code") or body["api_message"])


async def tell(bench: Bench, deed: Deed, number: int, fault: Fault, *, fresh: bool) -> Story:
    """A caller's write meets a fault, and is repeated with its key until it is known to be done."""
    await bench.prepare(fresh=fresh)
    bench.proxy.fault = fault
    attempts = [await call(bench, deed, number)]
    assert fault.reached.is_set(), fault
    async with asyncio.timeout(PATIENCE_S):
        while deed.keyed and not attempts[-1].succeeded and attempts[-1].status >= 500:
            attempts.append(await call(bench, deed, number, len(attempts)))
    return Story(deed, number, fault, fresh, attempts)


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
        return [] if (first.status, first.code) == UNKNOWN else [f"{story}: expected unknown"]
    if [exchange.fresh for exchange in first.exchanges] != [story.fresh]:
        return [f"{story}: on another kind of connection"]
    whole = fault.stream is Stream.ANSWER and fault.offset >= len(first.exchanges[0].answer)
    wanted = (story.deed.status, None) if whole else UNKNOWN
    if (first.status, first.code) != wanted:
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
            bounds = {0, 1, 2, *range(head - 5, head + 3), whole - 2, whole - 1}
            found = bounds | set(range(0, whole, step))
            yield from ((stream, offset) for offset in sorted(found) if offset < whole)


async def measured(bench: Bench, deed: Deed) -> Lengths:
    """How long the messages of a deed are."""
    if deed is not POST:
        add_rate(bench.store, 0)
    attempt = await call(bench, deed, 0)
    assert attempt.succeeded
    return Lengths.of(bench.proxy.exchanges[-1])


Place = tuple[Fault, bool]


def breaks(lengths: Lengths) -> Iterator[Place]:
    """At each byte a cut on a fresh connection and a reset on a kept one, or the other way round;
    which of the two alternates.
    """
    for kind in (Kind.CUT, Kind.RESET):
        yield Fault(Stream.REQUEST, ON_ACCEPT, kind), True
    for stream, offset in lengths.everywhere():
        one, other = (Kind.CUT, Kind.RESET)[:: 1 if offset % 2 else -1]
        yield Fault(stream, offset, one), True
        yield Fault(stream, offset, other), False


async def told(bench: Bench, deed: Deed, places: Sequence[Place], first: int = 1) -> list[Story]:
    """A story for each place, one after the other."""
    stories = []
    for number, (fault, fresh) in enumerate(places, first):
        if deed is not POST:
            add_rate(bench.store, number)
        stories.append(await tell(bench, deed, number, fault, fresh=fresh))
    return stories


def assert_good(stories: Sequence[Story]) -> None:
    """Nothing that may not be, and nothing surprising."""
    assert [one for story in stories for one in violations(story)] == []
    assert [one for story in stories for one in surprises(story)] == []


@pytest.mark.parametrize("deed", [POST, PATCH, DELETE], ids=lambda deed: deed.method)
async def test_a_write_whose_connection_breaks_at_any_byte_is_done_once(deed: Deed) -> None:
    async with ledger() as server, gateway_to(server) as bench:
        places = list(breaks(await measured(bench, deed)))
        stories = await told(bench, deed, places)
    complete(stories, bench)
    assert_good(stories)
