"""Writes in flight: joined or told apart, sent once, and never cut short by whoever leaves."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from msgspec.structs import replace

from gateway.app import create_app, shared
from gateway.calls import LedgerCall, LedgerReply
from gateway.errors import KeyReused, LedgerUnreachable, OutcomeUnknown
from gateway.ledger import LedgerClient
from gateway.sandbox import create_sandbox
from gateway.sandbox.pages import Selection, Window
from gateway.sandbox.store import Store
from gateway.sandbox.wire import LEDGER
from gateway.writes import Send, Writes
from tests.conftest import (
    ADMIN,
    CREDENTIAL,
    NO_RETRIES,
    RATE,
    RATES,
    SERVICE,
    GatewayServer,
    caller,
    config_for,
)
from tests.fakes import FakeLedger
from tests.faulty import Act, FaultyLedger, closes, reply, resets, sends, sends_apart
from tests.proxy import PATIENCE_S, Fault, FaultProxy, Kind, Stream
from tests.test_overload import until

Client = TestClient[Any, Any]

CALL = LedgerCall("POST", "/ledger", (), "alice", "r-1", b'{"a":1}', "key-1")
KEYLESS = replace(CALL, idempotency_key=None)
# The one thing in which each of these differs makes it another write.
OTHERS = {
    "user": replace(CALL, username="bob"),
    "method": replace(CALL, method="PATCH"),
    "path": replace(CALL, path="/v1/rates"),
    "key": replace(CALL, idempotency_key="key-2"),
    "case of the key": replace(CALL, idempotency_key="KEY-1"),
}


# By itself.


class Ledger:
    """Answers each call when it is told to."""

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[LedgerReply]] = []

    def send(self) -> Send:
        """What a call of this ledger is sent with."""

        async def send() -> LedgerReply:
            answer: asyncio.Future[LedgerReply] = asyncio.get_running_loop().create_future()
            self.answers.append(answer)
            return await answer

        return send

    async def asked(self, times: int) -> None:
        """Returns when there were so many calls, and everybody else had a turn."""
        await until(lambda: len(self.answers) >= times)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(self.answers) == times


class Desk:
    """Writes to one ledger, and those who make them."""

    def __init__(self) -> None:
        self.writes = Writes()
        self.ledger = Ledger()

    def start(self, call: LedgerCall = CALL) -> asyncio.Task[tuple[LedgerReply, bool]]:
        return asyncio.create_task(self.writes.send(call, self.ledger.send()))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def _reply(number: int = 1) -> LedgerReply:
    return LedgerReply(201, b"%d" % number)


async def test_the_same_write_in_flight_is_sent_once_and_answered_to_all(desk: Desk) -> None:
    first, *others = asked = [desk.start(replace(CALL, request_id=f"r-{n}")) for n in range(5)]
    await desk.ledger.asked(1)
    assert not any(task.done() for task in asked)
    desk.ledger.answers[0].set_result(_reply())
    assert await first == (_reply(), False)
    assert [await task for task in others] == [(_reply(), True)] * 4


async def test_the_same_key_with_another_body_is_refused_at_once(desk: Desk) -> None:
    first = desk.start()
    await desk.ledger.asked(1)
    for body in (b'{"a":2}', b"", None):
        with pytest.raises(KeyReused):
            await asyncio.wait_for(desk.start(replace(CALL, body=body)), PATIENCE_S)
    await desk.ledger.asked(1)
    desk.ledger.answers[0].set_result(_reply())
    assert await first == (_reply(), False)


async def test_a_key_without_a_body_is_reused_by_one_with_a_body(desk: Desk) -> None:
    first = desk.start(replace(CALL, body=None))
    second = desk.start(replace(CALL, body=None))
    await desk.ledger.asked(1)
    with pytest.raises(KeyReused):
        await asyncio.wait_for(desk.start(), PATIENCE_S)
    desk.ledger.answers[0].set_result(_reply())
    assert [(await task)[1] for task in (first, second)] == [False, True]


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
async def test_another_write_is_not_joined(desk: Desk, other: LedgerCall) -> None:
    tasks = [desk.start(), desk.start(other), desk.start(replace(other, body=other.body))]
    await desk.ledger.asked(2)
    for number, answer in enumerate(desk.ledger.answers):
        answer.set_result(_reply(number))
    assert [await task for task in tasks] == [
        (_reply(0), False),
        (_reply(1), False),
        (_reply(1), True),
    ]


async def test_writes_without_a_key_are_each_sent(desk: Desk) -> None:
    tasks = [desk.start(KEYLESS) for _ in range(3)]
    await desk.ledger.asked(3)
    for number, answer in enumerate(desk.ledger.answers):
        answer.set_result(_reply(number))
    assert [await task for task in tasks] == [(_reply(number), False) for number in range(3)]


async def test_what_is_not_in_flight_any_more_is_for_the_ledger_to_know(desk: Desk) -> None:
    for number, body in enumerate((b"1", b"1", b"2"), 1):
        task = desk.start(replace(CALL, body=body))
        await desk.ledger.asked(number)
        desk.ledger.answers[-1].set_result(_reply(number))
        assert await task == (_reply(number), False)


# Those who leave.


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_who_leaves_takes_the_write_from_nobody(desk: Desk, leaver: int) -> None:
    tasks = [desk.start() for _ in range(3)]
    await desk.ledger.asked(1)
    gone = tasks.pop(leaver)
    gone.cancel()
    await asyncio.wait((gone,))
    assert gone.cancelled()
    late = desk.start()
    await desk.ledger.asked(1)
    desk.ledger.answers[0].set_result(_reply())
    assert {(await task)[0] for task in (*tasks, late)} == {_reply()}
    assert (await late)[1] is True


@pytest.mark.parametrize("call", [CALL, KEYLESS], ids=["with a key", "without"])
async def test_a_write_that_everybody_left_is_finished(desk: Desk, call: LedgerCall) -> None:
    task = desk.start(call)
    await desk.ledger.asked(1)
    task.cancel()
    await asyncio.wait((task,))
    finished = asyncio.create_task(desk.writes.finish())
    await desk.ledger.asked(1)
    answer = desk.ledger.answers[0]
    assert (finished.done(), answer.cancelled()) == (False, False)
    answer.set_result(_reply())
    await finished


async def test_who_leaves_before_the_first_turn_has_asked_all_the_same(desk: Desk) -> None:
    task = desk.start()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    await desk.ledger.asked(1)
    joined = desk.start()
    await desk.ledger.asked(1)
    desk.ledger.answers[0].set_result(_reply())
    assert await joined == (_reply(), True)


# Failures.


@pytest.fixture
async def complaints() -> AsyncIterator[list[str]]:
    """What the event loop says of failures that nobody asked for."""
    found: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: found.append(context["message"]))
    yield found
    loop.set_exception_handler(None)


async def test_a_failure_is_told_to_all_and_frees_the_key(desk: Desk) -> None:
    tasks = [desk.start() for _ in range(3)]
    await desk.ledger.asked(1)
    desk.ledger.answers[0].set_exception(OutcomeUnknown("MARKER"))
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [(type(error), str(error)) for error in found] == [(OutcomeUnknown, "MARKER")] * 3
    again = desk.start(replace(CALL, body=b"other"))
    await desk.ledger.asked(2)
    desk.ledger.answers[1].set_result(_reply())
    assert await again == (_reply(), False)


@pytest.mark.parametrize("call", [CALL, KEYLESS], ids=["with a key", "without"])
async def test_a_failure_that_nobody_waits_for_is_no_complaint(
    desk: Desk, call: LedgerCall, complaints: list[str]
) -> None:
    task = desk.start(call)
    await desk.ledger.asked(1)
    task.cancel()
    await asyncio.wait((task,))
    desk.ledger.answers.pop().set_exception(OutcomeUnknown(""))
    await desk.writes.finish()
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


# The end.


async def test_the_end_waits_for_every_write_and_those_that_follow(desk: Desk) -> None:
    await desk.writes.finish()
    tasks = [desk.start(), desk.start(KEYLESS), desk.start(OTHERS["key"])]
    await desk.ledger.asked(3)
    finished = asyncio.create_task(desk.writes.finish())
    desk.ledger.answers[0].set_result(_reply())
    desk.ledger.answers[1].set_exception(OutcomeUnknown(""))
    await asyncio.wait(tasks[:2])
    assert isinstance(tasks[1].exception(), OutcomeUnknown)
    tasks.append(desk.start())
    desk.ledger.answers[2].set_result(_reply())
    await desk.ledger.asked(4)
    assert not finished.done()
    desk.ledger.answers[3].set_result(_reply())
    await finished
    assert all(task.done() for task in (tasks[0], tasks[2], tasks[3]))


async def _come_and_go(desk: Desk, number: int) -> None:
    """Two writes, one of them with a key; one goes well, one does not, and sometimes one leaves."""
    keyed = replace(CALL, idempotency_key=f"key-{number // 2}", body=b"%d" % number)
    tasks = [desk.start(keyed), desk.start(KEYLESS)]
    await desk.ledger.asked(2)
    if number % 3 == 0:
        tasks[0].cancel()
    desk.ledger.answers.pop(number % 2).set_result(_reply())
    desk.ledger.answers.pop().set_exception(OutcomeUnknown(""))
    await asyncio.gather(*tasks, return_exceptions=True)
    await desk.writes.finish()


async def test_nothing_is_kept_of_a_write_that_is_over(desk: Desk) -> None:
    counts = []
    for number in range(60):
        await _come_and_go(desk, number)
        if number % 30 == 29:
            gc.collect()
            kinds = (LedgerCall, LedgerReply)
            counts.append(sum(type(item) in kinds for item in gc.get_objects()))
    # The last ones may still be in somebody's hands; thirty more would be seen.
    assert abs(counts[1] - counts[0]) < 5
    assert (desk.writes._keyed, desk.writes._tasks) == ({}, set())


# Through the gateway.

AS_SERVICE, AS_ADMIN = caller(*SERVICE), caller(*ADMIN)
ONE_RATE = f"{RATES}/{RATE}"
ACTION = '{"type":"deposit","username":"alice","currency":"BTC","amount":"1"}'
NEW_RATE = (
    '{"baseInstrumentCode":"BRL","counterInstrumentCode":"BTC","amount":1,"scale":2,"source":"x"}'
)
ROW = '{"id":"row-1","username":"alice"}'
# Method, path, body, another body, the ledger's answer and its status.
WRITES = [
    ("POST", "/ledger", ACTION, ACTION.replace('"1"', '"2"'), f"[{ROW}]", 201),
    ("POST", RATES, NEW_RATE, NEW_RATE.replace(":1", ":2"), ROW, 201),
    ("PATCH", ONE_RATE, '{"amount":1}', '{"amount":2}', ROW, 200),
    ("DELETE", ONE_RATE, "", "", "", 204),
]
Case = tuple[str, str, str, str, str, int]
EACH = pytest.mark.parametrize("case", WRITES, ids=["action", "new rate", "rate", "no rate"])


class HeldLedger:
    """Holds its answers back until `free` is set; what it was asked is in `ledger.calls`."""

    def __init__(self, ledger: FakeLedger, answer: Callable[[], web.StreamResponse]) -> None:
        self.ledger = ledger
        self.free = asyncio.Event()
        self.cut: list[bool] = []
        self._answer = answer
        ledger.fallback = self._hold

    async def _hold(self, request: web.Request) -> web.StreamResponse:
        await self.free.wait()
        self.cut.append(request.transport is None or request.transport.is_closing())
        return self._answer()


def _answer(case: Case) -> Callable[[], web.StreamResponse]:
    *_, text, status = case
    return lambda: web.Response(status=status, text=text, content_type="application/json")


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[LedgerCall]:
    """The writes that have come so far that they are sent or join another."""
    found: list[LedgerCall] = []
    send = Writes.send

    async def noted(self: Writes, call: LedgerCall, how: Send) -> tuple[LedgerReply, bool]:
        found.append(call)
        return await send(self, call, how)

    monkeypatch.setattr(Writes, "send", noted)
    return found


Told = tuple[int, str | None, str | None, str]


async def _ask(
    client: Client,
    case: Case,
    key: str | None = "key-1",
    who: dict[str, str] = AS_SERVICE,
    body: str | None = None,
) -> Told:
    """Status, code, whether it is said to be replayed, and body of the answer to a write."""
    method, path, good_body, *_ = case
    headers = who | ({"Idempotency-Key": key} if key else {})
    data = good_body if body is None else body
    if data:
        headers["Content-Type"] = "application/json"
    async with client.request(method, path, headers=headers, data=data or None) as response:
        text = await response.text()
        document = await response.json() if response.status >= 400 else {}
        code = document.get("code") or document.get("api_message")
        return response.status, code, response.headers.get("Idempotency-Replayed"), text


@EACH
async def test_the_same_write_twice_at_once_is_one_call_and_the_second_is_a_replay(
    client: Client, ledger: FakeLedger, met: list[LedgerCall], case: Case
) -> None:
    held = HeldLedger(ledger, _answer(case))
    first = asyncio.create_task(_ask(client, case))
    await until(lambda: len(met) == 1)
    others = [asyncio.create_task(_ask(client, case)) for _ in range(3)]
    await until(lambda: len(met) == 4)
    held.free.set()
    status, code, replayed, text = await first
    assert (status, code, replayed) == (case[-1], None, None)
    assert text.count("row-1") == (status != 204)
    assert await asyncio.gather(*others) == [(status, None, "true", text)] * 3
    assert len(ledger.calls) == 1


@pytest.mark.parametrize("case", WRITES[:3], ids=["action", "new rate", "rate"])
async def test_another_body_with_a_key_in_flight_is_refused_and_never_sent(
    client: Client, ledger: FakeLedger, met: list[LedgerCall], case: Case
) -> None:
    held = HeldLedger(ledger, _answer(case))
    first = asyncio.create_task(_ask(client, case))
    await until(lambda: len(met) == 1)
    status, code, replayed, text = await _ask(client, case, body=case[3])
    assert (status, code, replayed) == (422, "IDEMPOTENCY_KEY_REUSED", None)
    assert '"origin": "gateway"' in text
    assert "row-1" not in text
    held.free.set()
    assert (await first)[:3] == (case[-1], None, None)
    assert [call.body.decode() for call in ledger.calls] == [case[2]]


@EACH
async def test_a_key_is_its_users_own(
    client: Client, ledger: FakeLedger, met: list[LedgerCall], case: Case
) -> None:
    held = HeldLedger(ledger, _answer(case))
    whose = (AS_SERVICE, AS_ADMIN, caller("other", "service"))
    tasks = [asyncio.create_task(_ask(client, case, who=who)) for who in whose]
    await until(lambda: len(met) == 3)
    held.free.set()
    assert [answer[:3] for answer in await asyncio.gather(*tasks)] == [(case[-1], None, None)] * 3
    names = {call.headers["username"] for call in ledger.calls}
    assert (len(ledger.calls), names) == (3, {SERVICE[0], ADMIN[0], "other"})


@pytest.mark.parametrize("case", WRITES[1:], ids=["new rate", "rate", "no rate"])
async def test_without_a_key_the_same_write_twice_is_two_writes(
    client: Client, ledger: FakeLedger, met: list[LedgerCall], case: Case
) -> None:
    held = HeldLedger(ledger, _answer(case))
    tasks = [asyncio.create_task(_ask(client, case, key=None)) for _ in range(2)]
    await until(lambda: len(met) == 2)
    held.free.set()
    assert [answer[:3] for answer in await asyncio.gather(*tasks)] == [(case[-1], None, None)] * 2
    assert len(ledger.calls) == 2
    assert not any("Idempotency-Key" in call.headers for call in ledger.calls)


async def test_the_same_key_for_different_rates_is_different_writes(
    client: Client, ledger: FakeLedger, met: list[LedgerCall]
) -> None:
    other = ("DELETE", ONE_RATE[:-1] + "0", *WRITES[3][2:])
    held = HeldLedger(ledger, _answer(other))
    tasks = [asyncio.create_task(_ask(client, case)) for case in (WRITES[3], other)]
    await until(lambda: len(met) == 2)
    held.free.set()
    assert [answer[:3] for answer in await asyncio.gather(*tasks)] == [(204, None, None)] * 2
    assert sorted(call.path for call in ledger.calls) == sorted((ONE_RATE, other[1]))


@EACH
@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (500, 504, {"OUTCOME_UNKNOWN"}),
        (409, 409, {"CONFLICT", "0028"}),
        (503, 503, {"LEDGER_UNAVAILABLE"}),
    ],
)
async def test_a_failure_is_the_same_for_all_who_wait_for_it(
    client: Client,
    ledger: FakeLedger,
    met: list[LedgerCall],
    case: Case,
    status: int,
    told: int,
    code: set[str],
) -> None:
    held = HeldLedger(ledger, lambda: web.Response(status=status))
    tasks = [asyncio.create_task(_ask(client, case)) for _ in range(3)]
    await until(lambda: len(met) == 3)
    held.free.set()
    for answer in await asyncio.gather(*tasks):
        assert (answer[0], answer[2]) == (told, None)
        assert answer[1] in code
    assert len(ledger.calls) == 1
    assert (await _ask(client, case))[0] == told
    assert len(ledger.calls) == 2, "the key is free again"


# Through the gateway: those who leave.


async def _leave(client: Client, case: Case, gone_far: Callable[[], bool]) -> None:
    """Asks for a write over a connection that is reset when it has gone far enough."""
    method, path, body, *_ = case
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Content-Length: {len(body)}"]
    headers = AS_SERVICE | {"Idempotency-Key": "key-1", "Content-Type": "application/json"}
    lines += [f"{name}: {value}" for name, value in headers.items()]
    _, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
    await until(gone_far)
    writer.transport.abort()
    server: Any = client.server
    connections = server.connections
    await until(lambda: server.connections < connections)


@EACH
async def test_who_leaves_neither_cuts_a_write_nor_harms_who_joined_it(
    client: Client, ledger: FakeLedger, met: list[LedgerCall], case: Case
) -> None:
    held = HeldLedger(ledger, _answer(case))
    await _leave(client, case, lambda: len(ledger.calls) == 1)
    joined = asyncio.create_task(_ask(client, case))
    await until(lambda: len(met) == 2)
    held.free.set()
    assert (await joined)[:3] == (case[-1], None, "true")
    assert (len(ledger.calls), held.cut) == (1, [False])


@EACH
async def test_who_joined_and_leaves_harms_nobody(
    client: Client, ledger: FakeLedger, met: list[LedgerCall], case: Case
) -> None:
    held = HeldLedger(ledger, _answer(case))
    first = asyncio.create_task(_ask(client, case))
    await until(lambda: len(met) == 1)
    await _leave(client, case, lambda: len(met) == 2)
    held.free.set()
    assert (await first)[:3] == (case[-1], None, None)
    assert (len(ledger.calls), held.cut) == (1, [False])


@EACH
async def test_the_gateway_ends_when_the_writes_of_those_who_left_have_ended(
    client: Client, ledger: FakeLedger, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, finish = asyncio.Event(), Writes.finish

    async def noted(self: Writes) -> None:
        waiting.set()
        await finish(self)

    monkeypatch.setattr(Writes, "finish", noted)
    held = HeldLedger(ledger, _answer(case))
    await _leave(client, case, lambda: len(ledger.calls) == 1)
    # They are gone; the write is a task of nobody's.
    ending = asyncio.create_task(client.close())
    await asyncio.wait_for(waiting.wait(), PATIENCE_S)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not ending.done()
    held.free.set()
    await ending
    assert (len(ledger.calls), held.cut) == (1, [False])


async def test_a_write_that_its_caller_left_is_replayed_to_whoever_repeats_it_later() -> None:
    fault = Fault(Stream.ANSWER, 100, Kind.DELAY)
    async with _ledger_behind_proxy() as (store, proxy), _gateway_to(proxy.url) as client:
        proxy.faults.append(fault)
        await _leave(client, WRITES[0], fault.reached.is_set)
        fault.release.set()
        await until(lambda: proxy.kept == 1)
        status, code, replayed, _ = await _ask(client, WRITES[0])
    assert (status, code, replayed) == (201, None, "true")
    rows = store.page(Selection(username="alice"), Window()).rows
    assert sum(b'"amount":"1"' in row for row in rows) == 1
    assert [exchange.heard_whole for exchange in proxy.exchanges] == [True, True]


@asynccontextmanager
async def _ledger_behind_proxy() -> AsyncIterator[tuple[Store, FaultProxy]]:
    server = TestServer(create_sandbox(token=CREDENTIAL))
    await server.start_server()
    async with FaultProxy("127.0.0.1", int(server.port or 0)).run() as proxy:
        yield server.app[LEDGER].store, proxy
    await server.close()


@asynccontextmanager
async def _gateway_to(url: str) -> AsyncIterator[Client]:
    config = config_for(url, **NO_RETRIES)
    async with TestClient(GatewayServer(create_app(config, shared(config)).api)) as client:
        yield client


# How often the ledger sees a write when connections end.

METHODS = ["POST", "PUT", "PATCH", "DELETE"]
READ = LedgerCall("GET", "/ledger", (), "alice", "r-0")
ENDS = {"closes": closes, "resets": resets}


@asynccontextmanager
async def _client_of(faulty: FaultyLedger) -> AsyncIterator[Callable[[LedgerCall], Any]]:
    """Sends calls to a ledger that misbehaves."""
    client = LedgerClient(config_for(faulty.url).ledger)
    async with client.run():
        yield lambda call: client.send(call, 10.0)


def _methods(faulty: FaultyLedger) -> list[str]:
    return [hit.split(b" ")[0].decode() for hit in faulty.hits]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_a_write_whose_connection_ends_without_an_answer_is_seen_once(
    faulty: FaultyLedger, end: Callable[[], Act], method: str
) -> None:
    write = replace(CALL, method=method)
    async with _client_of(faulty) as send:
        for reused in (False, True):
            faulty.hits.clear()
            connections = faulty.connections
            faulty.plays(end())
            with pytest.raises(OutcomeUnknown):
                await send(write)
            assert _methods(faulty) == [method]
            assert faulty.connections == connections + (not reused)
            await send(READ)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_a_write_after_the_ledger_ended_an_idle_connection_goes_over_another(
    faulty: FaultyLedger, end: Callable[[bytes], Act], method: str
) -> None:
    write = replace(CALL, method=method)
    async with _client_of(faulty) as send:
        faulty.plays(end(reply()))
        await send(READ)
        await faulty.down_to(0)
        # Its end is on the way before the write is: another connection gives it time to arrive.
        _, writer = await asyncio.open_connection("127.0.0.1", int(faulty.url.rsplit(":")[-1]))
        writer.close()
        await writer.wait_closed()
        assert (await send(write)).status == 200
        assert _methods(faulty) == ["GET", method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_a_write_that_crosses_the_end_of_its_connection_is_seen_once_at_most(
    faulty: FaultyLedger, end: Callable[[bytes], Act], method: str
) -> None:
    write = replace(CALL, method=method)
    outcomes = set()
    async with _client_of(faulty) as send:
        for turns in range(12):
            faulty.hits.clear()
            faulty.plays(end(reply()))
            await send(READ)
            for _ in range(turns):
                await asyncio.sleep(0)
            try:
                await send(write)
                outcome, seen = "done", 1
            except OutcomeUnknown:
                outcome, seen = "unknown", 0
            assert _methods(faulty)[1:] == [method] * seen, (turns, outcome)
            outcomes.add(outcome)
            await send(READ)
            await faulty.down_to(1)
    assert "done" in outcomes


class Babbler:
    """A ledger that says something unasked, on a connection that is kept, when `speak` is set."""

    def __init__(self) -> None:
        self.speak, self.spoken = asyncio.Event(), asyncio.Event()

    async def act(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers, and answers again."""
        await sends(reply(b"[1]"))(reader, writer)
        await self.speak.wait()
        await sends_apart(reply(b"[666]", "201 Created"))(reader, writer)
        self.spoken.set()

    async def babble(self) -> None:
        """Returns when it is said, and could be heard."""
        self.speak.set()
        await asyncio.wait_for(self.spoken.wait(), PATIENCE_S)


@pytest.mark.parametrize("method", METHODS)
async def test_a_write_that_finds_an_answer_lying_there_goes_over_another_connection(
    faulty: FaultyLedger, method: str
) -> None:
    babbler = Babbler()
    async with _client_of(faulty) as send:
        faulty.plays(babbler.act, sends(reply(b"[2]")))
        assert (await send(READ)).body == b"[1]"
        await babbler.babble()
        assert (await send(replace(CALL, method=method))).body == b"[2]"
    assert _methods(faulty) == ["GET", method]
    assert faulty.connections == 2


@pytest.mark.parametrize("method", METHODS)
async def test_a_write_that_finds_an_answer_lying_there_and_no_other_connection_is_not_sent(
    method: str,
) -> None:
    babbler, taken = Babbler(), []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.readuntil(b"\r\n\r\n"))
        await babbler.act(reader, writer)
        taken.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    settings = config_for(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}").ledger
    client = LedgerClient(settings)
    async with client.run():
        assert (await client.send(READ, 10.0)).body == b"[1]"
        server.close()
        await babbler.babble()
        with pytest.raises(LedgerUnreachable):
            await client.send(replace(CALL, method=method), 10.0)
        await until(lambda: len(taken) == 2)
    await server.wait_closed()
    assert taken[1] == b"", "nothing was sent on the kept connection"


async def test_a_write_to_nobody_is_not_sent() -> None:
    ledger = FaultyLedger()
    async with ledger.run():
        pass
    async with _client_of(ledger) as send:
        for method in METHODS:
            with pytest.raises(LedgerUnreachable):
                await send(replace(CALL, method=method))
    assert ledger.hits == []
