"""The guarded ledger: what is sent, how often, and what is not."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from gateway import guard
from gateway.breaker import BreakerRules
from gateway.bulkhead import BulkheadRules
from gateway.calls import LedgerCall, LedgerReply
from gateway.errors import (
    CircuitOpen,
    GatewayError,
    LedgerBroken,
    LedgerFailing,
    LedgerTimeout,
    LedgerUnreachable,
    OutcomeUnknown,
    Overloaded,
    UnexpectedAnswer,
)
from gateway.guard import GuardedLedger, GuardRules
from gateway.retries import RetryRules
from tests.conftest import MakeClient, caller
from tests.fakes import FakeLedger

RULES = GuardRules(
    total_timeout_s=30.0,
    bulkhead=BulkheadRules(max_in_flight=100, max_waiting=100, max_wait_s=0.25),
    breaker=BreakerRules(
        window_s=10.0, min_calls=20, failure_ratio=0.5, open_s=5.0, max_open_s=60.0
    ),
    retries=RetryRules(ratio=0.2, floor=3),
)
READ = LedgerCall("GET", "/ledger", (), "alice", "request-1")
WRITE = LedgerCall("POST", "/ledger", (), "admin", "request-2", b"{}", "key-1")
DELETE = LedgerCall("DELETE", "/v1/rate", (), "admin", "request-3")
OK = LedgerReply(200, b"[]")
BUSY = LedgerReply(503, b"")

Step = LedgerReply | BaseException | Callable[[], Awaitable[LedgerReply]]


class ScriptedClient:
    """Answers one step after the other, then with success; `calls` is what it was asked."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.calls: list[tuple[LedgerCall, float]] = []
        self.health: list[GatewayError | None] = []
        self.pings = 0

    async def ping(self) -> float:
        """One thing of `health` after the other, then nothing any more."""
        self.pings += 1
        if not self.health:
            await asyncio.Event().wait()
        error = self.health.pop(0)
        if error is not None:
            raise error
        return 0.0

    async def send(self, call: LedgerCall, timeout_s: float) -> LedgerReply:
        self.calls.append((call, timeout_s))
        step = self.steps.pop(0) if self.steps else OK
        if isinstance(step, BaseException):
            raise step
        return await step() if callable(step) else step


class Bench:
    """A guard over a scripted client, with its clock, its chance and its pauses in the hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: Step, **rules: Any) -> None:
        self.client = ScriptedClient(*steps)
        self.now = 1000.0
        self.chance = 0.5
        self.pauses: list[float] = []
        self.guard = GuardedLedger(
            self.client,  # type: ignore[arg-type]
            GuardRules(**{name: rules.get(name, getattr(RULES, name)) for name in NAMES}),
            now=lambda: self.now,
            chance=lambda: self.chance,
        )
        stand_in = SimpleNamespace(**{**vars(asyncio), "sleep": self._sleep})
        monkeypatch.setattr(guard, "asyncio", stand_in)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def fail(self, count: int, error: GatewayError | None = None) -> None:
        """So many writes that fail: they are never repeated."""
        self.client.steps[:0] = [error or OutcomeUnknown("")] * count
        for _ in range(count):
            with pytest.raises(GatewayError):
                await self.guard.send(WRITE)


NAMES = ("total_timeout_s", "bulkhead", "breaker", "retries")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    return lambda *steps, **rules: Bench(monkeypatch, *steps, **rules)


MakeBench = Callable[..., Bench]


# Retries.


@pytest.mark.parametrize(
    "first",
    [LedgerUnreachable(""), LedgerFailing(""), BUSY],
    ids=["no connection", "broke off before an answer, 502 or 504", "503"],
)
async def test_a_read_is_asked_once_more(bench: MakeBench, first: Step) -> None:
    made = bench(first)
    assert await made.guard.send(READ) == OK
    assert [call for call, _ in made.client.calls] == [READ, READ]
    assert made.pauses == [0.05]


@pytest.mark.parametrize(
    "first", [LedgerUnreachable(""), LedgerFailing("")], ids=["no connection", "broke off"]
)
async def test_a_read_is_never_asked_a_third_time(bench: MakeBench, first: Exception) -> None:
    made = bench(first, first, OK)
    with pytest.raises(type(first)):
        await made.guard.send(READ)
    assert len(made.client.calls) == 2


async def test_the_second_503_is_the_answer(bench: MakeBench) -> None:
    made = bench(BUSY, BUSY, OK)
    assert await made.guard.send(READ) == BUSY
    assert len(made.client.calls) == 2


@pytest.mark.parametrize(
    "first",
    [LedgerTimeout(""), LedgerBroken(""), OutcomeUnknown("")],
    ids=["late", "nonsense", "unknown"],
)
async def test_other_faults_are_not_repeated(bench: MakeBench, first: Exception) -> None:
    made = bench(first)
    with pytest.raises(type(first)):
        await made.guard.send(READ)
    assert len(made.client.calls) == 1
    assert made.pauses == []


@pytest.mark.parametrize("status", [200, 400, 404, 409, 410, 413, 422, 429])
async def test_answers_are_not_repeated(bench: MakeBench, status: int) -> None:
    made = bench(LedgerReply(status, b""))
    assert (await made.guard.send(READ)).status == status
    assert len(made.client.calls) == 1


@pytest.mark.parametrize("seconds", [0, 1, 3600])
async def test_a_ledger_that_names_a_time_is_not_asked_again(
    bench: MakeBench, seconds: int
) -> None:
    made = bench(LedgerReply(503, b"", retry_after=seconds))
    assert (await made.guard.send(READ)).status == 503
    assert len(made.client.calls) == 1


@pytest.mark.parametrize("write", [WRITE, DELETE], ids=["POST", "DELETE"])
@pytest.mark.parametrize(
    "first",
    [LedgerUnreachable(""), LedgerFailing(""), OutcomeUnknown(""), LedgerBroken("")],
    ids=["not sent", "broke off", "unknown", "nonsense"],
)
async def test_a_write_is_sent_once_whatever_comes_of_it(
    bench: MakeBench, write: LedgerCall, first: Exception
) -> None:
    made = bench(first)
    with pytest.raises(type(first)):
        await made.guard.send(write)
    assert [call for call, _ in made.client.calls] == [write]


@pytest.mark.parametrize("status", [503, 429, 409])
async def test_a_refused_write_is_sent_once(bench: MakeBench, status: int) -> None:
    made = bench(LedgerReply(status, b""))
    assert (await made.guard.send(WRITE)).status == status
    assert len(made.client.calls) == 1


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999, 1.0])
async def test_the_pause_before_a_retry_is_up_to_chance(bench: MakeBench, chance: float) -> None:
    made = bench(LedgerFailing(""))
    made.chance = chance
    await made.guard.send(READ)
    assert made.pauses == [pytest.approx(chance * 0.1)]


async def test_the_retry_gets_only_what_is_left_of_the_time(bench: MakeBench) -> None:
    made = bench()

    async def late() -> LedgerReply:
        made.now += 20.0
        raise LedgerFailing("")

    made.client.steps = [late]
    await made.guard.send(READ)
    assert [timeout for _, timeout in made.client.calls] == [30.0, pytest.approx(9.95)]


@pytest.mark.parametrize(
    ("took", "chance", "sent"),
    [(29.8, 1.0, 2), (29.95, 0.0, 2), (29.95, 1.0, 1), (30.0, 0.0, 1), (31.0, 0.0, 1)],
)
async def test_no_retry_is_sent_after_the_deadline(
    bench: MakeBench, took: float, chance: float, sent: int
) -> None:
    made = bench()
    made.chance = chance

    async def late() -> LedgerReply:
        made.now += took
        return BUSY

    made.client.steps = [late]
    assert (await made.guard.send(READ)).status == (503 if sent == 1 else 200)
    assert len(made.client.calls) == sent


async def test_a_retry_that_is_not_made_costs_nothing_of_the_budget(bench: MakeBench) -> None:
    made = bench()

    async def late() -> LedgerReply:
        made.now += 30.0
        raise LedgerFailing("")

    for _ in range(5):
        made.client.steps = [late]
        with pytest.raises(LedgerFailing):
            await made.guard.send(READ)
    assert made.guard.state()["retries_left"] == 3


async def test_when_the_budget_is_spent_a_read_is_asked_once(bench: MakeBench) -> None:
    made = bench(*[BUSY] * 9)
    sent = []
    for _ in range(4):
        before = len(made.client.calls)
        await made.guard.send(READ)
        sent.append(len(made.client.calls) - before)
    assert sent == [2, 2, 2, 1]
    assert made.guard.state()["retries_left"] == 0


async def test_reads_that_went_well_earn_retries_and_writes_do_not(bench: MakeBench) -> None:
    made = bench()
    for _ in range(50):
        await made.guard.send(WRITE)
    assert made.guard.state()["retries_left"] == 3
    for _ in range(50):
        await made.guard.send(READ)
    assert made.guard.state()["retries_left"] == 10


async def test_a_retry_does_not_earn_retries(bench: MakeBench) -> None:
    made = bench(retries=RetryRules(ratio=1.0, floor=0))
    for _ in range(3):
        made.client.steps = [BUSY, BUSY]
        await made.guard.send(READ)
    assert made.guard.state()["retries_left"] == 0
    assert len(made.client.calls) == 6


async def test_without_a_budget_nothing_is_repeated(bench: MakeBench) -> None:
    made = bench(LedgerFailing(""), retries=RetryRules(ratio=0.0, floor=0))
    with pytest.raises(LedgerFailing):
        await made.guard.send(READ)
    assert len(made.client.calls) == 1


# The circuit.


@pytest.mark.parametrize(
    "fault",
    [LedgerBroken(""), LedgerFailing(""), LedgerTimeout(""), LedgerUnreachable(""), BUSY],
    ids=["nonsense", "broke off", "late", "no connection", "503"],
)
async def test_twenty_failures_open_the_circuit_and_nothing_more_is_sent(
    bench: MakeBench, fault: Step
) -> None:
    made = bench(*[fault] * 20)
    for _ in range(20):
        try:
            await made.guard.send(WRITE)
        except GatewayError:
            assert isinstance(fault, Exception)
    assert made.guard.state()["circuit"] == "open"
    for call in (READ, WRITE):
        with pytest.raises(CircuitOpen) as refused:
            await made.guard.send(call)
        assert refused.value.headers == {"Retry-After": "5"}
        assert refused.value.status == 503
    assert len(made.client.calls) == 20
    assert made.pauses == []


@pytest.mark.parametrize("status", [200, 400, 404, 409, 422, 429])
async def test_a_ledger_that_refuses_is_not_a_ledger_that_fails(
    bench: MakeBench, status: int
) -> None:
    made = bench(*[LedgerReply(status, b"")] * 40)
    for _ in range(40):
        await made.guard.send(READ)
    assert made.guard.state()["circuit"] == "closed"


async def test_the_probe_goes_after_five_seconds_and_closes_the_circuit(bench: MakeBench) -> None:
    made = bench()
    await made.fail(20)
    made.now += 5.0
    assert made.guard.state()["circuit"] == "half open"
    assert await made.guard.send(READ) == OK
    assert made.guard.state()["circuit"] == "closed"
    assert len(made.client.calls) == 21


async def test_a_failed_probe_keeps_the_ledger_alone_for_twice_as_long(bench: MakeBench) -> None:
    made = bench()
    await made.fail(20)
    made.now += 5.0
    await made.fail(1)
    with pytest.raises(CircuitOpen) as refused:
        await made.guard.send(READ)
    assert refused.value.headers == {"Retry-After": "10"}
    assert len(made.client.calls) == 21


async def test_a_read_that_was_the_probe_is_not_repeated_against_an_open_circuit(
    bench: MakeBench,
) -> None:
    made = bench()
    await made.fail(20)
    made.now += 5.0
    made.client.steps = [LedgerFailing("")]
    with pytest.raises((CircuitOpen, LedgerFailing)):
        await made.guard.send(READ)
    assert len(made.client.calls) == 21


@pytest.mark.parametrize(
    ("left", "wait"), [(5.0, "5"), (4.5, "5"), (4.4, "5"), (1.2, "2"), (0.2, "1")]
)
async def test_who_waits_as_long_as_told_is_not_too_early(
    bench: MakeBench, left: float, wait: str
) -> None:
    made = bench()
    await made.fail(20)
    made.now += 5.0 - left
    with pytest.raises(CircuitOpen) as refused:
        await made.guard.send(READ)
    assert refused.value.headers["Retry-After"] == wait
    made.now += float(wait)
    assert await made.guard.send(READ) == OK


class Held:
    """A step of the client that ends when it is let go."""

    def __init__(self, reply: Step = OK) -> None:
        self.reply = reply
        self.reached = asyncio.Event()
        self.free = asyncio.Event()

    async def __call__(self) -> LedgerReply:
        self.reached.set()
        await self.free.wait()
        if isinstance(self.reply, BaseException):
            raise self.reply
        assert isinstance(self.reply, LedgerReply)
        return self.reply


async def test_while_the_probe_is_under_way_everybody_else_is_refused(bench: MakeBench) -> None:
    made, held = bench(), Held()
    await made.fail(20)
    made.now += 5.0
    made.client.steps = [held]
    probe = asyncio.create_task(made.guard.send(READ))
    await held.reached.wait()
    for _ in range(10):
        with pytest.raises(CircuitOpen):
            await made.guard.send(READ)
    assert len(made.client.calls) == 21
    held.free.set()
    assert await probe == OK
    assert await made.guard.send(READ) == OK


async def test_a_probe_whose_caller_left_makes_room_for_the_next(bench: MakeBench) -> None:
    made, held = bench(), Held()
    await made.fail(20)
    made.now += 5.0
    made.client.steps = [held]
    probe = asyncio.create_task(made.guard.send(READ))
    await held.reached.wait()
    probe.cancel()
    await asyncio.wait([probe])
    assert made.guard.state()["circuit"] == "half open"
    assert made.guard.state()["in_flight"] == 0
    assert await made.guard.send(READ) == OK
    assert made.guard.state()["circuit"] == "closed"


async def test_a_call_from_before_the_outage_does_not_close_the_circuit(bench: MakeBench) -> None:
    made, held = bench(), Held()
    made.client.steps = [held]
    early = asyncio.create_task(made.guard.send(READ))
    await held.reached.wait()
    await made.fail(20)
    held.free.set()
    assert await early == OK
    assert made.guard.state()["circuit"] == "open"


async def test_calls_that_hung_through_an_outage_do_not_open_the_circuit_again(
    bench: MakeBench,
) -> None:
    made, held = bench(), [Held(OutcomeUnknown("")) for _ in range(50)]
    made.client.steps = list(held)
    hung = [asyncio.create_task(made.guard.send(WRITE)) for _ in held]
    for step in held:
        await step.reached.wait()
    await made.fail(20)
    made.now += 5.0
    assert await made.guard.send(READ) == OK
    for step in held:
        step.free.set()
    await asyncio.wait(hung)
    assert await made.guard.send(READ) == OK
    assert made.guard.state()["circuit"] == "closed"


async def test_callers_who_leave_do_not_open_the_circuit(bench: MakeBench) -> None:
    made, held = bench(), [Held() for _ in range(50)]
    made.client.steps = list(held)
    tasks = [asyncio.create_task(made.guard.send(READ)) for _ in held]
    for step in held:
        await step.reached.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert made.guard.state()["circuit"] == "closed"
    assert made.guard.state()["in_flight"] == 0


async def test_being_busy_here_is_no_failure_of_the_ledger(bench: MakeBench) -> None:
    made, held = bench(bulkhead=BulkheadRules(1, 0, 0.0)), Held()
    made.client.steps = [held]
    first = asyncio.create_task(made.guard.send(READ))
    await held.reached.wait()
    for _ in range(50):
        with pytest.raises(Overloaded):
            await made.guard.send(READ)
    assert made.guard.state() | {"retries_left": 0} == {
        "circuit": "closed",
        "in_flight": 1,
        "waiting": 0,
        "retries_left": 0,
    }
    held.free.set()
    assert await first == OK
    assert len(made.client.calls) == 1


async def test_an_open_circuit_refuses_without_a_place_in_the_queue(bench: MakeBench) -> None:
    made, held = bench(bulkhead=BulkheadRules(2, 0, 0.0)), Held()
    made.client.steps = [held]
    hanging = [asyncio.create_task(made.guard.send(READ))]
    await held.reached.wait()
    await made.fail(20)
    second = Held()
    made.now += 5.0
    made.client.steps = [second]
    hanging.append(asyncio.create_task(made.guard.send(WRITE)))
    await second.reached.wait()
    made.now -= 1.0
    with pytest.raises(CircuitOpen):
        await made.guard.send(READ)
    held.free.set()
    second.free.set()
    await asyncio.wait(hanging)


# What an operator sees.


async def test_the_state_of_an_idle_guard(bench: MakeBench) -> None:
    assert bench().guard.state() == {
        "circuit": "closed",
        "in_flight": 0,
        "waiting": 0,
        "retries_left": 3,
    }


async def test_the_state_shows_calls_in_flight_and_waiting(bench: MakeBench) -> None:
    made, held = bench(bulkhead=BulkheadRules(2, 5, 60.0)), [Held(), Held()]
    made.client.steps = list(held)
    tasks = [asyncio.create_task(made.guard.send(READ)) for _ in range(5)]
    for step in held:
        await step.reached.wait()
    state = made.guard.state()
    assert (state["in_flight"], state["waiting"]) == (2, 3)
    for step in held:
        step.free.set()
    assert await asyncio.gather(*tasks) == [OK] * 5
    state = made.guard.state()
    assert (state["in_flight"], state["waiting"]) == (0, 0)


# Over HTTP: which answers of a real ledger count as worth a second try.


async def answers(
    ledger: FakeLedger, make_client: MakeClient, first: int, headers: dict[str, str] | None = None
) -> int:
    """The status that a user reads when the ledger answers one status first, and then well."""
    left = [web.Response(status=first, headers=headers)]

    async def script(_request: web.Request) -> web.Response:
        return left.pop() if left else web.json_response([])

    ledger.run("GET", "/ledger/alice", script)
    client = await make_client(cache__enabled="false")
    response = await client.get("/ledger", headers=caller())
    return response.status


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_one_bad_answer_to_a_read_is_made_up_for(
    ledger: FakeLedger, make_client: MakeClient, status: int
) -> None:
    assert await answers(ledger, make_client, status) == 200
    assert len(ledger.calls) == 2


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_bad_answer_that_names_a_time_is_passed_on_at_once(
    ledger: FakeLedger, make_client: MakeClient, status: int
) -> None:
    answered = await answers(ledger, make_client, status, {"Retry-After": "7"})
    assert answered == (503 if status == 503 else 502)
    assert len(ledger.calls) == 1


@pytest.mark.parametrize("status", [500, 501, 505, 401, 403])
async def test_other_bad_answers_are_final(
    ledger: FakeLedger, make_client: MakeClient, status: int
) -> None:
    assert await answers(ledger, make_client, status) == 502
    assert len(ledger.calls) == 1


async def test_a_ledger_that_is_not_there_is_tried_twice_for_a_read(
    make_client: MakeClient, unused_tcp_port: int
) -> None:
    client = await make_client(f"http://127.0.0.1:{unused_tcp_port}", cache__enabled="false")
    response = await client.get("/ledger", headers=caller())
    assert response.status == 503
    assert (await response.json())["api_message"] == "LEDGER_UNREACHABLE"
    assert response.headers["Retry-After"] == "1"
    guarded = client.gateway.health._guarded  # type: ignore[attr-defined]
    assert guarded.state()["retries_left"] == 2


async def test_an_answer_that_cannot_be_passed_on_is_no_sign_of_ill_health(
    bench: MakeBench,
) -> None:
    made = bench()
    for _ in range(50):
        made.client.steps = [UnexpectedAnswer("414")]
        with pytest.raises(UnexpectedAnswer):
            await made.guard.send(READ)
    assert made.guard.state()["circuit"] == "closed"
    assert await made.guard.send(READ) is OK


# A ledger that is well again.


async def turns() -> None:
    """Lets what goes on in the background go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_ledger_that_is_well_again_is_probed_without_the_whole_wait(
    bench: MakeBench,
) -> None:
    made = bench()
    made.client.health = [LedgerTimeout("hangs"), None]
    await made.fail(20)
    assert made.guard.state()["circuit"] == "open"
    await turns()
    assert made.pauses == [0.5]
    assert made.guard.state()["circuit"] == "half open"
    assert await made.guard.send(READ) is OK
    assert made.guard.state()["circuit"] == "closed"
    await made.guard.close()


async def test_a_ledger_that_fails_and_says_all_the_while_that_it_is_well_is_not_believed(
    bench: MakeBench,
) -> None:
    made = bench()
    made.client.health = [None] * 9
    await made.fail(20)
    await turns()
    assert made.guard.state()["circuit"] == "open"
    assert made.client.pings == 10
    made.now += 0.5
    await made.guard.close()


async def test_a_probe_that_was_let_through_early_and_fails_doubles_the_wait(
    bench: MakeBench,
) -> None:
    made = bench()
    made.client.health = [LedgerTimeout("hangs"), None]
    await made.fail(20)
    await turns()
    await made.fail(1)
    made.now += 9.9
    with pytest.raises(CircuitOpen):
        await made.guard.send(READ)
    made.now += 0.1
    assert await made.guard.send(READ) is OK
    await made.guard.close()


async def test_after_a_probe_that_failed_health_is_not_believed_again(bench: MakeBench) -> None:
    made = bench()
    made.client.health = [LedgerTimeout("hangs"), None, LedgerTimeout("hangs"), None, None]
    await made.fail(20)
    await turns()
    await made.fail(1)
    await turns()
    assert made.guard.state()["circuit"] == "open"
    await made.guard.close()


async def test_nobody_looks_after_a_ledger_that_does_not_fail(bench: MakeBench) -> None:
    made = bench()
    await made.fail(5)
    for _ in range(30):
        await made.guard.send(READ)
    await turns()
    assert made.client.pings == 0
    await made.guard.close()


async def test_a_ledger_is_looked_after_by_one_at_a_time(bench: MakeBench) -> None:
    made = bench()
    await made.fail(20)
    await turns()
    made.now += 5.0
    await made.fail(1)
    await turns()
    assert made.client.pings == 1
    await made.guard.close()


async def test_after_a_hang_the_ledger_is_used_within_a_second_of_its_recovery(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(cache__enabled="false", ledger__read_timeout_s="0.1")
    free, asked_twice = asyncio.Event(), asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        if sum(call.path == "/health" for call in ledger.calls) == 2:
            asked_twice.set()
        await free.wait()
        return web.json_response([])

    ledger.fallback = hang
    calls = [client.get(f"/ledger/order/{number}", headers=caller()) for number in range(60)]
    assert {(await call).status for call in asyncio.as_completed(calls)} <= {503, 504}
    assert client.gateway.health._guarded.state()["circuit"] == "open"  # type: ignore[attr-defined]
    loop = asyncio.get_running_loop()
    # Asked whether it is well, it hung once, and is asked again.
    async with asyncio.timeout(10):
        await asked_twice.wait()
    free.set()
    recovered = loop.time()
    while (await client.get("/ledger/alice", headers=caller())).status != 200:
        assert loop.time() - recovered < 2.0
