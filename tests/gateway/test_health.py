"""Alive, ready, and what is seen of the ledger, which is not asked too often; no secrets."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway import __version__
from gateway.app import create_app, guard_rules, shared
from gateway.cache import CachedLedger
from gateway.generations import Generations
from gateway.guard import GuardedLedger
from gateway.health import Health
from gateway.keyring import Keyring
from gateway.ledger import LedgerClient
from gateway.revocations import Revocations
from tests.conftest import (
    ADMIN,
    CREDENTIAL,
    RATES,
    SECRET,
    MakeClient,
    caller,
    config_for,
    token,
)
from tests.fakes import FakeLedger
from tests.gateway.processes import free_ports

Client = TestClient[Any, Any]
MakeOps = Callable[[Client], Awaitable[Client]]

# Keys that will never come: nobody listens there.
NO_KEYS = {"auth__algorithms": "RS256", "auth__jwks_url": "http://127.0.0.1:1/keys"}
PROBES = ["/health/live", "/health/ready"]


@pytest.fixture
async def make_ops() -> AsyncIterator[MakeOps]:
    """Makes a client of the operators' listener that belongs to a client of the other one."""
    clients: list[Client] = []

    async def make(api: Client) -> Client:
        ops: Client = TestClient(TestServer(gateway_of(api).ops))
        await ops.start_server()
        clients.append(ops)
        return ops

    yield make
    for client in clients:
        await client.close()


def gateway_of(client: Client) -> Any:
    return client.gateway  # type: ignore[attr-defined]


class Clock:
    """A monotonic clock, in seconds, that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def health_over(url: str, clock: Clock, **settings: str) -> AsyncIterator[Health]:
    """The health of a gateway with a key, over a ledger."""
    config = config_for(url, **settings)
    client = LedgerClient(config.ledger)
    keyring = Keyring({"HS256": SECRET.encode()}, now=clock)
    guarded = GuardedLedger(client, guard_rules(config), clock)
    cached = CachedLedger(guarded, config.cache, Generations(), clock)
    async with client.run():
        yield Health(keyring, Revocations(None), client, guarded, cached, clock)


def probes(ledger: FakeLedger) -> int:
    return sum(call.path == "/health" for call in ledger.calls)


# What is seen of the ledger.


async def test_the_ledger_is_asked_for_its_health_at_most_once_a_second(
    ledger: FakeLedger, clock: Clock
) -> None:
    async with health_over(ledger.url, clock) as health:
        for seconds, asked in ((0.0, 1), (0.0, 1), (0.999, 1), (0.002, 2), (0.5, 2), (3600.0, 3)):
            clock.now += seconds
            assert (await health.report())["ledger"]["reachable"] is True
            assert probes(ledger) == asked


async def test_of_many_who_ask_at_once_nobody_is_told_nothing(
    ledger: FakeLedger, clock: Clock
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        asked.set()
        await answer.wait()
        return web.json_response({"status": "ok"})

    ledger.run("GET", "/health", slow)
    async with health_over(ledger.url, clock) as health:
        reports = [asyncio.create_task(health.report()) for _ in range(5)]
        await asyncio.wait_for(asked.wait(), 10)
        answer.set()
        found = await asyncio.wait_for(asyncio.gather(*reports), 10)
    assert [report["ledger"]["reachable"] for report in found] == [True] * 5
    assert probes(ledger) == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
async def test_any_success_means_that_the_ledger_is_up(
    ledger: FakeLedger, clock: Clock, status: int
) -> None:
    ledger.on("GET", "/health", status=status)
    async with health_over(ledger.url, clock) as health:
        seen = (await health.report())["ledger"]
    assert seen["reachable"] is True
    assert seen["latency_ms"] > 0


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 429, 500, 503])
async def test_anything_else_means_that_it_is_not(
    ledger: FakeLedger, clock: Clock, status: int
) -> None:
    ledger.on("GET", "/health", status=status, Location="/elsewhere")
    async with health_over(ledger.url, clock) as health:
        report = await health.report()
    assert report["ledger"]["reachable"] is False
    assert re.fullmatch("[A-Z_]+", report["ledger"]["error"])
    assert len(ledger.calls) == 1


async def test_a_ledger_outage_alone_does_not_make_it_unready(clock: Clock) -> None:
    (port,) = free_ports(1)
    async with health_over(f"http://127.0.0.1:{port}", clock) as health:
        report = await health.report()
        assert report["ledger"] == {"reachable": False, "error": "LEDGER_UNREACHABLE"}
        assert health.ready
        assert report["status"] == "ok"


async def test_a_ledger_that_comes_back_is_seen_a_second_later(
    ledger: FakeLedger, clock: Clock
) -> None:
    ledger.on("GET", "/health", status=503)
    async with health_over(ledger.url, clock) as health:
        assert (await health.report())["ledger"]["reachable"] is False
        ledger.on("GET", "/health", status=200)
        assert (await health.report())["ledger"]["reachable"] is False
        clock.now += 1.0
        assert (await health.report())["ledger"]["reachable"] is True


async def test_the_ledger_is_asked_in_the_gateways_own_name(
    ledger: FakeLedger, clock: Clock
) -> None:
    async with health_over(ledger.url, clock) as health:
        await health.report()
    (call,) = ledger.calls
    assert (call.method, call.path, call.query, call.body) == ("GET", "/health", {}, b"")
    assert call.headers["Authorization"] == f"Bearer {CREDENTIAL}"


async def test_uptime_and_the_age_of_keys_are_told_by_the_clock(
    ledger: FakeLedger, clock: Clock
) -> None:
    async with health_over(ledger.url, clock) as health:
        first = await health.report()
        clock.now += 61.5
        second = await health.report()
    assert (first["uptime_s"], first["keys"]["age_s"]) == (0.0, 0.0)
    assert (second["uptime_s"], second["keys"]["age_s"]) == (61.5, 61.5)


# Over HTTP.


async def test_health_tells_operators_what_they_ask_for(
    ledger: FakeLedger, make_client: MakeClient, make_ops: MakeOps
) -> None:
    client = await make_client()
    for _ in range(2):
        assert (await client.get("/ledger", headers=caller(*ADMIN))).status == 200
    response = await (await make_ops(client)).get("/health")
    assert (response.status, response.content_type) == (200, "application/json")
    report = await response.json()
    assert report["status"] == "ok"
    assert report["version"] == __version__
    assert report["uptime_s"] >= 0
    assert report["draining"] is False
    assert report["ledger"]["reachable"] is True
    assert report["ledger"]["latency_ms"] > 0
    assert report["keys"]["loaded"] is True
    assert report["keys"]["age_s"] >= 0
    assert report["cache"]["entries"] == 1
    assert report["cache"]["bytes"] > 0
    assert (report["cache"]["hits"], report["cache"]["misses"]) == (1, 1)
    assert probes(ledger) == 1


async def test_health_tells_the_state_of_the_circuit(
    make_client: MakeClient, make_ops: MakeOps
) -> None:
    report = await (await (await make_ops(await make_client())).get("/health")).json()
    sections = [report, *(held for held in report.values() if isinstance(held, dict))]
    assert [section["circuit"] for section in sections if "circuit" in section] == ["closed"]


async def test_health_holds_no_secret_and_nothing_of_a_user(
    ledger: FakeLedger, make_client: MakeClient, make_ops: MakeOps
) -> None:
    ledger.rows("/ledger/alice", '{"id":"row-1","username":"alice","amount":"her-amount"}')
    client = await make_client()
    assert (await client.get("/ledger", headers=caller("alice"))).status == 200
    ledger.on("GET", "/health", '{"password": "of the ledger"}')
    response = await (await make_ops(client)).get("/health")
    text = await response.text() + str(response.headers)
    for hidden in (SECRET, CREDENTIAL, token("alice"), "alice", "row-1", "her-amount", "password"):
        assert hidden not in text
    assert len(ledger.calls) == 2


@pytest.mark.parametrize("path", PROBES)
async def test_both_listeners_answer_probes_and_need_no_identity(
    ledger: FakeLedger, make_client: MakeClient, make_ops: MakeOps, path: str
) -> None:
    client = await make_client()
    for listener in (client, await make_ops(client)):
        response = await listener.get(path)
        assert (response.status, await response.json()) == (200, {"status": "ok"})
        assert response.headers["X-Request-Id"]
    assert ledger.calls == []


async def test_while_draining_it_is_alive_and_not_ready_on_both_listeners(
    ledger: FakeLedger, make_client: MakeClient, make_ops: MakeOps
) -> None:
    client = await make_client()
    ops = await make_ops(client)
    gateway_of(client).health.draining = True
    for listener in (client, ops):
        response = await listener.get("/health/ready")
        assert (response.status, await response.json()) == (503, {"status": "not ready"})
        response = await listener.get("/health/live")
        assert (response.status, await response.json()) == (200, {"status": "ok"})
        # Whoever is still connected comes back over a new connection, and so to another gateway.
        assert response.headers["Connection"] == "close"
    report = await (await ops.get("/health")).json()
    assert (report["status"], report["draining"]) == ("not ready", True)
    assert (await client.get("/ledger", headers=caller(*ADMIN))).status == 200


async def test_without_keys_it_is_alive_not_ready_and_never_open(
    ledger: FakeLedger, make_client: MakeClient, make_ops: MakeOps
) -> None:
    client = await make_client(**NO_KEYS)
    ops = await make_ops(client)
    for listener in (client, ops):
        assert (await listener.get("/health/ready")).status == 503
        assert (await listener.get("/health/live")).status == 200
    assert (await (await ops.get("/health")).json())["keys"]["loaded"] is False
    ledger.calls.clear()
    for path in ("/ledger", RATES):
        asked = {**caller(*ADMIN), "Authorization": f"Bearer {RS256_TOKEN}"}
        response = await client.get(path, headers=asked)
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
    assert ledger.calls == []


# {"alg":"RS256"}, {}, and a signature of nobody's.
RS256_TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.AAAA"


@pytest.mark.parametrize("path", ["/health", "/metrics", "/status", "/status/static/status.css"])
async def test_callers_do_not_reach_what_is_for_operators(
    ledger: FakeLedger, client: Client, path: str
) -> None:
    response = await client.get(path, headers=caller(*ADMIN))
    assert response.status == 404
    assert __version__ not in await response.text()
    assert ledger.calls == []


@pytest.mark.parametrize("path", ["/ledger", "/ledger/alice", RATES, "/openapi.json", "/docs"])
async def test_the_operators_listener_serves_nothing_of_the_api(
    ledger: FakeLedger, client: Client, make_ops: MakeOps, path: str
) -> None:
    response = await (await make_ops(client)).get(path, headers=caller(*ADMIN))
    assert response.status == 404
    assert ledger.calls == []


async def test_health_tells_the_truth_before_the_listener_for_callers_is_open(
    ledger: FakeLedger,
) -> None:
    config = config_for(ledger.url)
    gateway = create_app(config, shared(config))
    ops: Client = TestClient(TestServer(gateway.ops))
    async with ops:
        response = await ops.get("/health")
        assert response.status == 200
        assert json.loads(await response.text())["ledger"]["reachable"] is False
    assert ledger.calls == []
