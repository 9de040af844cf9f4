"""The ledger client against a ledger that misbehaves, and what callers are then told."""

import asyncio
import contextlib
import datetime
import gc
import gzip
import json
import re
import socket
import ssl
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from gateway.calls import LedgerCall, LedgerReply, next_link, retry_after
from gateway.errors import (
    GatewayError,
    LedgerBroken,
    LedgerTimeout,
    LedgerUnreachable,
    OutcomeUnknown,
    UnexpectedAnswer,
)
from gateway.ledger import LedgerClient
from tests.conftest import (
    ADMIN,
    CREDENTIAL,
    NO_RETRIES,
    RATE,
    RATES,
    SERVICE,
    MakeClient,
    caller,
    config_for,
)
from tests.faulty import (
    GOOD,
    Act,
    FaultyLedger,
    chunk,
    chunked,
    closes,
    drips,
    floods,
    hangs,
    reply,
    resets,
    sends,
    sends_apart,
)
from tests.gateway.processes import free_ports

CAP = 100_000  # more than is unpacked at a time
HINT = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = HINT * 300
OPENED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OPENED + b"Transfer-Encoding: chunked\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
BOMB = gzip.compress(bytes(50 << 20))

Outcome = type[GatewayError]
Faults = dict[str, tuple[Act, Outcome, Outcome]]


def _broken(act: Act) -> tuple[Act, Outcome, Outcome]:
    return act, LedgerBroken, OutcomeUnknown


def _refused(act: Act) -> tuple[Act, Outcome, Outcome]:
    return act, UnexpectedAnswer, UnexpectedAnswer


def _nonsense(act: Act) -> tuple[Act, Outcome, Outcome]:
    return act, LedgerBroken, LedgerBroken


def _late(act: Act) -> tuple[Act, Outcome, Outcome]:
    return act, LedgerTimeout, OutcomeUnknown


def _coded(body: bytes, coding: str = "gzip") -> bytes:
    return reply(body, headers=b"Content-Encoding: %b\r\n" % coding.encode())


def _lengths(*lengths: int) -> Act:
    return sends(reply(headers=b"".join(b"Content-Length: %d\r\n" % length for length in lengths)))


def _redirect(status: str) -> Act:
    return sends(reply(b"", status, b"Location: /elsewhere\r\n"))


# Each fault, what a read makes of it and what a write makes of it.
FAULTS: Faults = {
    "closes before the answer": _broken(closes()),
    "resets before the answer": _broken(resets()),
    "closes within the head": _broken(closes(OPENED[:30])),
    "resets within the head": _broken(resets(OPENED[:30])),
    "short content-length": _broken(closes(reply(headers=b"Content-Length: 100\r\n"))),
    "short content-length and a reset": _broken(resets(reply(headers=b"Content-Length: 100\r\n"))),
    "cut chunk": _broken(closes(chunked(b"64\r\n" + GOOD, end=b""))),
    "missing last chunk": _broken(closes(chunked(chunk(GOOD), end=b""))),
    "half of the last chunk": _broken(closes(chunked(chunk(GOOD), end=b"0\r\n"))),
    "two content-lengths": _broken(_lengths(len(GOOD), 5)),
    "the same content-length twice": _broken(_lengths(len(GOOD), len(GOOD))),
    "negative content-length": _broken(_lengths(-1)),
    "endless content-length": _broken(_lengths(10**30)),
    "content-length and chunks": _broken(
        sends(OPENED + b"Content-Length: 34\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(GOOD))
    ),
    "chunks and content-length": _broken(
        sends(OPENED + b"Transfer-Encoding: chunked\r\nContent-Length: 34\r\n\r\n" + chunk(GOOD))
    ),
    "chunk size that is no number": _broken(sends(chunked(b"zz\r\n" + GOOD + b"\r\n"))),
    "negative chunk size": _broken(sends(chunked(b"-1\r\n" + GOOD + b"\r\n"))),
    "endless chunk size": _broken(sends(chunked(b"f" * 17 + b"\r\n" + GOOD + b"\r\n"))),
    "chunk longer than its size": _broken(sends(chunked(b"5\r\n" + GOOD + b"\r\n"))),
    "huge header": _broken(sends(reply(headers=b"X-Huge: " + b"a" * 100_000 + b"\r\n"))),
    "300 headers": _broken(sends(reply(headers=b"X-Many: a\r\n" * 300))),
    "NUL in a header": _broken(sends(reply(headers=b"X-Nul: a\x00b\r\n"))),
    "no HTTP": _broken(closes(b"\x16\x03\x01\x00\xff what?\r\n\r\n")),
    "HTTP/0.9": _broken(closes(GOOD)),
    "204 with a body": _broken(sends(reply(status="204 No Content"))),
    "204 with a body of unknown length": _broken(sends(NO_CONTENT + GOOD)),
    "204 with chunks": _broken(
        sends(NO_CONTENT[:-2] + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(GOOD))
    ),
    "status of two digits": _broken(sends(reply(status="20 OK"))),
    "status of four digits": _broken(sends(reply(status="2000 OK"))),
    "status 000": _refused(sends(reply(status="000 None"))),
    "status 999": _nonsense(sends(reply(status="999 Odd"))),
    "status 101": _refused(sends(reply(status="101 Switching Protocols"))),
    "status 101 with an upgrade": _refused(
        sends(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    ),
    "hundreds of 100 and then the end": _nonsense(closes(HINTS)),
    "hundreds of 100 and then an answer": _nonsense(sends(HINTS + reply())),
    "compressed and cut": _broken(sends(_coded(gzip.compress(GOOD)[:-9]))),
    "compressed and damaged": _broken(sends(_coded(gzip.compress(GOOD)[:-8] + bytes(8)))),
    "compressed, and then something": _broken(sends(_coded(gzip.compress(GOOD) + b"more"))),
    "compressed in several pieces, and then something": _broken(
        sends(_coded(gzip.compress(GOOD.ljust(CAP)) + b"more"))
    ),
    "compressed, and then without end": _broken(
        floods(
            CHUNKED[:-2] + b"Content-Encoding: gzip\r\n\r\n" + chunk(gzip.compress(GOOD)),
            chunk(bytes(1000)),
        )
    ),
    "not compressed at all": _broken(sends(_coded(GOOD))),
    "unknown coding": _broken(sends(_coded(GOOD, "br"))),
    "gzip bomb": _refused(sends(_coded(BOMB))),
    "too large": _refused(sends(reply(b" " * (CAP + 1)))),
    "too large without a length": _refused(closes(OPENED + b"\r\n" + b" " * (CAP + 1))),
    "chunks without end": _refused(floods(CHUNKED, chunk(b" " * 1000))),
    "redirect 301": _refused(_redirect("301 Moved")),
    "redirect 302": _refused(_redirect("302 Found")),
    "redirect 303": _refused(_redirect("303 See Other")),
    "redirect 307": _refused(_redirect("307 Temporary Redirect")),
    "redirect 308": _refused(_redirect("308 Permanent Redirect")),
    "304": _refused(sends(b"HTTP/1.1 304 Not Modified\r\n\r\n")),
    "401": _refused(sends(reply(status="401 Unauthorized", headers=b"WWW-Authenticate: X\r\n"))),
    "403": _refused(sends(reply(status="403 Forbidden"))),
    "407": _refused(sends(reply(status="407 Proxy Authentication Required"))),
    "418": _refused(sends(reply(status="418 Teapot"))),
    "500": _broken(sends(reply(status="500 Internal Server Error"))),
    "502": _broken(sends(reply(status="502 Bad Gateway"))),
    "504": _broken(sends(reply(status="504 Gateway Timeout"))),
    "202": _broken(sends(reply(status="202 Accepted"))),
    "206": _broken(sends(reply(status="206 Partial Content"))),
}
# Faults of a list; in the answer to a write nobody looks there.
ASTRAY: Faults = {
    "a next page without a cursor": _broken(sends(reply(headers=b"Link: </x>; rel=next\r\n"))),
    "a next page with an endless cursor": _broken(
        sends(reply(headers=b"Link: </x?cursor=" + b"c" * 2049 + b">; rel=next\r\n"))
    ),
    "a next page at no URL": _broken(sends(reply(headers=b"Link: <http://[>; rel=next\r\n"))),
}
SLOW_FAULTS: Faults = {
    "no first byte": _late(hangs()),
    "stops within the head": _late(hangs(OPENED)),
    "stops within the body": _late(hangs(reply(headers=b"Content-Length: 100\r\n"))),
    "headers drip": _late(drips(OPENED, b"X-Drip: y\r\n")),
    "a header drips": _late(drips(OPENED + b"X-Drip: ", b"y")),
    "the body drips": _late(drips(OPENED + b"Content-Length: 1000\r\n\r\n", b" ")),
    "chunks drip": _late(drips(CHUNKED, chunk(b" "))),
    "nothing but a few times 100 Continue": _late(hangs(HINT * 9)),
}
PATIENT = {"ledger__max_reply_bytes": str(CAP)}
HASTY = {
    "ledger__connect_timeout_s": "0.2",
    "ledger__read_timeout_s": "0.1",
    "ledger__total_timeout_s": "0.3",
}
ALL_FAULTS = [
    pytest.param(*fault, PATIENT, id=name) for name, fault in (FAULTS | ASTRAY).items()
] + [pytest.param(*SLOW_FAULTS[name], HASTY, id=name) for name in SLOW_FAULTS]

# What comes well-formed with a 200 and cannot be read.
UNREADABLE = {
    "HTML": b"<html>It works!</html>",
    "nothing": b"",
    "cut JSON": GOOD[:-2],
    "two documents": GOOD + GOOD,
    "an array of numbers": b"[1,2]",
    "a string": b'"rows"',
    "null": b"null",
    "an envelope without rows": b'{"api_message":"OK"}',
    "bad UTF-8": b'{"api_message":"OK","api_data":[{"id":"\xff"}]}',
    "UTF-16": GOOD.decode().encode("utf-16"),
    "a BOM": b"\xef\xbb\xbf" + GOOD,
    "100 000 levels": b'{"api_message":"OK","api_data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": b'{"api_message":"OK","api_data":[{"amount":NaN}]}',
    "5000 digits": b'{"api_message":"OK","api_data":[{"amount":' + b"9" * 5000 + b"}]}",
}

READ = LedgerCall("GET", "/ledger", (), "alice", "r-1")
ACTION = {
    "type": "deposit",
    "username": "alice",
    "currency": "BTC",
    "amount": "1.50",
}


def _write(method: str) -> LedgerCall:
    return LedgerCall(method, "/ledger", (), "alice", "r-1", b"{}", "key-1")


@dataclass(frozen=True)
class Direct:
    """A ledger client whose every call has the configured time."""

    client: LedgerClient
    timeout_s: float

    async def send(self, call: LedgerCall) -> LedgerReply:
        return await self.client.send(call, self.timeout_s)

    async def ping(self) -> float:
        return await self.client.ping()


@asynccontextmanager
async def _client(url: str, **settings: str) -> AsyncIterator[Direct]:
    config = config_for(url, **settings).ledger
    client = LedgerClient(config)
    async with client.run():
        yield Direct(client, config.total_timeout_s)


async def _outcome(client: Direct, call: LedgerCall) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await client.send(call)
    return caught.value


async def _assert_well(client: Direct, faulty: FaultyLedger) -> None:
    """The next call is answered, and no connection but that one's is left."""
    assert (await client.send(READ)).body == GOOD
    await faulty.down_to(1)


# The table of faults, against the client.


@pytest.mark.parametrize(("act", "reading", "_writing", "settings"), ALL_FAULTS)
async def test_a_read_meets_a_fault(
    act: Act, reading: Outcome, _writing: Outcome, settings: dict[str, str], faulty: FaultyLedger
) -> None:
    faulty.plays(act)
    async with _client(faulty.url, **settings) as client:
        error = await _outcome(client, READ)
        assert isinstance(error, reading)
        assert len(faulty.hits) == 1
        await _assert_well(client, faulty)


@pytest.mark.parametrize("act", [act for act, *_ in ASTRAY.values()], ids=ASTRAY)
async def test_a_write_is_done_wherever_its_answer_leads(act: Act, faulty: FaultyLedger) -> None:
    faulty.plays(act)
    async with _client(faulty.url) as client:
        assert (await client.send(_write("POST"))).status == 200


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
@pytest.mark.parametrize(("act", "_reading", "writing"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_write_that_meets_a_fault_is_sent_once(
    act: Act, _reading: Outcome, writing: Outcome, method: str, faulty: FaultyLedger
) -> None:
    async with _client(faulty.url, **PATIENT) as client:
        for how, connections in (("fresh", 1), ("reused", 0)):
            before, faulty.hits = faulty.connections, []
            faulty.plays(act)
            error = await _outcome(client, _write(method))
            assert type(error) is writing, how
            assert [hit.split(b" ")[0].decode() for hit in faulty.hits] == [method], how
            assert faulty.connections == before + connections, how
            await _assert_well(client, faulty)


@pytest.mark.parametrize(
    ("act", "_reading", "writing"), SLOW_FAULTS.values(), ids=SLOW_FAULTS.keys()
)
async def test_a_write_that_is_not_answered_in_time_is_sent_once(
    act: Act, _reading: Outcome, writing: Outcome, faulty: FaultyLedger
) -> None:
    async with _client(faulty.url, **HASTY) as client:
        await _assert_well(client, faulty)
        faulty.plays(act)
        assert type(await _outcome(client, _write("DELETE"))) is writing
        assert [hit.split(b" ")[0] for hit in faulty.hits] == [b"GET", b"DELETE"]
        assert faulty.connections == 1
        await _assert_well(client, faulty)


async def test_callers_who_leave_leave_no_connection_behind(faulty: FaultyLedger) -> None:
    all_asked = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(faulty.hits) == 20:
            all_asked.set()
        await hangs(OPENED)(reader, writer)

    faulty.plays(*[act] * 20)
    async with _client(faulty.url) as client:
        calls = [asyncio.ensure_future(client.send(READ)) for _ in range(20)]
        await all_asked.wait()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await faulty.down_to(0)
        await _assert_well(client, faulty)


async def test_a_bad_chunk_behind_good_ones_ends_the_call_by_its_deadline(
    faulty: FaultyLedger,
) -> None:
    faulty.plays(sends_apart(CHUNKED, chunk(GOOD), b"zz\r\n"))
    async with _client(faulty.url, ledger__total_timeout_s="1") as client:
        assert isinstance(await _outcome(client, READ), (LedgerBroken, LedgerTimeout))


async def test_an_answer_that_nobody_asked_for_is_nobodys(faulty: FaultyLedger) -> None:
    go_on, gone_on = asyncio.Event(), asyncio.Event()

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply())
        await go_on.wait()
        await sends_apart(reply(b'[{"username":"bob"}]'))(_reader, writer)
        gone_on.set()

    faulty.plays(act)
    async with _client(faulty.url) as client:
        await client.send(READ)
        go_on.set()
        await gone_on.wait()
        assert (await client.send(READ)).body == GOOD
        assert len(faulty.hits) == 2


async def test_a_gzip_bomb_is_not_unpacked(faulty: FaultyLedger) -> None:
    faulty.plays(sends(_coded(BOMB)))
    async with _client(faulty.url, **PATIENT) as client:
        tracemalloc.start()
        try:
            await _outcome(client, READ)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 << 20


async def test_what_was_unpacked_of_gzip_bombs_is_let_go(faulty: FaultyLedger) -> None:
    async with _client(faulty.url, ledger__max_reply_bytes=str(8 << 20)) as client:
        tracemalloc.start()
        gc.disable()
        try:
            for _ in range(4):
                faulty.plays(sends(_coded(BOMB)))
                assert isinstance(await _outcome(client, READ), UnexpectedAnswer)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            gc.enable()
            tracemalloc.stop()
    assert held < 4 << 20
    assert peak < 32 << 20


@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
    ],
)
async def test_a_coded_body_is_read(
    coding: str, coded: Callable[[bytes], bytes], faulty: FaultyLedger
) -> None:
    body = coded(GOOD)
    faulty.plays(sends(_coded(body, coding)))
    async with _client(faulty.url) as client:
        assert (await client.send(READ)).body == GOOD


async def test_a_body_of_exactly_the_limit_is_read(faulty: FaultyLedger) -> None:
    body = b" " * CAP
    faulty.plays(sends(reply(body)), sends(_coded(gzip.compress(body))))
    async with _client(faulty.url, **PATIENT) as client:
        assert (await client.send(READ)).body == body
        assert (await client.send(READ)).body == body


# Before there is a connection: certainly not sent.


@contextlib.contextmanager
def _full_backlog() -> Iterator[str]:
    """A URL at which the kernel leaves a connection unanswered."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_a_refused_connection_is_told_at_once(method: str) -> None:
    async with _client(f"http://127.0.0.1:{free_ports(1)[0]}") as client:
        started = time.monotonic()
        error = await _outcome(client, _write(method))
        assert type(error) is LedgerUnreachable
        assert error.headers == {"Retry-After": "1"}
        # Far below every deadline.
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_an_unknown_host_is_unreachable(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_arguments: Any, **_options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    async with _client("http://ledger.invalid") as client:
        assert type(await _outcome(client, _write(method))) is LedgerUnreachable


@pytest.mark.parametrize(
    ("method", "expected"), [("GET", LedgerTimeout), ("DELETE", LedgerUnreachable)]
)
async def test_a_name_server_that_is_silent_is_left_at_the_connect_limit(
    method: str, expected: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_arguments: Any, **_options: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", silent)
    async with _client("http://ledger.invalid", ledger__connect_timeout_s="0.1") as client:
        started = loop.time()
        assert type(await _outcome(client, _write(method))) is expected
        assert loop.time() - started < 5


@pytest.mark.parametrize(
    ("method", "expected"),
    [("GET", LedgerTimeout), ("DELETE", LedgerUnreachable), ("POST", LedgerUnreachable)],
)
async def test_a_connection_that_hangs_is_left_at_the_connect_limit(
    method: str, expected: Outcome
) -> None:
    with _full_backlog() as url:
        async with _client(url, ledger__connect_timeout_s="0.1") as client:
            assert type(await _outcome(client, _write(method))) is expected


@pytest.fixture
def stranger(tmp_path: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "server.pem"
    file.write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_a_ledger_with_a_strange_certificate_gets_nothing(
    method: str, stranger: ssl.SSLContext
) -> None:
    async with FaultyLedger().run(stranger) as ledger, _client(ledger.url) as client:
        assert type(await _outcome(client, _write(method))) is LedgerUnreachable
        assert ledger.hits == []


async def test_before_the_start_and_after_the_end_the_ledger_cannot_be_reached() -> None:
    client = LedgerClient(config_for("http://127.0.0.1").ledger)
    with pytest.raises(LedgerUnreachable):
        await client.ping()
    async with client.run():
        pass
    with pytest.raises(LedgerUnreachable):
        await client.ping()


# What is sent, and what a good answer becomes.


def _headers(hit: bytes) -> dict[str, str]:
    lines = hit.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


async def test_a_call_carries_the_gateways_credential_and_the_acting_user(
    faulty: FaultyLedger,
) -> None:
    body = b'{"amount": "1.10"}'
    async with _client(faulty.url + "/prefix/") as client:
        await client.send(LedgerCall("POST", "/a%2Fb", (), "alice", "r-1", body, "key-1"))
    head, _, sent = faulty.hits[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /prefix/a%2Fb HTTP/1.1\r\n")
    assert sent == body
    assert _headers(faulty.hits[0]) == {
        "host": faulty.url.removeprefix("http://"),
        "authorization": f"Bearer {CREDENTIAL}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "username": "alice",
        "x-request-id": "r-1",
        "idempotency-key": "key-1",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }


async def test_a_query_is_encoded_and_read_back_the_same(faulty: FaultyLedger) -> None:
    query = (("cursor", "a b+c&d=e%/?#é"), ("limit", "2"))
    async with _client(faulty.url) as client:
        await client.send(LedgerCall("GET", "/ledger", query, "alice", "r-1"))
    target = faulty.hits[0].split(b" ")[1].decode()
    assert "content-length" not in _headers(faulty.hits[0])
    assert URL(target, encoded=True).query == dict(query)


async def test_a_cookie_of_the_ledgers_is_not_sent_back(faulty: FaultyLedger) -> None:
    faulty.plays(sends(reply(headers=b"Set-Cookie: session=x\r\n")))
    # By name: a jar keeps no cookie of a host that is a bare address.
    async with _client(faulty.url.replace("127.0.0.1", "localhost")) as client:
        await client.send(READ)
        await client.send(READ)
    assert "cookie" not in _headers(faulty.hits[1])


@pytest.mark.parametrize(
    ("link", "cursor"),
    [
        (b'</ledger?cursor=c-2>; rel="next"', "c-2"),
        (b"<http://elsewhere/x?limit=1&cursor=a%2Bb%20c>; rel=next", "a+b c"),
        (b'</a?cursor=first>; rel="first", </b?cursor=c-2>; rel="next"', "c-2"),
        (b'</a?cursor=c-2>; rel="NEXT"', "c-2"),
        (b'</a?cursor=c-2>; rel="last next"', "c-2"),
        (b'</a?cursor=c-1>; rel="prev"', None),
        (b'</a?cursor=c-2>; REL="next"', "c-2"),
        (b"</a?cursor=c-2> ;Rel = next", "c-2"),
        (b', </a?cursor=c-2>; rel="next",,', "c-2"),
        (b'</a?cursor=c-2>; title="rows; rel=prev"; rel="next"', "c-2"),
        (b'</a?cursor=c-2>; title="to \\"</b>, </c>\\""; rel="next"', "c-2"),
        (b'</a?cursor=c-1>; title="</b?cursor=no>; rel=next"; rel="prev"', None),
        (b'</a?cursor=c-1>; rel="prev"; rel="next"', None),
        (b"</a?cursor=c-2>; rel='last next'", "c-2"),
    ],
)
async def test_the_cursor_of_the_next_page_is_taken_from_the_link(
    link: bytes, cursor: str | None, faulty: FaultyLedger
) -> None:
    faulty.plays(sends(reply(headers=b"Link: " + link + b"\r\n")))
    async with _client(faulty.url) as client:
        assert (await client.send(READ)).next_cursor == cursor


_TARGETS = st.text("/ax?=&,;'\"", max_size=6)
_RELATIONS = st.lists(st.sampled_from(["next", "NEXT", "prev", "x-next"]), max_size=2)
_QUOTED = st.text("ne xt=',;<>\\\"", max_size=8)
_PARAMETERS = st.one_of(
    st.tuples(st.sampled_from(["rel", "REL"]), _RELATIONS.map(" ".join)),
    st.tuples(st.sampled_from(["title", "xrel", "rel*"]), _QUOTED),
)
_LINKS = st.tuples(_TARGETS, st.lists(_PARAMETERS, max_size=3))


def _quoted_string(text: str) -> str:
    return '"{}"'.format(re.sub(r'(["\\])', r"\\\1", text))


def _is_next(parameters: list[tuple[str, str]]) -> bool:
    types = [value for name, value in parameters if name.lower() == "rel"]
    return "next" in "".join(types[:1]).lower().split()


@given(st.lists(_LINKS, max_size=3), st.sampled_from([",", " , ", ",,"]))
def test_links_are_read_as_they_are_written(
    links: list[tuple[str, list[tuple[str, str]]]], comma: str
) -> None:
    """By the grammar of RFC 8288, section 3."""
    written = comma.join(
        f"<{target}>" + "".join(f" ; {name}={_quoted_string(value)}" for name, value in parameters)
        for target, parameters in links
    )
    expected = [target for target, parameters in links if _is_next(parameters)]
    assert next_link(written) == (expected[0] if expected else None)


async def test_a_replay_is_told(faulty: FaultyLedger) -> None:
    faulty.plays(sends(reply(status="201 Created", headers=b"Idempotency-Replayed: true\r\n")))
    async with _client(faulty.url) as client:
        assert (await client.send(_write("POST"))).replayed
        assert not (await client.send(READ)).replayed


@pytest.mark.parametrize("status", [400, 404, 409, 410, 413, 422, 429, 503])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refusal_for_the_caller_is_a_value(
    method: str, status: int, faulty: FaultyLedger
) -> None:
    faulty.plays(sends(reply(b"why", f"{status} No")))
    async with _client(faulty.url) as client:
        refusal = await client.send(_write(method))
    assert (refusal.status, refusal.body, refusal.is_success) == (status, b"why", False)
    assert len(faulty.hits) == 1


@pytest.mark.parametrize("status", ["201 Created", "203 Odd", "204 No Content", "205 Reset"])
async def test_only_a_200_answers_a_read(status: str, faulty: FaultyLedger) -> None:
    faulty.plays(sends(reply(b"", status)))
    async with _client(faulty.url) as client:
        assert isinstance(await _outcome(client, READ), LedgerBroken)
        assert len(faulty.hits) == 1


@pytest.mark.parametrize("status", [200, 201, 204])
async def test_a_write_may_succeed_in_three_ways(status: int, faulty: FaultyLedger) -> None:
    faulty.plays(sends(reply(b"", f"{status} Fine")))
    async with _client(faulty.url) as client:
        assert (await client.send(_write("DELETE"))).status == status


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_few_interim_answers_are_heard_out(faulty: FaultyLedger, method: str) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"
    call = READ if method == "GET" else _write(method)
    async with _client(faulty.url) as client:
        for _ in range(3):
            faulty.plays(sends(HINT + early * 4 + HINT * 4 + reply()))
            assert (await client.send(call)).body == GOOD
    assert faulty.connections == 1


async def test_a_ledger_that_does_not_say_that_it_is_well_is_not_waited_for(
    faulty: FaultyLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger._PING_S", 0.05)
    faulty.plays(hangs())
    async with _client(faulty.url) as client:
        with pytest.raises(LedgerTimeout):
            await client.ping()


async def test_health_is_known_by_a_ping(faulty: FaultyLedger) -> None:
    up, down = ("200 OK", "204 No Content"), ("302 Found", "404 Not Found", "503 Busy")
    async with _client(faulty.url) as client:
        for status in up:
            faulty.plays(sends(reply(b"", status)))
            assert await client.ping() >= 0
        for act in (*[sends(reply(status=status)) for status in down], closes()):
            faulty.plays(act)
            with pytest.raises(LedgerBroken):
                await client.ping()
    assert [hit.split(b" ")[1] for hit in faulty.hits] == [b"/health"] * 6


NOW = 1_700_000_000.0
SOON = datetime.datetime.fromtimestamp(NOW + 90, datetime.UTC)


@pytest.fixture(params=["UTC", "JST-9"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as here:
        here.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("3600", 3600),
        ("3601", 3600),
        ("1000000000000", 3600),
        ("9" * 5000, 3600),
        (format_datetime(SOON, usegmt=True), 90),
        (f"{SOON:%A, %d-%b-%y %H:%M:%S} GMT", 90),
        (f"{SOON:%a %b %e %H:%M:%S %Y}", 90),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("٣", None),
        ("", None),
        (",", None),
        ("soon", None),
        ("Mon, 99 Jan 2024 00:00:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +999999999999", None),
    ],
)
@pytest.mark.usefixtures("zone")
def test_retry_after_is_read_and_capped(value: str, seconds: int | None) -> None:
    assert retry_after(value, NOW) == seconds


# Through the gateway: what the caller is told, and what stays in the cache.


CACHED = {"cache__ledger_ttl_s": "60", "cache__rates_ttl_s": "60"}


async def _told(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """Status and code of an error that names the ledger and repeats none of its words."""
    text = await response.text()
    body = json.loads(text)
    assert set(body["api_data"]) == {"detail", "origin", "request_id"}
    assert body["api_data"]["origin"] == "ledger"
    assert body["api_data"]["request_id"] == response.headers["X-Request-Id"]
    assert '"OK"' not in text
    assert CREDENTIAL not in text
    assert not {"Location", "WWW-Authenticate", "Link", "Set-Cookie"} & set(response.headers)
    return response.status, body["api_message"]


async def _register(client: Any, who: tuple[str, str] = SERVICE) -> aiohttp.ClientResponse:
    headers = caller(*who) | {"Idempotency-Key": "key-1"}
    response: aiohttp.ClientResponse = await client.post("/ledger", json=ACTION, headers=headers)
    return response


@pytest.mark.parametrize(("act", "reading", "writing", "settings"), ALL_FAULTS)
async def test_a_caller_is_told_of_a_fault_and_the_next_one_is_not(
    act: Act,
    reading: Outcome,
    writing: Outcome,
    settings: dict[str, str],
    faulty: FaultyLedger,
    make_client: MakeClient,
) -> None:
    client = await make_client(faulty.url, **settings, **CACHED, **NO_RETRIES)
    faulty.plays(act, act)
    assert await _told(await _register(client)) == (writing.status, writing.code)
    response = await client.get("/ledger", headers=caller(*ADMIN))
    assert await _told(response) == (reading.status, reading.code)
    assert [hit.split(b" ")[0] for hit in faulty.hits] == [b"POST", b"GET"]
    for _ in range(2):
        response = await client.get("/ledger", headers=caller(*ADMIN))
        assert (response.status, (await response.json())["api_data"]) == (200, [])
        # The fault was not kept, the good answer was.
        assert len(faulty.hits) == 3


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("who", [ADMIN, ("alice", "user")], ids=lambda who: who[1])
async def test_an_unreadable_answer_reaches_nobody_and_is_not_kept(
    who: tuple[str, str], body: bytes, faulty: FaultyLedger, make_client: MakeClient
) -> None:
    client = await make_client(faulty.url, **CACHED, **NO_RETRIES)
    faulty.plays(sends(reply(body)))
    response = await client.get("/ledger", headers=caller(*who))
    assert await _told(response) == (502, "LEDGER_BROKEN")
    response = await client.get("/ledger", headers=caller(*who))
    assert (response.status, (await response.json())["api_data"]) == (200, [])
    assert len(faulty.hits) == 2


@pytest.mark.parametrize("status", ["200 OK", "201 Created"])
@pytest.mark.parametrize("body", [b"[]", b'{"api_data":[{},{}]}', *UNREADABLE.values()])
async def test_an_unreadable_answer_to_a_write_leaves_its_outcome_unknown(
    status: str, body: bytes, faulty: FaultyLedger, make_client: MakeClient
) -> None:
    client = await make_client(faulty.url, **NO_RETRIES)
    faulty.plays(sends(reply(body, status)))
    assert await _told(await _register(client)) == (504, "OUTCOME_UNKNOWN")
    assert len(faulty.hits) == 1


@pytest.mark.parametrize("body", [b"<html>", GOOD[:-2], b"", b"[NaN]", b'["\xff"]', b"{}"])
async def test_unreadable_rates_reach_nobody_and_are_not_kept(
    body: bytes, faulty: FaultyLedger, make_client: MakeClient
) -> None:
    client = await make_client(faulty.url, **CACHED, **NO_RETRIES)
    faulty.plays(sends(reply(body)), sends(reply(b"[]")))
    response = await client.get(RATES, headers=caller())
    told = await response.json()
    assert (response.status, told["code"], told["origin"]) == (502, "LEDGER_BROKEN", "ledger")
    response = await client.get(RATES, headers=caller())
    assert (response.status, await response.read()) == (200, b"[]")
    assert len(faulty.hits) == 2


async def test_a_rate_that_may_have_been_deleted_is_asked_for_once(
    faulty: FaultyLedger, make_client: MakeClient
) -> None:
    client = await make_client(faulty.url, **NO_RETRIES)
    faulty.plays(closes())
    response = await client.delete(f"{RATES}/{RATE}", headers=caller(*SERVICE))
    told = await response.json()
    assert (response.status, told["code"], told["origin"]) == (504, "OUTCOME_UNKNOWN", "ledger")
    assert len(faulty.hits) == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        (b"Retry-After: 7\r\n", "7"),
        (b"Retry-After: 1000000000000\r\n", "3600"),
        (b"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n", "3600"),
        (b"Retry-After: -1\r\n", "1"),
        (b"Retry-After: soon\r\n", "1"),
        (b"", "1"),
    ],
)
async def test_a_request_to_wait_is_passed_on_and_never_kept_or_repeated(
    given: bytes, passed_on: str, status: int, faulty: FaultyLedger, make_client: MakeClient
) -> None:
    client = await make_client(faulty.url, **CACHED, **NO_RETRIES)
    faulty.plays(*[sends(reply(status=f"{status} Wait", headers=given))] * 2)
    response = await client.get("/ledger", headers=caller(*ADMIN))
    assert (response.status, response.headers["Retry-After"]) == (status, passed_on)
    assert len(faulty.hits) == 1
    response = await _register(client)
    assert (response.status, response.headers["Retry-After"]) == (status, passed_on)
    assert len(faulty.hits) == 2
    response = await client.get("/ledger", headers=caller(*ADMIN))
    assert response.status == 200
    assert len(faulty.hits) == 3


@pytest.mark.parametrize(
    ("reading", "writing", "settings"),
    [
        ((503, "LEDGER_UNREACHABLE"), (503, "LEDGER_UNREACHABLE"), {}),
        (
            (504, "LEDGER_TIMEOUT"),
            (503, "LEDGER_UNREACHABLE"),
            {"ledger__connect_timeout_s": "0.1"},
        ),
    ],
    ids=["refused", "hangs"],
)
async def test_a_caller_is_told_that_there_is_no_connection(
    reading: tuple[int, str],
    writing: tuple[int, str],
    settings: dict[str, str],
    make_client: MakeClient,
) -> None:
    with _full_backlog() as hanging:
        url = hanging if settings else f"http://127.0.0.1:{free_ports(1)[0]}"
        client = await make_client(url, **settings)
        response = await client.get("/ledger", headers=caller(*ADMIN))
        assert await _told(response) == reading
        response = await _register(client)
        assert await _told(response) == writing
        assert response.headers["Retry-After"] == "1"


async def test_only_an_admin_reads_the_ledgers_own_words(
    faulty: FaultyLedger, make_client: MakeClient
) -> None:
    client = await make_client(faulty.url, **NO_RETRIES)
    words = b'{"api_message":"NO","api_data":{"detail":"SELECT secret"}}'
    for who, shown in ((ADMIN, True), (SERVICE, False)):
        faulty.plays(sends(reply(words, "422 No")))
        response = await _register(client, who)
        assert response.status == 422
        assert ("SELECT secret" in await response.text()) is shown


async def test_a_write_goes_on_after_the_caller_has_left(
    faulty: FaultyLedger, make_client: MakeClient
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await answered.wait()
        await sends(reply(b"[{}]", "201 Created"))(reader, writer)

    faulty.plays(act)
    client = await make_client(faulty.url, **NO_RETRIES)
    leaving = asyncio.ensure_future(_register(client))
    await asked.wait()
    leaving.cancel()
    await asyncio.wait((leaving,))
    answered.set()
    # The connection is good for the next call: nobody cut it short.
    response = await client.get("/ledger", headers=caller(*ADMIN))
    assert response.status == 200
    assert [hit.split(b" ")[0] for hit in faulty.hits] == [b"POST", b"GET"]


def test_a_reply_is_a_success_only_with_a_status_of_success() -> None:
    statuses = (199, 200, 201, 204, 299, 300, 404, 503)
    successes = [status for status in statuses if LedgerReply(status, b"").is_success]
    assert successes == [200, 201, 204, 299]
