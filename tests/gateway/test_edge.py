"""The edge: request ids, the headers of every answer, and requests that no client library sends."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from multidict import CIMultiDict

from gateway.app import create_app, shared
from gateway.server import listening
from tests.conftest import (
    ADMIN,
    RATE,
    RATES,
    SERVICE,
    caller,
    config_for,
)
from tests.fakes import FakeLedger, Seen

Client = TestClient[Any, Any]

DEPOSIT = b'{"type":"deposit","username":"alice","currency":"BTC","amount":"0.5"}'
ROW = '{"id":"1","username":"alice"}'
OPEN = ["/health/live", "/health/ready", "/openapi.json", "/docs"]


@dataclass(frozen=True)
class RawAnswer:
    """One answer as it came over the wire; its body is not decoded."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


def parsed(data: bytes) -> RawAnswer:
    """The one answer in what a server sent before it closed the connection."""
    head, separator, body = data.partition(b"\r\n\r\n")
    assert separator, data
    assert len(re.findall(rb"HTTP/1\.[01] [1-5]", data)) == 1, "more than one answer"
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = CIMultiDict(tuple(line.split(": ", 1)) for line in lines)
    assert int(headers.get("Content-Length", len(body))) == len(body), "the answer is not whole"
    return RawAnswer(int(first.split()[1]), headers, body)


# A server that should close a connection and does not would be waited for without an end.
PATIENCE_S = 20


async def exchange(port: int | None, request: bytes) -> bytes:
    """All that a server sends back for some bytes until the connection ends, in whatever way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(request)
            while chunk := await reader.read(65_536):
                data += chunk
    except ConnectionResetError:
        pass
    finally:
        writer.close()
    return data


async def first_status(port: int | None, request: bytes) -> int:
    """The status of the answer to some bytes, without waiting for the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(request)
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()


async def raw(client: Client, line: str | bytes, *headers: bytes, body: bytes = b"") -> RawAnswer:
    """The answer to a request line and header lines that are sent exactly as given."""
    start = line.encode("latin-1") if isinstance(line, str) else line
    head = b"\r\n".join([start, b"Host: gateway", b"Connection: close", *headers])
    return parsed(await exchange(client.port, head + b"\r\n\r\n" + body))


def heard(call: Seen) -> dict[str, str]:
    """The headers that the ledger saw, their names in lower case."""
    return {name.lower(): value for name, value in call.headers.items()}


@asynccontextmanager
async def served(ledger: FakeLedger) -> AsyncIterator[int]:
    """The port of a gateway that listens as `serve` lets it, which is not quite as in a test."""
    config = config_for(ledger.url)
    async with listening(create_app(config, shared(config)).api, "127.0.0.1", 0) as port:
        yield port


def lines(headers: dict[str, str]) -> list[bytes]:
    """Header lines for `raw`."""
    return [f"{name}: {value}".encode() for name, value in headers.items()]


# Request ids.


@pytest.mark.parametrize("given", ["a", "0", "A.b_c-9", "-", "x" * 128])
async def test_a_callers_request_id_is_taken_over(
    client: Client, ledger: FakeLedger, given: str
) -> None:
    answer = await client.get("/ledger", headers=caller() | {"X-Request-Id": given})
    assert (answer.status, answer.headers["X-Request-Id"]) == (200, given)
    assert [heard(call)["x-request-id"] for call in ledger.calls] == [given]


@pytest.mark.parametrize(
    "given",
    [
        "",
        "x" * 129,
        "a b",
        "a,b",
        "a/b",
        "a\tb",
        "{{7*7}}",
        "é",
        "%0d%0a",
        "<script>",
        'a"b',
        "\uff41",
    ],
)
async def test_a_request_id_that_may_not_be_logged_is_replaced(
    client: Client, ledger: FakeLedger, given: str
) -> None:
    answer = await client.get("/ledger", headers=caller() | {"X-Request-Id": given})
    made = answer.headers["X-Request-Id"]
    assert answer.status == 200
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", made)
    assert made != given
    assert [heard(call)["x-request-id"] for call in ledger.calls] == [made]


async def test_of_two_request_ids_neither_is_taken_over(client: Client, ledger: FakeLedger) -> None:
    answer = await raw(
        client, "GET /ledger HTTP/1.1", *lines(caller()), b"X-Request-Id: a", b"X-Request-Id: b"
    )
    assert answer.status == 200
    assert answer.headers["X-Request-Id"] not in ("a", "b", "a, b")
    assert heard(ledger.calls[0])["x-request-id"] == answer.headers["X-Request-Id"]


async def test_requests_without_an_id_get_different_ones(client: Client) -> None:
    made = {(await client.get("/nowhere")).headers["X-Request-Id"] for _ in range(20)}
    assert len(made) == 20


async def test_an_error_names_its_request(client: Client) -> None:
    on_ledger = await client.get("/ledger", headers={"X-Request-Id": "mine-1"})
    on_rates = await client.get(RATES, headers={"X-Request-Id": "mine-2"})
    assert (await on_ledger.json())["api_data"]["request_id"] == "mine-1"
    assert (await on_rates.json())["requestId"] == "mine-2"


# The headers of every answer.

STAFF = caller(*SERVICE)
WRITE = STAFF | {"Content-Type": "application/json", "Idempotency-Key": "key-1"}
ANSWERS = [
    ("GET", "/ledger", caller(), 200),
    ("GET", "/ledger?limit=5", caller(), 200),
    ("GET", RATES, caller(), 200),
    ("POST", "/ledger", WRITE, 201),
    ("DELETE", f"{RATES}/{RATE}", STAFF, 204),
    ("GET", "/ledger?nonsense=1", caller(), 400),
    ("GET", "/ledger", {}, 401),
    ("GET", RATES, {}, 401),
    ("GET", "/ledger/bob", caller(), 403),
    ("GET", "/nowhere", {}, 404),
    ("GET", f"{RATES}/{RATE}", caller(), 404),
    ("PUT", "/ledger", caller(), 405),
    ("POST", "/ledger", WRITE | {"Content-Type": "text/plain"}, 415),
    ("POST", RATES, WRITE, 400),
    ("GET", "/ledger/order/broken", caller(*ADMIN), 502),
    ("GET", "/ledger/order/long", caller(*ADMIN), 200),
]


def scripted(ledger: FakeLedger) -> None:
    """The ledger behind `ANSWERS`."""
    ledger.on("POST", "/ledger", f'{{"api_message":"OK","api_data":{ROW}}}', 201)
    ledger.on("GET", RATES, "[]")
    ledger.on("GET", f"{RATES}/{RATE}", "{}", 404)
    ledger.on("DELETE", f"{RATES}/{RATE}", b"", 204)
    ledger.on("GET", "/ledger/order/broken", "<html>")
    pages = iter(['</long?cursor=2>; rel="next"', None])

    async def long(_request: web.Request) -> web.StreamResponse:
        link = next(pages)
        return web.Response(
            text=f"[{ROW}]",
            content_type="application/json",
            headers={"Link": link} if link else {},
        )

    ledger.run("GET", "/ledger/order/long", long)


@pytest.mark.parametrize(("method", "target", "headers", "status"), ANSWERS)
async def test_every_answer_of_the_api_has_its_headers(
    client: Client,
    ledger: FakeLedger,
    method: str,
    target: str,
    headers: dict[str, str],
    status: int,
) -> None:
    scripted(ledger)
    answer = await client.request(method, target, headers=headers, data=DEPOSIT)
    assert answer.status == status
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answer.headers["X-Request-Id"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"] == "ledger-gateway"
    assert {"private", "no-store"} & set(answer.headers["Cache-Control"].split(", "))
    assert answer.headers["Vary"] == "Authorization, username, Accept-Encoding"
    if status == 204:
        assert "Content-Type" not in answer.headers
        assert await answer.read() == b""
    else:
        assert answer.content_type == "application/json"
        json.loads(await answer.read())


@pytest.mark.parametrize("target", OPEN)
async def test_open_answers_have_an_id_too(client: Client, target: str) -> None:
    answer = await client.get(target, headers={"X-Request-Id": "mine"})
    assert answer.status == 200
    assert answer.headers["X-Request-Id"] == "mine"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"] == "ledger-gateway"


async def test_an_answer_tells_nothing_of_the_software_or_the_ledger(
    client: Client, ledger: FakeLedger
) -> None:
    extras = {"Server": "secret-ledger/9", "Set-Cookie": "a=b", "X-Internal": "10.0.0.7"}
    ledger.rows("/ledger/alice", ROW, **extras)
    answer = await client.get("/ledger", headers=caller())
    assert answer.status == 200
    assert {name.lower() for name in answer.headers} == {
        "content-type",
        "content-length",
        "etag",
        "cache-control",
        "cache-status",
        "vary",
        "date",
        "x-request-id",
        "x-content-type-options",
        "server",
    }
    assert answer.headers.getall("Server") == ["ledger-gateway"]


async def test_a_draining_gateway_sends_its_callers_elsewhere(client: Client) -> None:
    before = await client.get("/ledger", headers=caller())
    client.gateway.health.draining = True  # type: ignore[attr-defined]
    after = await client.get("/ledger", headers=caller())
    assert (before.status, before.headers.get("Connection")) == (200, None)
    assert (after.status, after.headers.get("Connection")) == (200, "close")


# One answer per request, whatever comes over the wire.


async def test_an_answer_to_head_has_no_body(client: Client) -> None:
    data = await exchange(
        client.port,
        b"HEAD /health/live HTTP/1.1\r\nHost: g\r\n\r\n"
        b"GET /health/live HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n",
    )
    first, second = data.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200")
    assert first.endswith(b"\r\n\r\n")
    assert second.endswith(b'{"status": "ok"}')


@pytest.mark.parametrize("headers", [{}, caller()], ids=["nobody", "a user"])
async def test_the_body_of_a_refused_write_is_never_read_as_a_request(
    client: Client, ledger: FakeLedger, headers: dict[str, str]
) -> None:
    hidden = b"GET /ledger/alice HTTP/1.1\r\nHost: g\r\n" + b"\r\n".join(lines(caller()))
    hidden += b"\r\n\r\n"
    head = [b"POST /ledger HTTP/1.1", b"Host: g", b"Content-Length: %d" % len(hidden)]
    request = b"\r\n".join([*head, *lines(headers)]) + b"\r\n\r\n" + hidden
    last = b"GET /health/live HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"
    data = await exchange(client.port, request + last)
    statuses = [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses in ([b"401", b"200"], [b"403", b"200"], [b"401"], [b"403"])
    assert ledger.calls == []


async def test_a_length_and_chunks_together_are_refused(client: Client, ledger: FakeLedger) -> None:
    answer = await raw(
        client,
        "POST /ledger HTTP/1.1",
        *lines(WRITE),
        b"Content-Length: 4",
        b"Transfer-Encoding: chunked",
        body=b"0\r\n\r\n",
    )
    assert answer.status == 400
    assert ledger.calls == []


@pytest.fixture
async def listener(ledger: FakeLedger) -> AsyncIterator[int]:
    """The port of a gateway that listens as `serve` lets it."""
    async with served(ledger) as port:
        yield port


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /ledger HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer %b\r\n\r\n" % (b"marker" * 2000),
        b"GET /ledger HTTP/1.1\r\nHost: g\r\nAuthorization: marker\x00marker\r\n\r\n",
        b"GET /ledger?marker=%b HTTP/1.1\r\nHost: g\r\n\r\n" % (b"x" * 20_000),
        b"marker\r\n\r\n",
        b"GET /ledger HTTP/9.marker\r\nHost: g\r\n\r\n",
        b"GET /ledger HTTP/1.1\r\nHost: g\r\nContent-Length: marker\r\n\r\n",
        b"GET /ledger HTTP/1.1\r\nHost: g\r\nmarker : x\r\n\r\n",
    ],
    ids=["long header", "NUL", "long target", "no HTTP", "version", "length", "space in a name"],
)
async def test_what_cannot_be_parsed_is_refused_in_the_contracts_form_and_not_quoted(
    listener: int, ledger: FakeLedger, request_bytes: bytes
) -> None:
    answer = parsed(await exchange(listener, request_bytes))
    assert 400 <= answer.status < 500
    assert b"marker" not in answer.body
    assert set(json.loads(answer.body)) == {"api_message", "api_data"}
    assert answer.headers["X-Request-Id"]
    assert ledger.calls == []


async def test_the_next_good_request_is_served_after_any_bad_one(client: Client) -> None:
    for bad in (b"\0" * 100, b"GET / HTTP/1.1\r\n\xff: \xff\r\n\r\n", b"\r\n" * 50 + b"x\r\n\r\n"):
        assert b" 400 " in await exchange(client.port, bad)
        answer = await raw(client, "GET /ledger HTTP/1.1", *lines(caller()))
        assert answer.status == 200
