"""Callers who are slow, silent, too many, or do not speak HTTP, over raw sockets."""

import asyncio
import errno
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import uvloop
from aiohttp import web
from structlog.testing import capture_logs

from gateway import connections, listener
from gateway.app import create_app, shared
from gateway.connections import Connection, Limits
from gateway.middlewares import METRICS
from gateway.server import listening
from tests.conftest import ADMIN, RATE, RATES, caller, config_for
from tests.fakes import FakeLedger
from tests.test_overload import HangingLedger, until

PATIENCE_S = 10.0
SHORT_S = 0.2
PACE_S = 0.02
LONG = Limits(max_connections=100, head_timeout_s=60, idle_timeout_s=60, shutdown_timeout_s=10)
ROW = b'{"id":"1","username":"alice"}'
TYPE = {"Content-Type": "application/json"}
EMPTY = b'{"api_message":"LEDGER_GET_LIST_SUCCESS","api_data":[]}'

IDENTITY = "".join(f"{name}: {value}\r\n" for name, value in caller(*ADMIN).items()).encode()
HEAD = b"Host: g\r\n" + IDENTITY
GOOD = b"GET /ledger HTTP/1.1\r\n" + HEAD + b"\r\n"
# Behind every request that must be a connection's last: it would be seen at the ledger.
SMUGGLED = b"GET /ledger/smuggled HTTP/1.1\r\n" + HEAD + b"\r\n"
BODY = b'{"type":"deposit","username":"alice","currency":"BTC","amount":"0.5"}'
JSON = b"Content-Type: application/json\r\nIdempotency-Key: key-1\r\n"
POST = b"POST /ledger HTTP/1.1\r\n" + HEAD + JSON
SIZED = POST + b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def closing(request: bytes) -> bytes:
    return request.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n"


@dataclass
class Caller:
    """One connection, over which bytes go exactly as given."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def rest(self) -> bytes:
        """All that comes until the connection ends, in whatever way."""
        data = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while chunk := await self.reader.read(65_536):
                    data += chunk
        return data

    async def answer(self, method: str = "GET") -> "Answer":
        """The next answer on a connection that may go on."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            size = _length(head) if method != "HEAD" else 0
            return Answer.of(head + await self.reader.readexactly(size))

    async def drip(self, data: bytes) -> bytes:
        """Sends a byte at a time until the server has had enough; what it said then."""
        rest = asyncio.ensure_future(self.rest())
        for number in range(len(data)):
            self.send(data[number : number + 1])
            if (await asyncio.wait((rest,), timeout=PACE_S))[0]:
                break
        return await rest


@dataclass(frozen=True)
class Answer:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> "Answer":
        """The one answer in some bytes."""
        assert len(re.findall(rb"HTTP/\d\.\d [2-5]", data)) == 1, data
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert len(headers) == len(lines), "a header stands twice"
        return cls(int(first.split()[1]), headers, body)

    def error(self) -> str:
        """The code of an error in the form of the contract, with its request's id."""
        value = json.loads(self.body)
        if "api_data" not in value:
            assert value["requestId"] == self.headers["x-request-id"]
            assert value["origin"] == "gateway"
            return str(value["code"])
        assert set(value["api_data"]) == {"detail", "origin", "request_id"}
        assert value["api_data"]["origin"] == "gateway"
        assert value["api_data"]["request_id"] == self.headers["x-request-id"]
        assert self.headers["content-type"] == "application/json"
        return str(value["api_message"])


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)content-length: (\d+)", head)
    return int(found[1]) if found else 0


@asynccontextmanager
async def call(port: int, **options: int) -> AsyncIterator[Caller]:
    """A connection; options are those of its socket."""
    connection = socket.socket()
    connection.setblocking(False)
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()


async def ask(port: int, data: bytes) -> bytes:
    """All that comes back for some bytes until the connection ends."""
    async with call(port) as one:
        one.send(data)
        return await one.rest()


async def get(port: int) -> Answer:
    """The answer to a good request on a connection of its own."""
    async with call(port) as one:
        one.send(GOOD)
        return await one.answer()


@dataclass
class Served:
    """A gateway that listens, and what it counted."""

    app: web.Application
    port: int

    @property
    def counted(self) -> dict[str, dict[str, float]]:
        """Answers by route and status."""
        return self.app[METRICS].totals()


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture(autouse=True)
def near_callers() -> Iterator[None]:
    """Nobody here is so far away that a handshake takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "_HANDSHAKE_S", 0.005)
        yield


@pytest.fixture
def serve(ledger: FakeLedger) -> Serve:
    """`serve(head_timeout_s=0.2, server__body_timeout_s="0.2")`: limits, then settings."""
    ledger.on("POST", "/ledger", b'{"api_message":"OK","api_data":%b}' % ROW, 201)

    @asynccontextmanager
    async def context(limits: Limits = LONG, **settings: str) -> AsyncIterator[Served]:
        config = config_for(ledger.url, cache__enabled="false", **settings)
        app = create_app(config, shared(config)).api
        async with listening(app, "127.0.0.1", 0, limits) as port:
            yield Served(app, port)

    return context


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


def limits(**changed: float) -> Limits:
    values = {name: getattr(LONG, name) for name in LONG.__slots__}
    return Limits(**values | changed)


# Slow heads.


async def test_a_head_that_drips_is_cut_off_at_the_deadline(
    serve: Serve, ledger: FakeLedger
) -> None:
    async with serve(limits(head_timeout_s=SHORT_S)) as running, call(running.port) as one:
        begun = time.monotonic()
        assert await one.drip(GOOD) == b""
        assert SHORT_S * 0.9 <= time.monotonic() - begun < len(GOOD) * PACE_S
        assert (await get(running.port)).status == 200
    assert len(ledger.calls) == 1


async def test_a_head_that_drips_on_a_kept_connection_is_cut_off_too(
    serve: Serve, ledger: FakeLedger
) -> None:
    async with serve(limits(head_timeout_s=SHORT_S)) as running, call(running.port) as one:
        one.send(GOOD)
        assert (await one.answer()).status == 200
        assert await one.drip(SMUGGLED) == b""
    assert [call.path for call in ledger.calls] == ["/ledger"]


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /ledger HTTP/1.1\r\n", GOOD[:-1]])
async def test_a_head_that_never_ends_is_cut_off(
    serve: Serve, ledger: FakeLedger, sent: bytes
) -> None:
    async with serve(limits(head_timeout_s=SHORT_S)) as running:
        assert await ask(running.port, sent) == b""
    assert ledger.calls == []


async def test_a_request_that_takes_longer_than_a_head_may_is_not_cut_off(
    serve: Serve, ledger: FakeLedger
) -> None:
    go_on = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await go_on.wait()
        return web.json_response([])

    ledger.run("GET", "/ledger", slow)
    times = limits(head_timeout_s=SHORT_S, idle_timeout_s=SHORT_S)
    async with serve(times) as running, call(running.port) as one:
        one.send(GOOD)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SHORT_S * 2):
                await one.reader.read(1)
        go_on.set()
        answer = await one.answer()
    assert (answer.status, answer.body) == (200, EMPTY)
    assert len(ledger.calls) == 1


async def test_a_silent_connection_is_closed_when_it_has_been_idle_long_enough(
    serve: Serve, ledger: FakeLedger
) -> None:
    async with serve(limits(idle_timeout_s=SHORT_S)) as running, call(running.port) as one:
        for _ in range(2):
            one.send(GOOD)
            assert (await one.answer()).status == 200
        begun = time.monotonic()
        assert await one.rest() == b""
        assert time.monotonic() - begun < PATIENCE_S / 2
    assert len(ledger.calls) == 2


def test_nobody_who_does_not_ask_for_it_waits_longer_than_half_a_minute_for_a_head() -> None:
    assert config_for("http://127.0.0.1").server.head_timeout_s <= 30
    assert connections.DEFAULTS.head_timeout_s <= 30


# Slow bodies.


async def test_a_body_that_never_comes_is_408_and_the_end(serve: Serve, ledger: FakeLedger) -> None:
    times = limits(head_timeout_s=SHORT_S)
    async with serve(times, server__body_timeout_s=str(SHORT_S)) as running:
        answer = Answer.of(await ask(running.port, SIZED))
        assert (await get(running.port)).status == 200
    assert (answer.status, answer.error()) == (408, "REQUEST_TIMEOUT")
    assert answer.headers["connection"] == "close"
    assert [call.method for call in ledger.calls] == ["GET"]


async def test_a_body_that_drips_is_408_at_the_deadline(serve: Serve, ledger: FakeLedger) -> None:
    times = limits(head_timeout_s=SHORT_S)
    settings = {"server__body_timeout_s": str(SHORT_S)}
    async with serve(times, **settings) as running, call(running.port) as one:
        one.send(SIZED)
        answer = Answer.of(await one.drip(BODY))
    assert (answer.status, answer.error()) == (408, "REQUEST_TIMEOUT")
    assert ledger.calls == []


async def test_a_body_that_nobody_waits_for_does_not_hold_the_answer_back(
    serve: Serve, ledger: FakeLedger
) -> None:
    async with serve(limits(head_timeout_s=SHORT_S)) as running, call(running.port) as one:
        one.send(b"POST /ledger HTTP/1.1\r\nHost: g\r\nContent-Length: 10\r\n\r\n")
        answer = await one.answer()
        assert (answer.status, answer.error()) == (401, "TOKEN_MISSING")
        assert await one.rest() == b""
    assert ledger.calls == []


async def test_a_body_in_pieces_is_one_body(served: Served, ledger: FakeLedger) -> None:
    async with call(served.port) as one:
        for piece in (SIZED, BODY[:20], BODY[20:]):
            one.send(piece)
            await one.writer.drain()
            await asyncio.sleep(0)
        assert (await one.answer()).status == 201
    assert [call.body for call in ledger.calls] == [BODY]


# Too many.


async def test_connections_over_the_limit_are_closed_and_the_others_served(
    serve: Serve, ledger: FakeLedger
) -> None:
    async with (
        serve(limits(max_connections=2)) as running,
        call(running.port) as first,
        call(running.port) as second,
    ):
        for one in (first, second):
            one.send(GOOD)
            assert (await one.answer()).status == 200
        for _ in range(3):
            assert await ask(running.port, GOOD) == b""
        for one in (first, second):
            one.send(GOOD)
            assert (await one.answer()).status == 200
    assert len(ledger.calls) == 4


async def test_a_connection_that_ends_makes_room_for_another(
    serve: Serve, ledger: FakeLedger
) -> None:
    async with serve(limits(max_connections=1)) as running:
        for turn in range(5):
            async with asyncio.timeout(PATIENCE_S):
                # Until the one before has been seen to leave.
                while not (data := await ask(running.port, closing(GOOD))):
                    continue
            assert Answer.of(data).status == 200
            assert len(ledger.calls) == turn + 1


@dataclass
class Watch:
    """The connections that a server made, and whether one was lost."""

    made: list[Connection] = field(default_factory=list)
    lost: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen = Watch()

    class Watched(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            seen.made.append(self)
            super().connection_made(transport)

        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            seen.lost.set()

    monkeypatch.setattr(connections, "Connection", Watched)
    return seen


def server_side(watch: Watch) -> socket.socket:
    """The server's socket of the one connection."""
    (made,) = watch.made
    assert made.transport is not None
    found: socket.socket = made.transport.get_extra_info("socket")
    return found


async def test_the_kernel_is_told_how_long_an_answer_may_stay_unread(
    serve: Serve, watch: Watch
) -> None:
    async with serve(limits(idle_timeout_s=7.5)) as running, call(running.port) as one:
        one.send(GOOD)
        assert (await one.answer()).status == 200
        option = server_side(watch).getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert option == 7500


async def test_a_caller_who_never_reads_a_long_answer_is_given_up(
    serve: Serve, ledger: FakeLedger, watch: Watch
) -> None:
    page = b"[" + b",".join([ROW] * 3000) + b"]"
    link = '</ledger?cursor=on-and-on-%d>; rel="next"'
    pages = iter(range(1_000_000))

    async def endless(_request: web.Request) -> web.Response:
        headers = {"Link": link % next(pages)}
        return web.Response(body=page, content_type="application/json", headers=headers)

    ledger.run("GET", "/ledger", endless)
    with capture_logs() as logs:
        async with serve(limits(idle_timeout_s=SHORT_S)) as running:
            async with call(running.port, SO_RCVBUF=4096) as deaf:
                transport = deaf.writer.transport
                assert isinstance(transport, asyncio.Transport)
                transport.pause_reading()
                deaf.send(GOOD)
                await asyncio.wait_for(watch.lost.wait(), PATIENCE_S)
            assert (await get_live(running.port)).status == 200
    (event,) = [one for one in logs if one.get("route") == "/ledger"]
    assert event["aborted"] is True
    assert len(ledger.calls) < 1000


async def test_a_body_in_many_small_chunks_is_read_without_parsing_anew_for_each(
    served: Served, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    received = web.RequestHandler.data_received

    def counted(self: web.RequestHandler, data: bytes) -> None:
        parsed.append(data)
        received(self, data)

    monkeypatch.setattr(web.RequestHandler, "data_received", counted)
    body = BODY.ljust(40_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    async with call(served.port) as one:
        one.send(CHUNKED + chunks + b"0\r\n\r\n")
        assert (await one.answer()).status == 201
    assert [sent.body for sent in ledger.calls if sent.method == "POST"] == [body]
    assert parsed.count(b"") < 10


async def get_live(port: int) -> Answer:
    async with call(port) as one:
        one.send(b"GET /health/live HTTP/1.1\r\nHost: g\r\n\r\n")
        return await one.answer()


# What is not HTTP, or could be read in two ways. `marker` is never quoted.

UNPARSED = {
    "garbage": b"marker\r\n\r\n",
    "binary": b"\x16\x03\x01\x02\x00\x01\x00marker\r\n\r\n",
    "another method": b"MARKER /ledger HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a method in lower case": b"get /ledger HTTP/1.1\r\n" + HEAD + b"\r\n",
    "HTTP/0.9": b"GET /ledger?marker\r\n\r\n",
    "HTTP/0.9, named": b"GET /ledger HTTP/0.9\r\n" + HEAD + b"\r\n",
    "HTTP/1.2": b"GET /ledger HTTP/1.2\r\n" + HEAD + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3": b"GET /ledger HTTP/3.0\r\n" + HEAD + b"\r\n",
    "HTTP/marker": b"GET /ledger HTTP/marker\r\n" + HEAD + b"\r\n",
    "bytes in a target": b"GET /marker\xff\xfe HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a bad absolute target": b"GET http://[marker/ledger HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a long target": b"GET /ledger?%b HTTP/1.1\r\n" % (b"marker" * 2000) + HEAD + b"\r\n",
    "a long header": b"GET /ledger HTTP/1.1\r\n" + HEAD + b"X: %b\r\n\r\n" % (b"marker" * 2000),
    "a long header name": b"GET /ledger HTTP/1.1\r\n" + HEAD + b"marker" * 2000 + b": 1\r\n\r\n",
    "many headers": b"GET /ledger HTTP/1.1\r\n" + HEAD + b"X-Marker: 1\r\n" * 300 + b"\r\n",
    "NUL": b"GET /ledger HTTP/1.1\r\n" + HEAD + b"X: mar\x00marker\r\n\r\n",
    "a control character": b"GET /ledger HTTP/1.1\r\n" + HEAD + b"X: \x07marker\r\n\r\n",
    "lone LF": b"GET /ledger HTTP/1.1\n" + HEAD.replace(b"\r", b"") + b"\n",
    "one lone LF": b"GET /ledger HTTP/1.1\r\nX: marker\n" + HEAD + b"\r\n",
    "lone CR": b"GET /ledger HTTP/1.1\r\nX: marker\rY: 1\r\n" + HEAD + b"\r\n",
    "a space before the colon": b"GET /ledger HTTP/1.1\r\nX-Marker : 1\r\n" + HEAD + b"\r\n",
    "a space before the name": b"GET /ledger HTTP/1.1\r\n X-Marker: 1\r\n" + HEAD + b"\r\n",
    "obs-fold": b"GET /ledger HTTP/1.1\r\nX: a\r\n marker\r\n" + HEAD + b"\r\n",
    "no name": b"GET /ledger HTTP/1.1\r\n: marker\r\n" + HEAD + b"\r\n",
    "no colon": b"GET /ledger HTTP/1.1\r\nmarker\r\n" + HEAD + b"\r\n",
    "no host": b"GET /ledger HTTP/1.1\r\n" + IDENTITY + b"\r\n",
    "two hosts": b"GET /ledger HTTP/1.1\r\nHost: marker\r\n" + HEAD + b"\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two other lengths": POST + b"Content-Length: 2\r\nContent-Length: 0\r\n\r\n{}",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "length +2": POST + b"Content-Length: +2\r\n\r\n{}",
    "length -1": POST + b"Content-Length: -1\r\n\r\n{}",
    "length 0x2": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a length of 23 digits": POST + b"Content-Length: " + b"9" * 23 + b"\r\n\r\n{}",
    "no length": POST + b"Content-Length:\r\n\r\n{}",
    "length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n{}",
    "not quite chunked": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
    "a bad chunk": CHUNKED + b"marker\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer": CHUNKED + b"2\r\n{}marker\r\n0\r\n\r\n",
    "a chunk with lone LF": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "a chunk of 2^76": CHUNKED + b"f" * 19 + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk of -2": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
}
AMBIGUOUS = {
    "no coding, and a length": POST + b"Transfer-Encoding:\r\nContent-Length: 2\r\n\r\n{}",
    "no coding": b"GET /ledger HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding:\r\n\r\n",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, spelt otherwise": POST + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", UNPARSED.values(), ids=UNPARSED)
async def test_what_is_not_http_is_refused_logged_counted_and_never_executed(
    served: Served, ledger: FakeLedger, request_bytes: bytes
) -> None:
    with capture_logs() as logs:
        data = await ask(served.port, request_bytes + SMUGGLED)
    answer = Answer.of(data)
    assert (answer.status, answer.error()) == (400, "INVALID_REQUEST")
    assert b"marker" not in data.lower()
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["server"] == "ledger-gateway"
    (event,) = logs
    assert event["event"] == "request"
    assert event["request_id"] == answer.headers["x-request-id"]
    assert (event["route"], event["status"], event["code"]) == ("unparsed", 400, "INVALID_REQUEST")
    assert "marker" not in str(event).lower()
    assert served.counted == {"unparsed": {"400": 1.0}}
    assert ledger.calls == []


@pytest.mark.parametrize("request_bytes", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_two_readers_could_frame_in_two_ways_is_refused_and_is_the_last(
    served: Served, ledger: FakeLedger, request_bytes: bytes
) -> None:
    with capture_logs() as logs:
        answer = Answer.of(await ask(served.port, request_bytes + SMUGGLED))
    assert (answer.status, answer.error()) == (400, "INVALID_REQUEST")
    assert answer.headers["connection"] == "close"
    assert [(event["route"], event["status"]) for event in logs] == [("/ledger", 400)]
    assert ledger.calls == []


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/2.0"])
async def test_a_version_that_is_not_spoken_is_refused_in_one_that_is(
    served: Served, ledger: FakeLedger, version: bytes
) -> None:
    data = await ask(served.port, GOOD.replace(b"HTTP/1.1", version))
    assert data.startswith(b"HTTP/1.1 400 ")
    answer = Answer.of(data)
    assert (answer.error(), answer.headers["connection"]) == ("INVALID_REQUEST", "close")
    assert ledger.calls == []


async def test_good_requests_are_served_after_any_number_of_bad_ones(
    served: Served, ledger: FakeLedger
) -> None:
    for bad in UNPARSED.values():
        assert Answer.of(await ask(served.port, bad)).status == 400
    assert (await get(served.port)).status == 200
    counts = served.counted.values()
    assert sum(count.get("400", 0.0) for count in counts) == len(UNPARSED)
    assert sum(count.get("200", 0.0) for count in counts) == 1
    assert len(ledger.calls) == 1


@pytest.mark.parametrize("broken", [b"marker\r\n{}\r\n", b"2\r\n{}marker\r\n", b"-1\r\n"])
async def test_a_body_that_breaks_off_while_it_is_waited_for_is_refused_at_once_and_is_the_last(
    served: Served, ledger: FakeLedger, broken: bytes
) -> None:
    async with call(served.port) as one:
        with capture_logs() as logs:
            one.send(CHUNKED + b"2\r\n{}\r\n")
            await until_waiting(served)
            one.send(broken + SMUGGLED)
            data = await one.rest()
    answer = Answer.of(data)
    assert (answer.status, answer.error()) == (400, "MALFORMED_JSON")
    assert b"marker" not in data
    assert [event["status"] for event in logs if event["route"] != "/health/live"] == [400]
    assert ledger.calls == []


async def until_waiting(served: Served) -> None:
    """Returns when a request is under way."""
    async with asyncio.timeout(PATIENCE_S):
        while b"gateway_requests_in_flight 1.0" not in served.app[METRICS].exposition():
            await get_live(served.port)


# What comes behind a request that ends its connection.


async def test_a_trailer_is_no_header_of_the_next_request(
    served: Served, ledger: FakeLedger
) -> None:
    """A proxy may send the requests of many callers over one connection."""
    trailer = b"Authorization: " + caller(*ADMIN)["Authorization"].encode()
    nobody = b"GET /ledger/smuggled HTTP/1.1\r\nHost: g\r\nusername: admin\r\n\r\n"
    whole = CHUNKED + b"%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(BODY), BODY, trailer)
    answer = Answer.of(await ask(served.port, whole + nobody))
    assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert [(call.method, call.body) for call in ledger.calls] == [("POST", BODY)]


HIDDEN_LENGTH = b"Content-Length: %d\r\n\r\n" % len(SMUGGLED)
LAST: dict[str, tuple[bytes, int]] = {
    "CONNECT": (b"CONNECT g:443 HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
    "CONNECT with a length": (b"CONNECT g:443 HTTP/1.1\r\n" + HEAD + HIDDEN_LENGTH, 404),
    "CONNECT to a route": (b"CONNECT /ledger HTTP/1.1\r\n" + HEAD + HIDDEN_LENGTH, 404),
    "h2c": (GOOD[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 200),
    "h2c, and half a request": (
        GOOD[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /ledger/half HTTP/1.1\r\n",
        200,
    ),
    "websocket": (GOOD[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    "chunks": (GOOD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200),
}


@pytest.mark.parametrize(("request_bytes", "status"), LAST.values(), ids=LAST)
async def test_some_requests_are_the_last_on_their_connection(
    served: Served, ledger: FakeLedger, request_bytes: bytes, status: int
) -> None:
    answer = Answer.of(await ask(served.port, request_bytes + SMUGGLED))
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert [call.path for call in ledger.calls] == ["/ledger"] * (status == 200)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [*LAST.values(), (GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), 200), (closing(GOOD), 200)],
    ids=[*LAST, "HTTP/1.0", "close"],
)
async def test_nothing_is_heard_after_the_answer_to_the_last_request(
    served: Served, ledger: FakeLedger, request_bytes: bytes, status: int
) -> None:
    async with call(served.port) as one:
        one.send(request_bytes)
        assert (await one.answer()).status == status
        one.send(SMUGGLED)
        assert await one.rest() == b""
    assert [call.path for call in ledger.calls] == ["/ledger"] * (status == 200)


@pytest.mark.parametrize("length", [b"Content-Length", b"content-length"])
async def test_a_body_where_none_belongs_is_never_read_as_a_request(
    served: Served, ledger: FakeLedger, length: bytes
) -> None:
    request = GOOD[:-2] + length + b": %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
    async with call(served.port) as one:
        one.send(request + closing(GOOD))
        first, second = await one.answer(), Answer.of(await one.rest())
    assert (first.status, second.status) == (200, 200)
    assert [call.path for call in ledger.calls] == ["/ledger", "/ledger"]


async def test_requests_that_come_together_are_answered_one_by_one_in_order(
    served: Served, ledger: FakeLedger
) -> None:
    ledger.rows("/ledger/alice", ROW)
    head = b"HEAD /health/live HTTP/1.1\r\nHost: g\r\n\r\n"
    own = b"GET /ledger/alice HTTP/1.1\r\n" + HEAD + b"\r\n"
    async with call(served.port) as one:
        one.send(own + head + SIZED + BODY + closing(GOOD))
        answers = [await one.answer(method) for method in ("GET", "HEAD", "POST", "GET")]
        assert await one.rest() == b""
    assert [answer.status for answer in answers] == [200, 200, 201, 200]
    assert ROW in answers[0].body
    assert answers[1].body == b""
    assert answers[3].body == EMPTY
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4
    assert [call.path for call in ledger.calls] == ["/ledger/alice", "/ledger", "/ledger"]


# Callers who send no more, and read on.


async def ask_and_shut(port: int, data: bytes) -> bytes:
    """All that comes back for some bytes behind which nothing more will come."""
    async with call(port) as one:
        one.send(data)
        one.writer.write_eof()
        return await one.rest()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when it has come to the gateway that a caller sends no more."""
    event, received = asyncio.Event(), Connection.eof_received

    def noted(self: Connection) -> bool:
        event.set()
        return received(self)

    monkeypatch.setattr(Connection, "eof_received", noted)
    return event


@pytest.mark.parametrize("old", [False, True])
async def test_who_sends_no_more_gets_their_answer_and_then_the_end(
    served: Served, ledger: FakeLedger, old: bool
) -> None:
    for request, status in ((GOOD, 200), (SIZED + BODY, 201)):
        sent = request.replace(b"HTTP/1.1", b"HTTP/1.0") if old else request
        assert Answer.of(await ask_and_shut(served.port, sent)).status == status
    assert [call.method for call in ledger.calls] == ["GET", "POST"]


async def test_who_sends_no_more_while_they_wait_gets_their_answer(
    served: Served, ledger: FakeLedger, ended: asyncio.Event
) -> None:
    hanging = HangingLedger(ledger)
    async with call(served.port) as one:
        one.send(GOOD)
        await until(lambda: hanging.inside == 1)
        one.writer.write_eof()
        await ended.wait()
        hanging.free.set()
        row = b'[{"id": "/ledger", "username": "ledger"}]'
        assert Answer.of(await one.rest()).body == EMPTY.replace(b"[]", row)


async def test_who_sends_no_more_and_is_not_answered_soon_is_taken_to_have_left(
    served: Served, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_LEFT_S", PACE_S)
    hanging = HangingLedger(ledger)
    assert await ask_and_shut(served.port, GOOD) == b""
    hanging.free.set()


async def test_who_sends_no_more_behind_several_requests_gets_an_answer_to_each(
    served: Served, ledger: FakeLedger
) -> None:
    data = await ask_and_shut(served.port, GOOD * 3)
    assert data.count(b"HTTP/1.1 200 ") == data.count(EMPTY) == 3
    assert len(ledger.calls) == 3


async def test_who_sends_no_more_gets_all_of_a_stream_however_long_it_takes(
    served: Served, ledger: FakeLedger, ended: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_LEFT_S", 0.0)
    go_on = asyncio.Event()

    async def page(request: web.Request) -> web.Response:
        number = int(request.query.get("cursor", "0")) + 1
        if number > 1:
            await go_on.wait()
        headers = {"Link": f'</x?cursor={number}>; rel="next"'} if number < 5 else {}
        return web.Response(body=b"[%b]" % ROW, headers=headers)

    ledger.run("GET", "/ledger", page)
    async with call(served.port) as one:
        one.send(GOOD)
        begun = await one.reader.readuntil(ROW)
        one.writer.write_eof()
        await ended.wait()
        go_on.set()
        rest = await one.rest()
    assert (begun + rest).count(ROW) == 5
    assert rest.endswith(b"]}\r\n0\r\n\r\n")


@pytest.mark.parametrize("sent", [b"", GOOD[:-1], SIZED + BODY[:-1], CHUNKED + b"2\r\n{}\r\n"])
async def test_who_sends_no_more_of_what_they_began_is_not_waited_for(
    served: Served, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "_LEFT_S", PATIENCE_S)
    begun = time.monotonic()
    assert await ask_and_shut(served.port, sent) == b""
    assert time.monotonic() - begun < PATIENCE_S / 2
    assert ledger.calls == []


def test_who_connects_and_sends_nothing_is_not_waited_for_on_uvloop() -> None:
    """There the end can come before aiohttp has begun to wait."""

    async def main() -> bytes:
        config = config_for("http://127.0.0.1:1")
        app = create_app(config, shared(config)).api
        async with listening(app, "127.0.0.1", 0, LONG) as port:
            with socket.create_connection(("127.0.0.1", port)) as one:
                one.shutdown(socket.SHUT_WR)
                one.setblocking(False)
                async with asyncio.timeout(PATIENCE_S):
                    return await asyncio.get_running_loop().sock_recv(one, 1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == b""


# Expectations.


async def test_a_caller_who_waits_to_be_asked_for_the_body_is_asked(
    served: Served, ledger: FakeLedger
) -> None:
    async with call(served.port) as one:
        one.send(SIZED.replace(b"\r\n\r\n", b"\r\nExpect: 100-Continue\r\n\r\n"))
        async with asyncio.timeout(PATIENCE_S):
            assert await one.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert ledger.calls == []
        one.send(BODY)
        assert (await one.answer()).status == 201
    assert [call.body for call in ledger.calls] == [BODY]


TARGETS = [
    (b"GET /ledger", 200),
    (b"GET /health/live", 200),
    (b"GET /openapi.json", 200),
    (b"GET /nowhere", 404),
    (b"GET /v1/nowhere", 404),
    (b"PUT /ledger", 405),
    (b"PUT " + RATES.encode(), 405),
]


@pytest.mark.parametrize(("target", "status"), TARGETS)
@pytest.mark.parametrize("expected", [b"marker", b"", b"100-continue, marker", b"\xff", b"100"])
async def test_what_else_is_expected_is_ignored(
    served: Served, ledger: FakeLedger, target: bytes, status: int, expected: bytes
) -> None:
    request = target + b" HTTP/1.1\r\n" + HEAD + b"Expect: " + expected + b"\r\n\r\n"
    answer = Answer.of(await ask(served.port, closing(request)))
    assert answer.status == status
    assert b"marker" not in answer.body
    if status != 200:
        assert answer.error() in ("NOT_FOUND", "METHOD_NOT_ALLOWED", "0007")
    assert len(ledger.calls) == (target == b"GET /ledger")


async def test_an_old_caller_is_not_asked_for_the_body(served: Served, ledger: FakeLedger) -> None:
    old = SIZED.replace(b"HTTP/1.1", b"HTTP/1.0")
    request = old.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") + BODY
    data = await ask(served.port, request)
    assert data.startswith(b"HTTP/1.0 201 ")
    assert Answer.of(data).status == 201
    assert len(ledger.calls) == 1


async def test_a_stream_to_an_old_caller_ends_with_the_connection_that_they_would_keep(
    served: Served, ledger: FakeLedger
) -> None:
    async def page(request: web.Request) -> web.Response:
        headers = {} if "cursor" in request.query else {"Link": '</x?cursor=2>; rel="next"'}
        return web.Response(body=b"[%b]" % ROW, headers=headers)

    ledger.run("GET", "/ledger", page)
    old = GOOD.replace(b"HTTP/1.1", b"HTTP/1.0").removesuffix(b"\r\n")
    answer = Answer.of(await ask(served.port, old + b"Connection: keep-alive\r\n\r\n"))
    assert answer.body == EMPTY.replace(b"[]", b"[%b,%b]" % (ROW, ROW))
    assert answer.headers.keys().isdisjoint({"content-length", "transfer-encoding", "connection"})


# Methods and routes that there are not.


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "PROPFIND", "DELETE"])
@pytest.mark.parametrize(
    ("path", "allow", "code"),
    [
        ("/ledger", "get, post", "METHOD_NOT_ALLOWED"),
        ("/ledger/alice", "get", "METHOD_NOT_ALLOWED"),
        (RATES, "get, post", "METHOD_NOT_ALLOWED"),
    ],
)
async def test_a_method_that_a_route_has_not_is_405_and_the_connection_goes_on(
    served: Served, ledger: FakeLedger, method: str, path: str, allow: str, code: str
) -> None:
    async with call(served.port) as one:
        one.send(f"{method} {path} HTTP/1.1\r\n".encode() + HEAD + b"\r\n" + closing(GOOD))
        answer = await one.answer(method)
        assert (answer.status, answer.headers["allow"]) == (405, allow)
        assert answer.body == b"" if method == "HEAD" else answer.error() == code
        assert Answer.of(await one.rest()).body == EMPTY
    assert [call.path for call in ledger.calls] == ["/ledger"]


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("GET /", "NOT_FOUND"),
        ("GET //ledger", "NOT_FOUND"),
        ("GET /ledger/", "NOT_FOUND"),
        ("OPTIONS *", "NOT_FOUND"),
        ("CONNECT g:443", "NOT_FOUND"),
        ("HEAD /nowhere", ""),
        ("GET /v1/nowhere", "0007"),
        ("GET " + RATES + "/" + RATE + "/x", "0007"),
    ],
)
async def test_what_there_is_no_route_for_is_answered_in_the_form_of_its_api(
    served: Served, ledger: FakeLedger, target: str, code: str
) -> None:
    request = f"{target} HTTP/1.1\r\n".encode() + HEAD + b"Connection: close\r\n\r\n"
    answer = Answer.of(await ask(served.port, request))
    assert answer.status == 404
    assert (answer.error() if answer.body else "") == code
    assert ledger.calls == []


# A fragment is no part of a request target (RFC 9112 section 3.2): some readers cut it off.

FRAGMENTS = [
    ("GET", "/ledger#marker", "INVALID_REQUEST"),
    ("GET", "/ledger#", "INVALID_REQUEST"),
    ("GET", "/ledger/ali#marker", "INVALID_REQUEST"),
    ("GET", "/ledger/alice#/../bob", "INVALID_REQUEST"),
    ("GET", "/ledger?type=trade#marker", "INVALID_REQUEST"),
    ("GET", "/ledger?#", "INVALID_REQUEST"),
    ("GET", "http://g/ledger#marker", "INVALID_REQUEST"),
    ("PUT", "/ledger#marker", "INVALID_REQUEST"),
    ("GET", "/nowhere#marker", "INVALID_REQUEST"),
    ("GET", "/docs#marker", "INVALID_REQUEST"),
    ("GET", "/health/live#marker", "INVALID_REQUEST"),
    ("GET", f"{RATES}#marker", "0047"),
    ("GET", f"{RATES}/{RATE}#marker", "0047"),
]


@pytest.mark.parametrize(("method", "target", "code"), FRAGMENTS)
async def test_a_fragment_in_a_request_target_is_refused_and_the_connection_goes_on(
    served: Served, ledger: FakeLedger, method: str, target: str, code: str
) -> None:
    async with call(served.port) as one:
        one.send(f"{method} {target} HTTP/1.1\r\n".encode() + HEAD + b"\r\n" + closing(GOOD))
        answer = await one.answer(method)
        assert (answer.status, answer.error()) == (400, code)
        assert b"marker" not in answer.body
        assert ledger.calls == []
        assert Answer.of(await one.rest()).body == EMPTY
    assert [call.path for call in ledger.calls] == ["/ledger"]


async def test_a_write_to_a_target_with_a_fragment_is_not_carried_out(
    served: Served, ledger: FakeLedger
) -> None:
    async with call(served.port) as one:
        one.send(SIZED.replace(b"/ledger", b"/ledger#marker", 1) + BODY + closing(GOOD))
        assert (await one.answer()).status == 400
        assert Answer.of(await one.rest()).body == EMPTY
    assert [call.method for call in ledger.calls] == ["GET"]


# A listener that closes.


async def leave(context: AbstractAsyncContextManager[object]) -> None:
    await context.__aexit__(None, None, None)


async def test_a_request_whose_body_is_still_coming_is_answered(
    serve: Serve, ledger: FakeLedger
) -> None:
    context = serve()
    running = await context.__aenter__()
    async with call(running.port) as one:
        one.send(closing(SIZED) + BODY[:10])
        await until_waiting(running)
        leaving = asyncio.create_task(leave(context))
        await refused(running.port)
        one.send(BODY[10:])
        assert (await one.answer()).status == 201
        await leaving
    assert [call.body for call in ledger.calls] == [BODY]


async def test_a_caller_who_has_just_connected_is_answered(
    serve: Serve, ledger: FakeLedger
) -> None:
    context = serve()
    running = await context.__aenter__()
    async with call(running.port) as one:
        leaving = asyncio.create_task(leave(context))
        await asyncio.sleep(0)
        one.send(closing(GOOD))
        assert (await one.answer()).body == EMPTY
        await leaving
    assert len(ledger.calls) == 1


async def test_a_caller_who_reads_slowly_gets_the_whole_answer(
    serve: Serve, ledger: FakeLedger, watch: Watch
) -> None:
    row = b'{"id":"1","username":"alice","comment":"%b"}' % (b"x" * 2_000_000)
    ledger.rows("/ledger", row)
    context = serve()
    running = await context.__aenter__()
    async with call(running.port, SO_RCVBUF=65_536) as one:
        one.send(SMUGGLED)
        assert (await one.answer()).status == 200
        server_side(watch).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        one.send(closing(GOOD))
        await one.reader.readuntil(b"\r\n\r\n")
        leaving = asyncio.create_task(leave(context))
        await refused(running.port)
        assert not leaving.done()
        answer = await one.rest()
        await leaving
    assert len(answer) == len(EMPTY) + len(row)


async def refused(port: int) -> None:
    """Returns when nobody listens there any more."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            writer.transport.abort()


async def test_what_does_not_end_in_time_does_not_hold_up_the_end(
    serve: Serve, ledger: FakeLedger
) -> None:
    context = serve(limits(shutdown_timeout_s=SHORT_S))
    running = await context.__aenter__()
    async with call(running.port) as one:
        one.send(SIZED)
        await until_waiting(running)
        begun = time.monotonic()
        await leave(context)
        assert await one.rest() == b""
    assert SHORT_S * 0.9 < time.monotonic() - begun < PATIENCE_S
    assert ledger.calls == []


# What comes at the very end is answered, or has not been read.


def blocking(port: int) -> socket.socket:
    """A caller who sends without a turn of the loop."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def heard(one: socket.socket) -> bytes:
    """All that the caller hears until the connection ends, in whatever way."""
    data = b""
    with one, suppress(ConnectionError):
        while chunk := one.recv(65_536):
            data += chunk
    return data


def sleeping(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, sleep: Callable[[float], Awaitable[None]]
) -> None:
    """Has a module, and nothing else, sleep in another way."""
    stand_in = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
    monkeypatch.setattr(module, "asyncio", stand_in)


async def test_a_caller_who_was_accepted_in_the_last_turn_of_the_loop_is_answered(
    serve: Serve, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = serve()
    running = await context.__aenter__()
    late: list[socket.socket] = []

    def come_late() -> None:
        late.append(blocking(running.port))
        late[0].sendall(closing(GOOD))
        # The loop lags: it finds at once that there is a caller, and that the time is over.
        time.sleep(PACE_S * 2)

    async def lagging(_seconds: float) -> None:
        asyncio.get_running_loop().call_soon(come_late)
        await asyncio.sleep(PACE_S)

    monkeypatch.setattr(listener, "_turn_away", lambda _listening: None)
    sleeping(monkeypatch, listener, lagging)
    await leave(context)
    assert Answer.of(await asyncio.to_thread(heard, late[0])).body == EMPTY
    assert len(ledger.calls) == 1


async def idle_since_long(port: int, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """A caller who has been answered, so long ago that nothing more is expected of them."""
    one = blocking(port)
    one.sendall(GOOD)
    answer = b""
    while not answer.endswith(EMPTY):
        answer += await asyncio.to_thread(one.recv, 65_536)
    monkeypatch.setattr(connections, "_EXPECTED_S", 0.0)
    return one


async def test_a_request_that_has_come_and_has_not_been_read_is_answered(
    serve: Serve, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = serve()
    running = await context.__aenter__()
    one = await idle_since_long(running.port, monkeypatch)
    requests = [closing(GOOD)]

    async def and_a_request_comes(seconds: float) -> None:
        await asyncio.sleep(seconds)
        if requests:
            one.sendall(requests.pop())

    sleeping(monkeypatch, connections, and_a_request_comes)
    await leave(context)
    assert Answer.of(await asyncio.to_thread(heard, one)).body == EMPTY
    assert len(ledger.calls) == 2


async def test_a_request_that_comes_too_late_is_not_carried_out(
    serve: Serve, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who hears nothing on a kept connection may repeat it elsewhere."""
    context = serve()
    running = await context.__aenter__()
    one = await idle_since_long(running.port, monkeypatch)
    cleanup = web.AppRunner.cleanup

    async def too_late(runner: web.AppRunner) -> None:
        with suppress(ConnectionError):
            one.sendall(SIZED + BODY)
        for _ in range(10):
            await asyncio.sleep(0)
        await cleanup(runner)

    with monkeypatch.context() as patch:
        patch.setattr(web.AppRunner, "cleanup", too_late)
        await leave(context)
    assert await asyncio.to_thread(heard, one) == b""
    assert [call.method for call in ledger.calls] == ["GET"]


async def test_a_caller_who_has_not_been_told_to_go_may_ask_once_more(
    serve: Serve, ledger: FakeLedger
) -> None:
    """The head of a long answer has gone out before it was known that it is the last."""
    go_on = asyncio.Event()

    async def second_page(_request: web.Request) -> web.Response:
        if "cursor" not in _request.query:
            link = '</ledger?cursor=c>; rel="next"'
            return web.Response(body=b"[%b]" % ROW, headers={**TYPE, "Link": link})
        await go_on.wait()
        return web.Response(body=b"[]", headers=TYPE)

    ledger.run("GET", "/ledger", second_page)
    context = serve()
    running = await context.__aenter__()
    async with call(running.port) as one:
        one.send(GOOD)
        async with asyncio.timeout(PATIENCE_S):
            head = await one.reader.readuntil(b"\r\n\r\n")
            assert b"connection: close" not in head.lower()
            leaving = asyncio.create_task(leave(context))
            await refused(running.port)
            go_on.set()
            await one.reader.readuntil(b"0\r\n\r\n")
            await asyncio.sleep(SHORT_S)
        one.send(closing(b"GET /health/live HTTP/1.1\r\nHost: g\r\n\r\n"))
        assert Answer.of(await one.rest()).status == 200
        await leaving


async def test_callers_who_have_long_been_silent_do_not_hold_up_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_EXPECTED_S", SHORT_S)
    context = serve()
    running = await context.__aenter__()
    async with call(running.port) as silent, call(running.port) as kept:
        kept.send(GOOD)
        assert (await kept.answer()).status == 200
        begun = time.monotonic()
        await leave(context)
        assert time.monotonic() - begun < LONG.shutdown_timeout_s / 2
        assert (await silent.rest(), await kept.rest()) == (b"", b"")


class Greeter(asyncio.Protocol):
    """Greets and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


def cannot(_listening: socket.socket) -> None:
    raise OSError("a kernel without filters")


@pytest.mark.parametrize("turn_away", [listener._turn_away, cannot], ids=["filter", "no filter"])
async def test_callers_in_the_queue_of_a_closing_listener_are_taken_out_of_it(
    monkeypatch: pytest.MonkeyPatch, turn_away: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setattr(listener, "_turn_away", turn_away)
    loop = asyncio.get_running_loop()
    ready = socket.create_server(("127.0.0.1", 0))
    # It does not accept, so that whoever connects stays in the kernel's queue.
    server = await loop.create_server(Greeter, sock=ready, start_serving=False)
    address = ready.getsockname()
    queued = [socket.create_connection(address, PATIENCE_S) for _ in range(20)]
    await listener.close(server, Greeter)
    for one in queued:
        with one:
            assert await asyncio.to_thread(one.recv, 5) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, PATIENCE_S)


async def test_a_listener_closes_when_there_are_no_file_descriptors_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_number: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    server = await asyncio.get_running_loop().create_server(Greeter, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    monkeypatch.setattr(os, "dup", none_left)
    await listener.close(server, Greeter)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, PATIENCE_S)


async def test_callers_who_have_left_a_queue_do_not_keep_others_from_being_taken_out_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept, faults = socket.socket.accept, [ConnectionAbortedError(), None, OSError(errno.EMFILE)]

    def faulty(queue: socket.socket) -> tuple[socket.socket, object]:
        fault = faults.pop(0)
        if fault is not None:
            raise fault
        return accept(queue)

    ready = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Greeter, sock=ready, start_serving=False)
    with socket.create_connection(ready.getsockname(), PATIENCE_S) as queued:
        monkeypatch.setattr(socket.socket, "accept", faulty)
        await listener.close(server, Greeter)
        assert await asyncio.to_thread(queued.recv, 5) == b"hello"
    assert faults == []


async def test_while_a_listener_closes_new_callers_are_not_taken_and_known_ones_are() -> None:
    ready = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Greeter, sock=ready, start_serving=False)
    address = ready.getsockname()
    known = socket.create_connection(address, PATIENCE_S)
    closing = asyncio.create_task(listener.close(server, Greeter))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        socket.create_connection(address, SHORT_S)
    accepted, _ = ready.accept()
    with accepted, known:
        known.send(b"ping")
        assert accepted.recv(4) == b"ping"
        accepted.send(b"pong")
        assert known.recv(4) == b"pong"
    await closing
