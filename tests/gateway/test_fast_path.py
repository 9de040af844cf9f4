"""The fast path: the answer of the long walk without the walk, and only while all of it stands."""

import asyncio
import gc
import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import floor
from pathlib import Path
from sys import getsizeof
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway import fast_path, representations, shortcuts
from gateway.config import Secret
from gateway.connections import Connection
from gateway.exchange import Answer, Ask
from gateway.fast_path import FAST_PATH
from gateway.keys import load_keys
from gateway.walk import Walk
from tests.conftest import ADMIN, RATES, SERVICE, MakeClient, caller, token
from tests.fakes import FakeLedger

ALICE = caller()
ROW = '{"id":"%d","username":"%s","amount":"1.10000000","lp_id":"x"}'
LONG = {
    "server__fast_path": "true",
    "cache__ledger_ttl_s": "600",
    "cache__rates_ttl_s": "600",
}

Client = Any
Walks = list[str]


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Walks:
    """The targets that were walked for."""
    targets: Walks = []
    walk = Walk.__call__

    async def noted(self: Walk, endpoint: Any, ask: Ask) -> Answer:
        targets.append(ask.raw_path)
        return await walk(self, endpoint, ask)

    monkeypatch.setattr(Walk, "__call__", noted)
    return targets


@pytest.fixture
async def client(make_client: MakeClient, ledger: FakeLedger) -> Client:
    fill(ledger)
    return await make_client(**LONG)


def fill(ledger: FakeLedger) -> None:
    """Rows of two users, and a rate."""
    rows = [ROW % (number, "bob" if number % 3 else "alice") for number in range(30)]
    ledger.rows("/ledger", *rows)
    ledger.rows("/ledger/order/1", *rows)
    ledger.rows("/ledger/alice", *rows[::3])
    ledger.on("GET", RATES, '[{"id":"1","amount":10,"scale":2}]')
    ledger.on("POST", "/ledger", f'{{"api_data":{rows[0]}}}', 201)


def head(target: str = "/ledger", headers: dict[str, str] = ALICE, **more: str) -> bytes:
    """The bytes of a GET."""
    lines = {"Host": "g", **headers, **{name.replace("_", "-"): more[name] for name in more}}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"GET {target} HTTP/1.1\r\n{text}\r\n".encode()


class Caller:
    """One connection, on which bytes are sent as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Sends the bytes in a packet of their own, which the gateway has read."""
        self._writer.write(data)
        await self._writer.drain()
        for _ in range(20):
            await asyncio.sleep(0)

    async def answer(self) -> bytes:
        """The next whole answer."""
        async with asyncio.timeout(10):
            top = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", top)
            return top + await self._reader.readexactly(int(length[1]) if length else 0)

    async def get(self, data: bytes) -> bytes:
        """The answer to some bytes."""
        await self.send(data)
        return await self.answer()


@asynccontextmanager
async def connected(client: Client) -> AsyncIterator[Caller]:
    """A connection to the gateway."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


async def learned(one: Caller, data: bytes) -> bytes:
    """The answer to some bytes when all of the shortcuts to it are there."""
    for _ in range(3):
        await one.get(data)
    return await one.get(data)


def timeless(answer: bytes) -> bytes:
    """An answer without what depends on the moment."""
    return re.sub(rb"(Date: |Age: |ttl=|X-Request-Id: )[^\r]*", rb"\1*", answer)


def status(answer: bytes) -> int:
    return int(answer.split()[1])


# The same answer, without the walk.


async def test_from_the_third_time_on_a_head_is_answered_without_a_walk(
    client: Client, walks: Walks, ledger: FakeLedger
) -> None:
    async with connected(client) as one:
        answers = [await one.get(head()) for _ in range(6)]
    assert len(walks) == 2
    assert len({timeless(answer) for answer in answers[1:]}) == 1
    assert len({re.search(rb"X-Request-Id: (\w{32})\r", answer)[1] for answer in answers}) == 6  # type: ignore[index]
    assert len(ledger.calls) == 1


TARGETS: dict[str, tuple[str, dict[str, str]]] = {
    "own rows": ("/ledger", ALICE),
    "own page": ("/ledger?limit=10", ALICE),
    "an order for a user": ("/ledger/order/1", ALICE),
    "an order for an admin": ("/ledger/order/1", caller(*ADMIN)),
    "all rows for a service": ("/ledger", caller(*SERVICE)),
    "gzip": ("/ledger", caller(*ADMIN) | {"Accept-Encoding": "gzip"}),
    "another tag": ("/ledger", ALICE | {"If-None-Match": '"x"'}),
    "rates": (RATES, {"Authorization": ALICE["Authorization"]}),
    "an id": ("/ledger", ALICE | {"X-Request-Id": "abc-1"}),
    "an id that may not be used": ("/ledger", ALICE | {"X-Request-Id": "a b"}),
}


@pytest.mark.parametrize("name", TARGETS)
async def test_it_is_the_answer_of_the_walk_byte_for_byte(
    make_client: MakeClient, ledger: FakeLedger, walks: Walks, name: str
) -> None:
    fill(ledger)
    target, headers = TARGETS[name]
    if "limit" in target:
        page = [ROW % (number, "alice") for number in range(10)]
        ledger.rows("/ledger/alice", *page, Link="</x?cursor=c>; rel=next")
    found = []
    for switch in ("true", "false"):
        client = await make_client(**LONG | {"server__fast_path": switch})
        async with connected(client) as one:
            await one.get(head(target, headers))
            found += [await one.get(head(target, headers)) for _ in range(4)]
    assert len({timeless(answer) for answer in found}) == 1
    assert status(found[0]) == 200
    assert len(walks) == 2 + 5
    if "X-Request-Id" in headers:
        assert all((b"X-Request-Id: abc-1\r" in one) == (name == "an id") for one in found)


async def test_what_no_answer_depends_on_may_change_each_time(client: Client, walks: Walks) -> None:
    async with connected(client) as one:
        first = await learned(one, head())
        for number in range(5):
            more = {
                "traceparent": f"00-{number:032x}-{number:016x}-01",
                "X_Request_Id": f"r-{number}",
            }
            answer = await one.get(head(**more))
            assert timeless(answer) == timeless(first)
            assert f"X-Request-Id: r-{number}\r".encode() in answer
    assert len(walks) == 2


async def test_a_known_head_is_not_parsed_whatever_lines_change_each_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes | None] = []
    by_message = fast_path.FastPath.by_message

    def noted(self: fast_path.FastPath, message: Any, data: bytes | None) -> bytes | None:
        parsed.append(data)
        return by_message(self, message, data)

    monkeypatch.setattr(fast_path.FastPath, "by_message", noted)
    async with connected(client) as one:
        await learned(one, head())
        known = len(parsed)
        for name in ("traceparent", "tracestate", "baggage", "X_Request_Id"):
            for more in ({}, {name: "a"}, {name: "a", "traceparent": "b"}):
                assert status(await one.get(head(**more))) == 200
    assert len(parsed) == known


async def test_an_answer_is_not_given_again_in_another_version(client: Client) -> None:
    data = head(Connection="keep-alive")
    async with connected(client) as one:
        assert (await learned(one, data)).startswith(b"HTTP/1.1 200 ")
        old = await one.get(data.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert old.startswith(b"HTTP/1.0 200 ")
    assert b"\r\nConnection: keep-alive\r\n" in old


@pytest.mark.parametrize(
    "other",
    [
        head(headers=ALICE | {"username": "bob"}),
        head(headers={"Authorization": ALICE["Authorization"]}),
        head(headers={"username": "alice"}),
        head(headers=ALICE | {"Authorization": ALICE["Authorization"][:-2]}),
        head(headers=ALICE | {"Authorization": ALICE["Authorization"] + ", x"}),
        head().replace(b"\r\n\r\n", b"\r\nusername: alice\r\n\r\n"),
        head().replace(b"\r\n\r\n", b"\r\nusername: bob\r\n\r\n"),
        head().replace(b"\r\n\r\n", b"\r\nHost: g\r\n\r\n"),
        head("/ledger?limit=0"),
        head("/ledger/bob"),
        head("/ledger#x"),
        head().replace(b"GET", b"PUT"),
        head().replace(b"GET", b"get"),
        head().replace(b"HTTP/1.1", b"HTTP/0.9"),
        head(Transfer_Encoding="identity"),
    ],
)
async def test_a_request_that_is_to_be_refused_finds_no_shortcut(
    client: Client, other: bytes
) -> None:
    async with connected(client) as one:
        await learned(one, head())
        assert 400 <= status(await one.get(other)) < 500


@pytest.mark.parametrize(
    "data",
    [
        head(Cache_Control="max-age=5"),
        head(Connection="close"),
        head().replace(b"HTTP/1.1", b"HTTP/1.0"),
        head("/ledger/order/1", caller("carol")),
        head("/ledger/order/2?limit=1"),
        head("/ledger/order/2"),
        head("/health/ready"),
    ],
)
async def test_no_shortcut_is_left_by_what_depends_on_more(
    client: Client, ledger: FakeLedger, data: bytes
) -> None:
    ledger.rows("/ledger/order/2", *[ROW % (1, "alice")] * 3, Link="</x?cursor=c>; rel=next")
    for _ in range(4):
        async with connected(client) as one:
            await one.send(data)
            await one.answer()
    known = client.gateway.api[FAST_PATH]
    assert (known._by_request, known._by_head) == ({}, {})


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ("X-Request-Id: a-1", "a-1"),
        ("x-ReQuEsT-iD:a-1", "a-1"),
        ("X-Request-Id: \ta-1 ", "a-1"),
        ("X-Request-Id: a-1\r\nX-Request-Id: a-2", None),
        ("X-Request-Id: a-1\r\nX-Request-Id: a b", None),
        ("X-Request-Id: a b", None),
        ("X-Request-Id:", None),
        ("traceparent: 1\r\nX-Request-Id: a-1\r\nbaggage: a=b, c=d\r\ntracestate:", "a-1"),
    ],
)
async def test_an_id_is_taken_over_from_a_head_as_from_a_request(
    client: Client, walks: Walks, lines: str, kept: str | None
) -> None:
    data = head().replace(b"\r\n\r\n", f"\r\n{lines}\r\n\r\n".encode())
    async with connected(client) as one:
        await learned(one, head())
        answers = [await one.get(data) for _ in range(3)]
    for answer in answers:
        found = re.search(rb"\r\nX-Request-Id: ([^\r]*)", answer)
        assert found is not None
        assert found[1].decode() == kept if kept else re.fullmatch(rb"[0-9a-f]{32}", found[1])
    assert len(walks) == 2


@pytest.mark.parametrize(
    "lines",
    [
        "traceparent: \x00",
        "traceparent: \x7f",
        "traceparent: a\r b",
        "traceparent: a\r\n b",
        "traceparent : a",
        " traceparent: a",
        "traceparent",
        "traceparent: a\nusername: bob",
        "\r\n".join(["traceparent: a"] * 200),
    ],
)
async def test_a_line_that_a_parser_refuses_is_not_passed_over(client: Client, lines: str) -> None:
    data = head().replace(b"\r\n\r\n", f"\r\n{lines}\r\n\r\n".encode())
    async with connected(client) as one:
        await learned(one, head())
        first = await one.get(data)
    fresh = await client.session.get(client.make_url("/health/live"))
    assert fresh.status == 200
    assert status(first) in (400, 403)


async def test_no_more_lines_are_passed_over_than_a_parser_takes_with_the_others(
    client: Client,
) -> None:
    others = {f"X-{number}": "a" for number in range(120)}
    data = head(headers=ALICE | others)
    async with connected(client) as one:
        assert status(await learned(one, data)) == 200
        more = data.replace(b"\r\n\r\n", b"\r\nbaggage: a" * 8 + b"\r\n\r\n")
        assert status(await one.get(more)) == 400


@pytest.mark.parametrize("line", [b"traceparent: a", b"Traceparent: a", b"baggage: a"])
@pytest.mark.parametrize("more", [b"", b"\r\n"])
async def test_a_line_behind_a_head_or_before_it_is_no_part_of_it(
    client: Client, line: bytes, more: bytes
) -> None:
    for data in (head() + more + line + b"\r\n", more + line + b"\r\n" + head()):
        async with connected(client) as one:
            await learned(one, head())
            await one.get(head() + more)
            await one.get(more + head())
            found = await one.get(data)
            if status(found) == 200:
                found = await one.get(b"\r\n")
            assert status(found) == 400


async def test_an_id_beside_one_that_a_line_cannot_be_told_by_is_not_taken_over(
    client: Client,
) -> None:
    data = head().replace(b"\r\n\r\n", b"\r\nX-Request-Id: \xe9\r\n\r\n")
    other = data.replace(b"\r\n\r\n", b"\r\nX-Request-Id: a-1\r\n\r\n")
    async with connected(client) as one:
        await learned(one, data)
        assert b"a-1" not in await one.get(other)


async def test_what_the_caller_has_already_is_not_sent_again(client: Client, walks: Walks) -> None:
    async with connected(client) as one:
        answer = await learned(one, head())
        etag = re.search(rb"ETag: ([^\r]*)", answer)
        assert etag is not None
        for _ in range(4):
            assert status(await one.get(head(If_None_Match=etag[1].decode()))) == 304
    assert len(walks) == 2 + 4


async def test_it_can_be_switched_off(
    make_client: MakeClient, ledger: FakeLedger, walks: Walks
) -> None:
    fill(ledger)
    client = await make_client(**LONG | {"server__fast_path": "false"})
    async with connected(client) as one:
        for _ in range(5):
            await one.get(head())
    assert len(walks) == 5
    assert FAST_PATH not in client.gateway.api


# What ends a shortcut takes effect at once.

End = Callable[[Client, pytest.MonkeyPatch], Awaitable[None]]


async def _expires(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = client.gateway.api[FAST_PATH]._authenticator
    late = authenticator._now() + 3600
    monkeypatch.setattr(authenticator, "_now", lambda: late)


async def _other_keys(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = client.gateway.api[FAST_PATH]._authenticator._keyring
    monkeypatch.setattr(keyring, "_configured", {})
    client.gateway.api[FAST_PATH]._authenticator._memo.clear()


async def _rotated(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = client.gateway.api[FAST_PATH]._authenticator
    other = load_keys(["HS256"], Secret("another secret, and long enough for HS256"), None)
    monkeypatch.setattr(authenticator._keyring, "_configured", other)
    authenticator._memo.clear()


async def _limited(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = client.gateway.api[FAST_PATH]._rate_limit
    monkeypatch.setattr(limit, "_rate", 0.001)
    limit.take("alice", client.gateway.api[FAST_PATH]._now())


@pytest.mark.parametrize(
    ("end", "wanted"),
    [(_expires, 401), (_other_keys, 503), (_rotated, 401), (_limited, 429)],
)
@pytest.mark.parametrize("more", [{}, {"traceparent": "1"}], ids=["head", "message"])
async def test_a_caller_is_refused_as_soon_as_the_walk_would_refuse(
    client: Client, monkeypatch: pytest.MonkeyPatch, end: End, wanted: int, more: dict[str, str]
) -> None:
    async with connected(client) as one:
        assert status(await learned(one, head())) == 200
        await end(client, monkeypatch)
        assert status(await one.get(head(**more))) == wanted


async def test_a_token_that_is_revoked_is_refused_at_once(
    make_client: MakeClient, ledger: FakeLedger, tmp_path: Path
) -> None:
    fill(ledger)
    file = tmp_path / "revoked.json"
    file.write_text("{}")
    client = await make_client(**LONG, auth__revocation_file=str(file))
    revocable = {"Authorization": token(jti="one"), "username": "alice"}
    async with connected(client) as one:
        assert status(await learned(one, head(headers=revocable))) == 200
        file.write_text('{"jti":["one"]}')
        assert status(await one.get(head(headers=revocable))) == 401


async def test_after_a_write_the_old_answer_is_not_given(
    client: Client, ledger: FakeLedger, walks: Walks
) -> None:
    async with connected(client) as one:
        old = await learned(one, head())
        ledger.rows("/ledger/alice", ROW % (99, "alice"))
        body = {"type": "deposit", "username": "bob", "currency": "BTC", "amount": "1"}
        done = await client.post(
            "/ledger", json=body, headers=caller(*SERVICE) | {"Idempotency-Key": "1"}
        )
        assert done.status == 201
        new = await one.get(head())
    assert b'"99"' in new
    assert timeless(new) != timeless(old)


async def test_when_its_time_is_up_the_ledger_is_asked(
    client: Client, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(client) as one:
        await learned(one, head())
        cached = client.gateway.api[FAST_PATH]._ledger
        late = cached._now() + 601
        monkeypatch.setattr(cached, "_now", lambda: late)
        await one.get(head())
    assert len(ledger.calls) == 2


async def test_age_lifetime_and_date_are_those_of_the_moment(client: Client) -> None:
    async with connected(client) as one:
        await learned(one, head())
    (shortcut,) = client.gateway.api[FAST_PATH]._by_request.values()
    moments = [(0.2, 5.2), (0.49, 5.9), (0.51, 5.95), (0.99, 5.99), (1.0, 5.99), (1.2, 6.0)]
    moments += [(1.3, 6.1), (1.51, 6.2), (7.0, 4.0), (7.0, 4.1), (7.5, 3.99), (600.4, 3.99)]
    for age, now in moments:
        before, after = shortcut.around_id(age, 600.5, now, {})
        lines = (before + after).decode().split("\r\n")
        assert f"Age: {int(age)}" in lines
        assert f"Cache-Status: ledger-gateway; hit; ttl={floor(600.5 - age)}" in lines
        assert f"Date: Thu, 01 Jan 1970 00:00:0{int(now)} GMT" in lines


@pytest.mark.parametrize("sending", [False, True])
async def test_what_the_cache_lets_go_is_not_held_by_a_shortcut(
    client: Client, ledger: FakeLedger, sending: bool
) -> None:
    async with connected(client) as one:
        await learned(one, head())
        (shortcut,) = client.gateway.api[FAST_PATH]._by_request.values()
        # As somebody holds it to whom it is being sent.
        held = shortcut.sent() if sending else None
        client.gateway.api[FAST_PATH]._ledger._entries.clear()
        gc.collect()
        assert (shortcut.kept(), shortcut.sent()) == (None, held)
        assert status(await one.get(head())) == 200
    assert len(ledger.calls) == 2


@pytest.mark.parametrize("let_go", [False, True])
async def test_an_answer_that_a_later_one_has_replaced_is_not_given_again(
    client: Client, ledger: FakeLedger, let_go: bool
) -> None:
    async with connected(client) as one:
        await learned(one, head())
        (shortcut,) = client.gateway.api[FAST_PATH]._by_request.values()
        # As somebody holds it who is having it packed.
        held = shortcut.kept(), shortcut.sent()
        if let_go:
            client.gateway.api[FAST_PATH]._ledger._entries.popitem()
        ledger.rows("/ledger/alice", ROW % (99, "alice"))
        await one.get(head(Cache_Control="no-cache"))
        assert b'"id":"99"' in await one.get(head())
    assert None not in held
    assert len(ledger.calls) == 2


async def test_a_gateway_that_drains_sends_callers_away_on_the_fast_path_too(
    client: Client,
) -> None:
    async with connected(client) as one:
        assert b"Connection" not in await learned(one, head())
        client.gateway.health.draining = True
        assert b"\r\nConnection: close\r\n" in await one.get(head())


async def test_an_answer_says_its_age_and_what_is_left(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(client) as one:
        await learned(one, head())
        cached = client.gateway.api[FAST_PATH]._ledger
        later = cached._now() + 100.5
        monkeypatch.setattr(cached, "_now", lambda: later)
        answer = await one.get(head())
    assert b"\r\nCache-Status: ledger-gateway; hit; ttl=499\r\nAge: 100\r\n" in answer


async def test_a_limit_counts_and_is_told_on_the_fast_path_too(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    fill(ledger)
    client = await make_client(**LONG, limits__requests_per_s="10")
    monotonic = client.gateway.api[FAST_PATH]._now()
    client.gateway.api[FAST_PATH]._now = lambda: monotonic
    async with connected(client) as one:
        answers = [await one.get(head()) for _ in range(20)]
    counts = [status(answer) for answer in answers]
    assert counts[:10] == [200] * 10
    assert 429 in counts
    left = [re.search(rb"RateLimit: \"user\";r=(\d+)", answer) for answer in answers[2:10]]
    assert [int(found[1]) for found in left if found] == sorted(
        (int(found[1]) for found in left if found), reverse=True
    )
    assert len(left) == 8


# Framing: what looks like a known head is one only where a head begins.


async def test_a_known_head_as_the_body_of_a_write_is_a_body(
    client: Client, ledger: FakeLedger
) -> None:
    known = head()
    post = head(headers=caller(*SERVICE), Content_Length=str(len(known)), Idempotency_Key="1")
    post = post.replace(b"GET", b"POST").replace(
        b"\r\n\r\n", b"\r\nContent-Type: application/json\r\n\r\n"
    )
    async with connected(client) as one:
        await learned(one, known)
        await one.send(post)
        assert status(await one.get(known)) == 400
        assert status(await one.get(known)) == 200
        assert status(await one.get(post + known)) == 400
        assert status(await one.get(known)) == 200


async def test_a_known_head_behind_half_a_head_is_a_part_of_that(client: Client) -> None:
    async with connected(client) as one:
        await learned(one, head())
        await one.send(b"GET /ledger/bob HTTP/1.1\r\nX-Odd: ")
        answer = await one.get(head())
        assert status(answer) in (400, 401, 403)
        assert b"alice" not in answer


async def test_a_known_head_in_two_packets_is_answered_once(client: Client) -> None:
    async with connected(client) as one:
        first = await learned(one, head())
        for cut in range(1, len(head()), 7):
            await one.send(head()[:cut])
            assert timeless(await one.get(head()[cut:])) == timeless(first)


async def test_known_heads_in_one_packet_are_answered_in_order(client: Client) -> None:
    orders = [head("/ledger/order/1", X_Request_Id=f"r-{number}") for number in range(4)]
    async with connected(client) as one:
        for data in orders:
            await learned(one, data)
        await one.send(b"".join(orders))
        for number in range(4):
            assert f"X-Request-Id: r-{number}\r".encode() in await one.answer()


async def test_what_follows_a_known_head_in_its_packet_is_not_lost(client: Client) -> None:
    async with connected(client) as one:
        first = await learned(one, head())
        await one.send(head(traceparent="1") + head("/ledger/order/1")[:50])
        assert timeless(await one.answer()) == timeless(first)
        assert status(await one.get(head("/ledger/order/1")[50:])) == 200


async def test_a_known_head_waits_for_the_answer_before_it(
    client: Client, ledger: FakeLedger
) -> None:
    released = asyncio.Event()

    async def slow(_request: Any) -> Any:
        await released.wait()
        return web.json_response([{"id": "slow", "username": "alice"}])

    ledger.run("GET", "/ledger/order/slow", slow)
    async with connected(client) as one:
        await learned(one, head())
        await one.send(head("/ledger/order/slow"))
        await one.send(head())
        released.set()
        assert b"slow" in await one.answer()
        assert b"slow" not in await one.answer()


async def test_a_connection_on_the_fast_path_stays_open_as_long_as_any_other(
    client: Client,
) -> None:
    async with connected(client) as one:
        await learned(one, head())
        (connection,) = open_connections()
        before = connection._next_keepalive_close_time
        await one.get(head())
        assert connection._next_keepalive_close_time > before
        assert connection._head_deadline is None


def open_connections() -> list[Connection]:
    """All connections of this process to a gateway."""
    every = [one for one in gc.get_objects() if type(one) is Connection]
    return [one for one in every if one.transport is not None]


# It is counted, logged and bounded like the walk.


async def test_it_is_logged_and_counted_like_the_walk(client: Client) -> None:
    metrics = client.gateway.api[FAST_PATH]._metrics
    async with connected(client) as one:
        with capture_logs() as logs:
            for _ in range(6):
                await one.get(head(X_Request_Id="same"))
    for event in logs:
        del event["duration_ms"]
    assert len(logs) == 6
    assert all(event == logs[1] for event in logs[2:])
    assert metrics.totals()["/ledger"] == {"200": 6.0}
    text = metrics.exposition().decode()
    assert 'gateway_cache_total{outcome="hit"} 5.0' in text
    assert 'gateway_request_duration_seconds_count{route="/ledger"} 6.0' in text
    assert client.gateway.api[FAST_PATH]._ledger.statistics()["hits"] == 5


async def test_rows_that_are_dropped_are_counted_each_time(client: Client) -> None:
    metrics = client.gateway.api[FAST_PATH]._metrics
    async with connected(client) as one:
        for _ in range(5):
            await one.get(head("/ledger/order/1"))
    assert "gateway_rows_dropped_total 100.0" in metrics.exposition().decode()


async def test_there_are_never_more_than_so_many_shortcuts(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcuts, "_MAX_SHORTCUTS", 5)
    known = client.gateway.api[FAST_PATH]
    async with connected(client) as one:
        for number in range(20):
            await learned(one, head(X_Odd=str(number)))
            assert len(known._by_request) <= 5
            assert len(known._by_head) <= 5


async def test_what_shortcuts_are_known_by_takes_never_more_than_so_much_memory(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcuts, "_MAX_BYTES", 10_000)
    known = client.gateway.api[FAST_PATH]
    async with connected(client) as one:
        for number in [*range(20), 18, 19, 19]:
            # What is known already is learned anew, in its place.
            known._ledger._entries.clear()
            await learned(one, head(X_Odd=f"{number:02}" + "x" * 2000))
            heads, requests = list(known._by_head), list(known._by_request)
            assert sum(map(getsizeof, heads)) == known._by_head._bytes <= 10_000
            assert sum(map(taken, requests)) == known._by_request._bytes <= 10_000
    assert b"19xx" in heads[-1]
    assert 1 < len(requests) < 20


async def test_many_short_headers_count_for_what_it_takes_to_keep_them(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcuts, "_MAX_BYTES", 100_000)
    short = {f"x-{number}": "ab" for number in range(100)}
    known = client.gateway.api[FAST_PATH]
    async with connected(client) as one:
        for number in range(20):
            await learned(one, head(headers=ALICE | short, X_Odd=str(number)))
    assert 1 < len(known._by_request) < 20
    assert sum(map(taken, known._by_request)) <= 100_000


def taken(request: fast_path.Key) -> int:
    """What it takes in memory, in bytes."""
    target, headers = request
    pairs = sum(getsizeof(pair) + sum(map(getsizeof, pair)) for pair in headers)
    return getsizeof(request) + getsizeof(target) + getsizeof(headers) + pairs


async def test_a_long_head_is_answered_and_not_remembered(client: Client) -> None:
    async with connected(client) as one:
        answer = await learned(one, head(X_Long="x" * 5000))
    assert status(answer) == 200
    known = client.gateway.api[FAST_PATH]
    assert (known._by_request, known._by_head) == ({}, {})


async def test_a_coding_that_found_no_room_is_made_again_each_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representations, "_CODED_OVERHEAD", 1 << 40)
    async with connected(client) as one:
        plain = await learned(one, head(headers=caller(*ADMIN)))
        for _ in range(3):
            coded = await learned(one, head(headers=caller(*ADMIN), Accept_Encoding="gzip"))
            body = gzip.decompress(coded.split(b"\r\n\r\n", 1)[1])
            assert body == plain.split(b"\r\n\r\n", 1)[1]


async def test_a_coded_answer_unpacks_to_the_plain_one(client: Client) -> None:
    async with connected(client) as one:
        plain = await learned(one, head(headers=caller(*ADMIN)))
        coded = await learned(one, head(headers=caller(*ADMIN), Accept_Encoding="gzip"))
    assert b"\r\nContent-Encoding: gzip\r\n" in coded
    body = gzip.decompress(coded.split(b"\r\n\r\n", 1)[1])
    assert body == plain.split(b"\r\n\r\n", 1)[1]
    assert len(json.loads(body)["api_data"]) == 30
