"""Gateways on several machines, over a real Redis: what each hears, and what it does without."""

import asyncio
import json
import re
import socket
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from structlog.testing import capture_logs

from gateway.coherence import Coherence
from gateway.generations import Generations
from gateway.redis_link import redis_link
from tests.conftest import ADMIN, CREDENTIAL, RATES, SECRET, SERVICE, MakeClient, caller
from tests.fakes import FakeLedger
from tests.gateway.processes import PATIENCE_S, command, free_ports
from tests.redis_server import RedisServer, Wire, certified

Client = TestClient[Any, Any]
ACTION = '{"type":"deposit","username":"alice","currency":"BTC","amount":"0.1"}'
# Nothing in these tests becomes old by itself.
LONG = {"cache__ledger_ttl_s": "600", "cache__rates_ttl_s": "600"}
# Without Redis, a kept reply is used as long as with it; or never.
TRUSTING = {**LONG, "coherence__trust_s": "600"}
WARY = {**LONG, "coherence__trust_s": "0"}
PAUSE_S = 0.005


class Book:
    """What the ledger holds: how many actions were registered, which is the id of its one row."""

    def __init__(self, ledger: FakeLedger) -> None:
        self.count = 0
        self.open = asyncio.Event()
        self.open.set()
        self.called = asyncio.Event()
        ledger.run("GET", "/ledger", self._read)
        ledger.run("POST", "/ledger", self._write)
        ledger.on("GET", RATES, "[]")

    async def _read(self, _request: web.Request) -> web.Response:
        return web.json_response({"api_message": "OK", "api_data": [self._row()]})

    async def _write(self, _request: web.Request) -> web.Response:
        self.count += 1
        row = self._row()
        self.called.set()
        await self.open.wait()
        return web.json_response({"api_message": "OK", "api_data": row}, status=201)

    def _row(self) -> dict[str, str]:
        return {"id": str(self.count), "username": "alice", "amount": "0.1"}


@pytest.fixture
def book(ledger: FakeLedger) -> Book:
    return Book(ledger)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path).run() as server:
        yield server


@pytest.fixture
async def wire(redis: RedisServer) -> AsyncIterator[Wire]:
    async with Wire(redis.port).run() as wire:
        yield wire


@pytest.fixture
def gateway(make_client: MakeClient) -> Callable[..., Awaitable[Client]]:
    """Makes gateways that listen to Redis: `await gateway(redis.url)`."""

    async def make(url: str, settings: dict[str, str] = LONG) -> Client:
        client = await make_client(**settings, coherence__redis_url=url)
        await until(lambda: connected(client))
        return client

    return make


Gateway = Callable[..., Awaitable[Client]]


async def until(holds: Callable[[], Awaitable[object]], within_s: float = PATIENCE_S) -> float:
    """Waits for something to be so; how long it took.

    A pause that the machine makes long is long for the gateway, too, and counts as a short one.
    """
    took = 0.0
    async with asyncio.timeout(within_s + PATIENCE_S):
        while True:
            began = time.monotonic()
            held = await holds()
            asked = time.monotonic()
            took += asked - began
            assert took < within_s
            if held:
                return took
            await asyncio.sleep(PAUSE_S)
            took += min(time.monotonic() - asked, 4 * PAUSE_S)


async def coherence(client: Client) -> dict[str, Any]:
    """What /health says of it."""
    report: dict[str, Any] = await client.gateway.health.report()  # type: ignore[attr-defined]
    state: dict[str, Any] = report["coherence"]
    return state


async def connected(client: Client) -> bool:
    return (await coherence(client))["connected"] is True


async def alone(client: Client) -> bool:
    return not await connected(client)


async def read(client: Client, path: str = "/ledger") -> tuple[str, str]:
    """The id of the ledger's row, and whether the cache had it."""
    async with client.get(path, headers=caller(*ADMIN)) as response:
        assert response.status == 200
        body = await response.text()
    found = re.search(r'"id": ?"(\d+)"', body)
    known = "hit" if "; hit" in response.headers["Cache-Status"] else "miss"
    return found[1] if found else "", known


async def keeps(client: Client, *, row: str) -> None:
    """The gateway has this row in its cache, and gives it from there."""
    await read(client)
    assert await read(client) == (row, "hit")


async def write(client: Client, key: str, status: int = 201) -> float:
    """Registers an action; how long that took."""
    began = time.monotonic()
    headers = caller(*SERVICE) | {"Idempotency-Key": key, "Content-Type": "application/json"}
    async with client.post("/ledger", data=ACTION, headers=headers) as response:
        assert response.status == status
        await response.read()
    return time.monotonic() - began


async def shows(client: Client, row: str) -> bool:
    return (await read(client))[0] == row


# While Redis is there.


async def test_a_write_through_one_gateway_makes_what_another_keeps_unused(
    redis: RedisServer, gateway: Gateway, book: Book
) -> None:
    one, other = await gateway(redis.url), await gateway(redis.url)
    for row in ("1", "2", "3"):
        await keeps(one, row=str(int(row) - 1))
        await keeps(other, row=str(int(row) - 1))
        await write(one, row)
        assert await read(one) == (row, "miss")
        await until(lambda row=row: shows(other, row), 1.0)  # type: ignore[misc]


async def test_a_write_leaves_alone_what_it_does_not_change(
    redis: RedisServer, gateway: Gateway, book: Book
) -> None:
    one, other = await gateway(redis.url), await gateway(redis.url)
    await keeps(other, row="0")
    await read(other, RATES)
    await write(one, "k")
    await until(lambda: shows(other, "1"), 1.0)
    assert (await read(other, RATES))[1] == "hit"


async def test_what_another_keeps_is_unused_before_the_ledger_hears_of_the_write(
    redis: RedisServer, gateway: Gateway, book: Book
) -> None:
    one, other = await gateway(redis.url), await gateway(redis.url)
    await keeps(other, row="0")
    book.open.clear()
    writing = asyncio.create_task(write(one, "k"))
    await book.called.wait()
    await until(lambda: shows(other, "1"), 1.0)
    book.open.set()
    await writing


async def test_a_write_that_failed_is_announced_as_well(
    redis: RedisServer, gateway: Gateway, ledger: FakeLedger, book: Book
) -> None:
    one, other = await gateway(redis.url), await gateway(redis.url)

    async def fail(request: web.Request) -> web.Response:
        # Between the two announcements, somebody reads what is soon to be old.
        await until(lambda: shows(other, "0"), 1.0)
        assert request.transport is not None
        book.count += 1
        request.transport.close()
        return web.Response()

    await keeps(other, row="0")
    ledger.run("POST", "/ledger", fail)
    await write(one, "k", status=504)
    await until(lambda: shows(other, "1"), 1.0)


async def test_only_numbers_travel(redis: RedisServer, gateway: Gateway, book: Book) -> None:
    async with redis.watched() as seen:
        one, other = await gateway(redis.url), await gateway(redis.url)
        await keeps(other, row="0")
        await write(one, "k")
        await until(lambda: shows(other, "1"), 1.0)
    said = [re.sub(r'^\S+ \[[^]]*\] |"', "", line.strip().lstrip("+")) for line in seen]
    process, beat = "[0-9a-f]{16}", r"[0-9.]+"
    known = (
        rf"PUBLISH ledger-gateway:1 {process} (\*|\d+)",
        rf"PUBLISH ledger-gateway:1:{process} {beat}",
        rf"SUBSCRIBE ledger-gateway:1 ledger-gateway:1:{process}",
        r"CLIENT SETINFO LIB-\w+ [\w.()-]+",
    )
    assert [line for line in said if not any(re.fullmatch(one, line) for one in known)] == []
    # What each may have missed to announce before; and the write, before and after.
    assert len([line for line in said if re.fullmatch(known[0], line)]) == 4


async def test_the_workers_of_a_gateway_hear_and_are_heard(
    redis: RedisServer, gateway: Gateway, book: Book, ledger: FakeLedger, tmp_path: Path
) -> None:
    one = await gateway(redis.url)
    port, ops = free_ports(2)
    settings = {name.upper(): value for name, value in LONG.items()} | {
        "LEDGER__BASE_URL": ledger.url,
        "LEDGER__TOKEN": CREDENTIAL,
        "AUTH__SECRET": SECRET,
        "SERVER__PORT": str(port),
        "OPS__PORT": str(ops),
        "COHERENCE__REDIS_URL": redis.url,
    }
    async with command("serve", "--workers", "2", cwd=tmp_path, **settings) as running:
        for _ in range(2):
            await running.line("coherence established")
        listeners = await redis.ask("PUBSUB", "NUMSUB", "ledger-gateway:1")
        assert listeners.endswith(":3\r\n")
        await keeps(one, row="0")
        everybody = [await ids(port) for _ in range(8)]
        assert everybody == ["0"] * 8
        await write(one, "k")

        async def all_know() -> bool:
            return {await ids(port) for _ in range(8)} == {"1"}

        await until(all_know, 1.0)


async def ids(port: int) -> str:
    """The row that one of the workers shows: each connection may meet another one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in caller(*ADMIN).items())
    writer.write(f"GET /ledger HTTP/1.1\r\nHost: g\r\n{lines}Connection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    row: str = json.loads(answer.partition(b"\r\n\r\n")[2])["api_data"][0]["id"]
    return row


# While it is not.


async def test_without_redis_what_is_kept_is_trusted_for_a_moment_only(
    redis: RedisServer, gateway: Gateway, book: Book
) -> None:
    wary, trusting = await gateway(redis.url, WARY), await gateway(redis.url, TRUSTING)
    await keeps(wary, row="0")
    await keeps(trusting, row="0")
    await redis.kill()
    await until(lambda: alone(wary), 2.0)
    await until(lambda: alone(trusting), 2.0)
    assert await read(wary) == ("0", "miss")
    assert await read(wary) == ("0", "miss")
    assert await read(trusting) == ("0", "hit")


async def test_without_redis_nobody_waits(redis: RedisServer, gateway: Gateway, book: Book) -> None:
    client = await gateway(redis.url, WARY)
    await redis.kill()
    await until(lambda: alone(client), 2.0)
    taken = [await write(client, str(number)) for number in range(20)]
    assert statistics.median(taken) < 0.05
    taken = [await until(partial(shows, client, "20")) for _ in range(20)]
    assert statistics.median(taken) < 0.05


async def test_when_redis_is_back_nothing_old_is_shown(
    redis: RedisServer, gateway: Gateway, book: Book
) -> None:
    one, other = await gateway(redis.url, TRUSTING), await gateway(redis.url, TRUSTING)
    await redis.kill()
    await until(lambda: alone(one), 2.0)
    await until(lambda: alone(other), 2.0)
    await keeps(other, row="0")
    await write(one, "k")
    assert await read(other) == ("0", "hit")
    await redis.start()
    await until(lambda: connected(other))
    assert await read(other) == ("1", "miss")
    await until(lambda: connected(one))
    await keeps(other, row="1")
    await write(one, "k2")
    await until(lambda: shows(other, "2"), 1.0)


async def test_of_coherence_health_speaks_only_where_there_is_to_be_any(client: Client) -> None:
    report = await client.gateway.health.report()  # type: ignore[attr-defined]
    assert "coherence" not in report


async def test_a_gateway_starts_without_redis_and_finds_it_later(
    tmp_path: Path, make_client: MakeClient, book: Book
) -> None:
    redis = RedisServer(tmp_path)
    client = await make_client(**LONG, coherence__redis_url=redis.url)
    assert await coherence(client) == {"connected": False, "since_s": pytest.approx(0, abs=5)}
    assert (await client.get("/health/ready")).status == 200
    assert await read(client) == ("0", "miss")
    async with redis.run():
        await until(lambda: connected(client))
        assert await read(client) == ("0", "miss")


# A bad wire.


async def test_a_gateway_that_was_cut_off_shows_nothing_old_when_it_is_back(
    redis: RedisServer, wire: Wire, gateway: Gateway, book: Book
) -> None:
    one, other = await gateway(redis.url), await gateway(wire.url, TRUSTING)
    await keeps(other, row="0")
    wire.stall()
    await wire.cut()
    await until(lambda: alone(other), 2.0)
    await write(one, "k")
    assert await read(other) == ("0", "hit")
    wire.resume()
    await until(lambda: connected(other))
    assert await read(other) == ("1", "miss")


async def test_a_wire_that_lets_nothing_through_is_noticed_within_two_seconds(
    redis: RedisServer, wire: Wire, gateway: Gateway, book: Book
) -> None:
    one, other = await gateway(redis.url), await gateway(wire.url, WARY)
    await keeps(other, row="0")
    wire.stall()
    await write(one, "k")
    assert await until(lambda: alone(other), 2.0) > 0.5
    assert await read(other) == ("1", "miss")
    wire.resume()
    await until(lambda: connected(other))
    await keeps(other, row="1")
    await write(one, "k2")
    await until(lambda: shows(other, "2"), 1.0)


async def test_connections_that_are_dead_without_an_end_are_replaced(
    redis: RedisServer, wire: Wire, gateway: Gateway, make_client: MakeClient, book: Book
) -> None:
    client = await gateway(wire.url, TRUSTING)
    await keeps(client, row="0")
    wire.stall()
    wire.forget()
    await until(lambda: alone(client), 2.0)
    await write(await gateway(redis.url), "k")
    await until(lambda: connected(client))
    assert await read(client) == ("1", "miss")


async def test_a_beginning_without_an_answer_is_given_up_and_made_again(
    wire: Wire, make_client: MakeClient, book: Book
) -> None:
    wire.stall()
    client = await make_client(**LONG, coherence__redis_url=wire.url)

    async def begun() -> bool:
        return wire.connections > 0

    await until(begun)
    wire.forget()
    await until(lambda: connected(client))


async def test_a_write_behind_a_bad_wire_waits_for_a_moment_and_later_not_at_all(
    redis: RedisServer, wire: Wire, gateway: Gateway, book: Book
) -> None:
    client = await gateway(wire.url)
    wire.stall()
    assert 0.15 < await write(client, "k") < 0.5
    await until(lambda: alone(client), 2.0)
    taken = [await write(client, str(number)) for number in range(10)]
    assert statistics.median(taken) < 0.05


async def test_what_could_not_be_announced_is_announced_later(
    redis: RedisServer, wire: Wire, gateway: Gateway, book: Book
) -> None:
    one, other = await gateway(wire.url), await gateway(redis.url)
    await keeps(other, row="0")
    wire.stall()
    await wire.cut()
    await until(lambda: alone(one), 2.0)
    await write(one, "k")
    assert await read(other) == ("0", "hit")
    wire.resume()
    await until(lambda: shows(other, "1"))
    assert await connected(one)


async def test_what_a_predecessor_could_not_announce_is_taken_for_anything(
    redis: RedisServer, wire: Wire, gateway: Gateway, book: Book
) -> None:
    one, other = await gateway(wire.url), await gateway(redis.url)
    await keeps(other, row="0")
    wire.stall()
    await write(one, "k")
    await one.close()
    assert await read(other) == ("0", "hit")
    await gateway(redis.url)
    await until(lambda: shows(other, "1"), 1.0)


async def test_a_gateway_goes_away_at_once_and_leaves_no_connection(
    redis: RedisServer, wire: Wire, gateway: Gateway
) -> None:
    one, other = await gateway(redis.url), await gateway(wire.url)
    wire.stall()
    began = time.monotonic()
    await one.close()
    await other.close()
    assert time.monotonic() - began < 2.0
    await wire.cut()
    await until(partial(nobody_else, redis), 2.0)


async def test_a_link_that_is_not_listened_to_is_closed_as_well(redis: RedisServer) -> None:
    async with redis_link(redis.url, "one", "other"):
        assert not await nobody_else(redis)
    await until(partial(nobody_else, redis), 2.0)


async def test_a_name_that_is_not_found_for_long_is_looked_up_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up, over = [], threading.Event()

    def look_up(host: str, *_: object, **__: object) -> None:
        looked_up.append(host)
        over.wait(PATIENCE_S)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("gateway.redis_link._TIMEOUT_S", 0.02)
    try:
        for _ in range(4):
            with pytest.raises(TimeoutError):
                async with redis_link("redis://nobody.test", "one"):
                    pass
        assert looked_up == ["nobody.test"]
    finally:
        over.set()


async def test_of_the_addresses_of_a_name_the_first_that_takes_connections_is_used(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [(0, 0, 0, "", (address, redis.port)) for address in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    async with redis_link(f"redis://redis.test:{redis.port}", "one") as link:
        await link.publish("one", "heard")
        assert await link.receive() == ("one", "heard")


async def test_both_connections_of_a_link_go_to_one_address(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = asyncio.Event()

    async def greet_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first.close()
        while data := await reader.read(4096):
            writer.write(b"+OK\r\n" * data.count(b"SETINFO"))
        writer.close()
        left.set()

    first = await asyncio.start_server(greet_one, "127.0.0.2", redis.port)
    addresses = [(0, 0, 0, "", (address, redis.port)) for address in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    async with redis_link(f"redis://redis.test:{redis.port}", "one") as link:
        async with asyncio.timeout(5):
            await left.wait()
        await link.publish("one", "heard")
        assert await link.receive() == ("one", "heard")


async def test_at_whatever_moment_it_is_told_to_go_it_goes_and_leaves_nothing_open(
    redis: RedisServer,
) -> None:
    for steps in range(120):
        coherence = Coherence(Generations(), partial(redis_link, redis.url), 1.0)
        running = asyncio.create_task(coherence.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        assert await asyncio.wait([running], timeout=1.0) == ({running}, set()), steps
        assert running.cancelled()
    await until(partial(nobody_else, redis), 2.0)


async def nobody_else(redis: RedisServer) -> bool:
    return (await redis.ask("CLIENT", "LIST")).count("id=") == 1


# Who may.


async def refusal(redis: RedisServer, url: str, make_client: MakeClient) -> dict[str, Any]:
    """The warning of a gateway that Redis does not let in."""
    with capture_logs() as logged:
        client = await make_client(**LONG, coherence__redis_url=url)

        async def warned() -> bool:
            return any(line["log_level"] == "warning" for line in logged)

        await until(warned)
        assert await alone(client)
        assert "hunter2" not in json.dumps(await client.gateway.health.report())  # type: ignore[attr-defined]
    assert "hunter2" not in repr(logged)
    return next(dict(line) for line in logged if line["log_level"] == "warning")


async def test_a_password_is_used_and_never_told(
    tmp_path: Path, gateway: Gateway, make_client: MakeClient
) -> None:
    async with RedisServer(tmp_path, "--requirepass", "hunter2").run() as redis:
        for user in ("", "default"):
            client = await gateway(redis.url.replace("//", f"//{user}:hunter2@"))
            assert await connected(client)
        wrong = redis.url.replace("//", "//:not-hunter2@")
        warning = await refusal(redis, wrong, make_client)
        assert warning["error"] == "AuthenticationError"
        assert (await refusal(redis, redis.url, make_client))["event"] == "coherence lost"


async def test_over_tls_redis_must_show_a_certificate_of_its_own_that_somebody_vouches_for(
    redis: RedisServer, gateway: Gateway, make_client: MakeClient, tmp_path: Path
) -> None:
    tls, authority = certified("localhost", tmp_path)
    async with Wire(redis.port).run(tls) as wire, redis.watched() as seen:
        wrong_name = f"{wire.url}?ssl_ca_certs={authority}"
        right = wrong_name.replace("127.0.0.1", "localhost")
        nobody_vouches = right.partition("?")[0]
        for url in (wrong_name, nobody_vouches):
            assert (await refusal(redis, url, make_client))["error"] == "ConnectionError"
        assert seen == []
        assert await connected(await gateway(right))


async def test_a_user_of_redis_who_may_do_nothing_else_suffices(
    redis: RedisServer, gateway: Gateway, make_client: MakeClient, book: Book
) -> None:
    acl = ("ACL", "SETUSER", "gateway", "on", ">hunter2", "+subscribe")
    url = redis.url.replace("//", "//gateway:hunter2@")
    assert await redis.ask(*acl, "&ledger-gateway:*") == "+OK\r\n"
    assert (await refusal(redis, url, make_client))["error"] == "NoPermissionError"
    assert await redis.ask(*acl, "+publish") == "+OK\r\n"
    one, other = await gateway(url), await gateway(url)
    await keeps(other, row="0")
    await write(one, "k")
    await until(lambda: shows(other, "1"), 1.0)
