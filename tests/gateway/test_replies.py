"""How answers come in: large ones, slow ones, and such as never end."""

import asyncio
import gc
import socket
import ssl
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast
from unittest.mock import patch

import aiohttp
import aiohttp.connector
import pytest
import uvloop

from gateway.calls import LedgerCall
from gateway.errors import GatewayError, LedgerBroken, OutcomeUnknown, UnexpectedAnswer
from gateway.ledger import LedgerClient
from gateway.replies import LedgerConnection, _LargeBody, read_body
from tests.conftest import config_for
from tests.faulty import (
    GOOD,
    Act,
    FaultyLedger,
    chunk,
    chunked,
    closes,
    floods,
    hangs,
    reply,
    resets,
    sends,
    sends_apart,
)
from tests.gateway.no_time import in_no_time, now
from tests.redis_server import certified
from tests.test_overload import until

READ = LedgerCall("GET", "/ledger", (), "alice", "r-1")
WRITE = LedgerCall("DELETE", "/ledger", (), "alice", "r-1")
# From here on a body is received where it is to stay.
LARGE = 1 << 20
SIZE = 8 << 20
BODY = bytes(range(256)) * (SIZE // 256)
PAGE = 4096


@asynccontextmanager
async def _client(url: str, **settings: str) -> AsyncIterator[LedgerClient]:
    client = LedgerClient(config_for(url, **settings).ledger)
    async with client.run():
        yield client


def _announced(size: int, body: bytes = b"") -> bytes:
    return reply(body, headers=b"Content-Length: %d\r\n" % size)


# Whole.


@pytest.mark.parametrize("size", [LARGE - 1, LARGE, LARGE + 1, 3 * LARGE, SIZE])
async def test_a_large_body_comes_as_it_was_sent(size: int, faulty: FaultyLedger) -> None:
    async with _client(faulty.url) as client:
        for _ in range(2):
            faulty.plays(sends(reply(BODY[:size])))
            body = (await client.send(READ, 10)).body
            assert body == BODY[:size]
            assert type(body) is bytes
        assert (await client.send(READ, 10)).body == GOOD
    # A connection is kept if the end of the body came to the parser.
    assert faulty.connections <= (1 if size < LARGE else 3)


@pytest.mark.parametrize("first", [0, 1, LARGE - 1, LARGE, SIZE - LARGE, SIZE - 1])
async def test_a_large_body_comes_in_pieces(first: int, faulty: FaultyLedger) -> None:
    faulty.plays(sends_apart(_announced(SIZE), BODY[:first], BODY[first:-1], BODY[-1:]))
    async with _client(faulty.url) as client:
        assert (await client.send(READ, 10)).body == BODY
        assert (await client.send(READ, 10)).body == GOOD


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_large_body_comes_over_every_kind_of_connection(
    loop: Callable[[], asyncio.AbstractEventLoop], tls: bool, tmp_path: Path
) -> None:
    server, voucher = certified("localhost", tmp_path)

    async def ask() -> None:
        async with (
            FaultyLedger().run(server if tls else None) as ledger,
            _client(ledger.url.replace("127.0.0.1", "localhost")) as client,
        ):
            for _ in range(2):
                ledger.plays(sends(reply(BODY)))
                assert (await client.send(READ, 10)).body == BODY
                assert (await client.send(READ, 10)).body == GOOD

    trusting = ssl.create_default_context(cafile=str(voucher))
    with (
        patch.object(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting),
        asyncio.Runner(loop_factory=loop) as runner,
    ):
        runner.run(ask())


@pytest.mark.parametrize("size", [LARGE // 2, SIZE])
async def test_a_body_of_unknown_length_comes_faster_than_it_is_taken(
    size: int, faulty: FaultyLedger
) -> None:
    async with _client(faulty.url) as client, asyncio.timeout(10):
        faulty.plays(sends(chunked(*[chunk(BODY[at : at + 1000]) for at in range(0, size, 1000)])))
        body = (await client.send(READ, 10)).body
        assert body[:size] == BODY[:size]
        assert (await client.send(READ, 10)).body == GOOD
        assert faulty.connections == 1
        faulty.plays(closes(b"HTTP/1.1 200 OK\r\n\r\n" + BODY[:size]))
        assert (await client.send(READ, 10)).body == BODY[:size]


async def test_what_follows_a_large_body_is_nobodys(faulty: FaultyLedger) -> None:
    async with _client(faulty.url) as client:
        faulty.plays(sends(reply(BODY) + reply(b"[666]")))
        assert (await client.send(READ, 10)).body == BODY
        assert (await client.send(READ, 10)).body == GOOD
    assert faulty.connections == 2


@pytest.mark.parametrize("call", [READ, WRITE])
async def test_where_something_else_is_spoken_nothing_more_is_asked(
    call: LedgerCall, faulty: FaultyLedger
) -> None:
    async with _client(faulty.url) as client:
        faulty.plays(sends(reply(b"", status="101 Switching Protocols")))
        with pytest.raises(UnexpectedAnswer):
            await client.send(call, 10)
        assert (await client.send(READ, 10)).body == GOOD
    assert faulty.connections == 2


# Not whole, or not in time.


@pytest.mark.parametrize("end", [closes, resets])
@pytest.mark.parametrize("came", [0, 1, LARGE, SIZE - 1])
async def test_a_large_body_that_breaks_off_is_broken(
    came: int, end: Callable[[bytes], Act], faulty: FaultyLedger
) -> None:
    async with _client(faulty.url) as client, asyncio.timeout(10):
        for call, expected in ((READ, LedgerBroken), (WRITE, OutcomeUnknown)):
            faulty.plays(end(_announced(SIZE, BODY[:came])))
            with pytest.raises(expected):
                await client.send(call, 10)
            assert (await client.send(READ, 10)).body == GOOD
            await faulty.down_to(1)


class _Wire(asyncio.Transport):
    """A connection by hand, to a server that says pieces of an answer, each so much later."""

    def __init__(self, line: LedgerConnection) -> None:
        super().__init__()
        self.paused = False
        self._protocol: asyncio.BaseProtocol = line
        line.connection_made(self)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def write(self, data: object) -> None:
        """Takes it."""

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        """Tells nobody."""

    async def say(self, pieces: Sequence[tuple[float, bytes]]) -> None:
        """Says all of it in time."""
        for pause_s, piece in pieces:
            await asyncio.sleep(pause_s)
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                cast(memoryview, self._protocol.get_buffer(-1))[: len(piece)] = piece
                self._protocol.buffer_updated(len(piece))
            else:
                cast(LedgerConnection, self._protocol).data_received(piece)


async def _answer(line: LedgerConnection) -> bytes:
    message, payload = await line.answer()
    return await read_body(line, message.headers, payload, SIZE)


LATE = {
    "no head": ([], 5),
    "half a head": ([(1, reply()[:20])], 6),
    "a head that drips": ([(4, reply()[at : at + 1]) for at in range(20)], 20),
    "interim answers": ([(4, b"HTTP/1.1 100 Continue\r\n\r\n")], 9),
    "a small body": ([(1, _announced(100))], 6),
    "a small body that drips": ([(1, _announced(100)), *[(4.0, b" ")] * 9], 20),
    "a large body": ([(1, _announced(SIZE))], 6),
    "the rest of a large body": ([(1, _announced(SIZE, BODY[:LARGE])), (4, BODY[:LARGE])], 10),
    "a large body that drips": ([(1, _announced(SIZE)), *[(4.0, b" ")] * 9], 20),
}


@pytest.mark.parametrize(("pieces", "expected_s"), LATE.values(), ids=LATE.keys())
@in_no_time
async def test_an_answer_is_waited_for_as_long_as_was_said(
    pieces: list[tuple[float, bytes]], expected_s: float
) -> None:
    line = LedgerConnection(asyncio.get_running_loop())
    wire, started = _Wire(line), now()
    line.ask(b"", 5, started + 20)
    saying = asyncio.create_task(wire.say(pieces))
    with pytest.raises(TimeoutError):
        await _answer(line)
    assert now() - started == pytest.approx(expected_s)
    saying.cancel()


@in_no_time
async def test_an_answer_in_time_is_an_answer() -> None:
    line = LedgerConnection(asyncio.get_running_loop())
    wire = _Wire(line)
    pieces = [(4.0, _announced(SIZE)), (4.0, BODY[:LARGE]), (4.0, BODY[LARGE:])]
    line.ask(b"", 5, now() + 20)
    saying = asyncio.create_task(wire.say(pieces))
    assert await _answer(line) == BODY
    line.leave()
    await saying
    assert line.exception() is None


@pytest.mark.parametrize(("first_s", "then_s"), [(1, 20), (20, 1), (20, 20)])
@in_no_time
async def test_how_long_is_waited_does_not_depend_on_the_request_before(
    first_s: float, then_s: float
) -> None:
    line = LedgerConnection(asyncio.get_running_loop())
    wire = _Wire(line)
    line.ask(b"", 5, now() + first_s)
    await wire.say([(0.5, reply())])
    assert await _answer(line) == GOOD
    line.leave()
    started = now()
    line.ask(b"", 5, started + then_s)
    with pytest.raises(TimeoutError):
        await _answer(line)
    assert now() - started == pytest.approx(min(then_s, 5))


@in_no_time
async def test_nobody_waits_between_two_requests() -> None:
    line = LedgerConnection(asyncio.get_running_loop())
    wire = _Wire(line)
    line.ask(b"", 5, now() + 20)
    await wire.say([(0, reply())])
    assert await _answer(line) == GOOD
    line.leave()
    await asyncio.sleep(100)
    assert not line.should_close
    line.ask(b"", 5, now() + 20)
    line.connection_lost(None)
    assert line._watch is None


async def test_a_connection_that_was_held_up_goes_on() -> None:
    line = LedgerConnection(asyncio.get_running_loop())
    wire = _Wire(line)
    line.ask(b"", 5, asyncio.get_running_loop().time() + 20)
    pieces = [chunk(BODY[at : at + LARGE]) for at in range(0, 4 * LARGE, LARGE)]
    line.data_received(chunked(end=b""))
    line.data_received(pieces[0])
    line.data_received(pieces[1])
    assert wire.paused
    reading = asyncio.create_task(_answer(line))
    await until(lambda: not wire.paused)
    line.data_received(pieces[2] + pieces[3] + b"0\r\n\r\n")
    assert await reading == BODY[: 4 * LARGE]
    assert not wire.paused
    line.leave()
    line.connection_lost(None)


async def test_a_large_body_may_be_there_already_or_its_connection_gone() -> None:
    line = LedgerConnection(asyncio.get_running_loop())
    _Wire(line)
    line.ask(b"", 5, asyncio.get_running_loop().time() + 20)
    line.data_received(_announced(SIZE, BODY))
    _, payload = await line.answer()
    assert await line.whole(payload, SIZE) == BODY
    line.ask(b"", 5, asyncio.get_running_loop().time() + 20)
    line.data_received(_announced(SIZE))
    _, payload = await line.answer()
    line.close()
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await line.whole(payload, SIZE)
    line.leave()
    line.connection_lost(None)


@in_no_time
async def test_who_has_not_taken_the_request_yet_is_not_silent() -> None:
    line = LedgerConnection(asyncio.get_running_loop())
    _Wire(line)
    started = now()
    line.pause_writing()
    line.ask(b"", 5, started + 100)
    asyncio.get_running_loop().call_later(50, line.resume_writing)
    with pytest.raises(TimeoutError):
        await _answer(line)
    assert 55 <= now() - started <= 60


@in_no_time
async def test_a_large_body_that_pauses_is_given_up_though_the_request_went_out_late() -> None:
    line = LedgerConnection(asyncio.get_running_loop())
    wire = _Wire(line)
    started = now()
    line.pause_writing()
    line.ask(b"", 5, started + 100)
    rest = _LargeBody(line, wire, b"", SIZE)
    line._awaited = rest
    asyncio.get_running_loop().call_later(50, rest.resume_writing)
    with pytest.raises(TimeoutError):
        await rest.body()
    assert 55 <= now() - started <= 60


@pytest.mark.parametrize("head", [f"Content-Length: {SIZE}", "Transfer-Encoding: chunked"])
async def test_what_came_of_bodies_that_break_off_is_let_go(
    head: str, faulty: FaultyLedger
) -> None:
    begun = b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % head.encode()
    part = b" " * (SIZE // 2)
    begun += chunk(part) if "chunked" in head else part
    async with _client(faulty.url) as client:
        tracemalloc.start()
        gc.disable()
        try:
            for _ in range(8):
                faulty.plays(closes(begun))
                with pytest.raises(GatewayError):
                    await client.send(READ, 10)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            gc.enable()
            tracemalloc.stop()
    assert held < 2 * SIZE


async def test_who_leaves_within_a_large_body_leaves_no_connection_behind(
    faulty: FaultyLedger,
) -> None:
    come = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await sends_apart(_announced(SIZE), BODY[:LARGE])(reader, writer)
        come.set()
        await reader.read()

    async with _client(faulty.url) as client:
        faulty.plays(act)
        leaving = asyncio.ensure_future(client.send(READ, 10))
        await come.wait()
        leaving.cancel()
        await asyncio.wait((leaving,))
        assert leaving.cancelled()
        await faulty.down_to(0)
        assert (await client.send(READ, 10)).body == GOOD


async def test_the_client_ends_while_a_large_body_is_under_way(faulty: FaultyLedger) -> None:
    come = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await sends_apart(_announced(SIZE), BODY[:LARGE])(reader, writer)
        come.set()
        await reader.read()

    faulty.plays(act)
    async with asyncio.timeout(10):
        async with _client(faulty.url) as client:
            asking = asyncio.ensure_future(client.send(READ, 600))
            await come.wait()
        with pytest.raises(LedgerBroken):
            await asking


# What it costs.


async def test_an_answer_that_is_announced_too_large_is_not_waited_for(
    faulty: FaultyLedger,
) -> None:
    faulty.plays(hangs(_announced(SIZE + 1)), sends(reply(BODY)))
    async with _client(faulty.url, ledger__max_reply_bytes=str(SIZE)) as client:
        with pytest.raises(UnexpectedAnswer):
            await client.send(READ, 600)
        assert (await client.send(READ, 10)).body == BODY


@contextmanager
def _sender(answer: bytes) -> Iterator[str]:
    """A ledger in a thread that gives one answer without memory of its own."""

    def serve() -> None:
        with listener.accept()[0] as line:
            line.recv(1 << 16)
            line.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


async def test_a_large_body_is_held_once() -> None:
    with _sender(reply(BODY)) as url:
        async with _client(url) as client:
            tracemalloc.start()
            try:
                body = (await client.send(READ, 10)).body
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert body == BODY
    assert peak < 1.2 * SIZE


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


async def test_what_is_announced_and_does_not_come_takes_no_memory(faulty: FaultyLedger) -> None:
    promised = 1 << 27
    many = 8
    faulty.plays(*[hangs(_announced(promised, BODY[:LARGE]))] * many)
    async with _client(faulty.url, ledger__max_reply_bytes=str(promised)) as client:
        before = _resident()
        calls = [asyncio.ensure_future(client.send(READ, 600)) for _ in range(many)]
        await until(lambda: sum(_begun(call) for call in calls) == many)
        assert _resident() - before < 64 << 20
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


def _begun(call: "asyncio.Task[object]") -> bool:
    """Whether the rest of a large body is waited for."""
    waiting: Awaitable[object] | None = call.get_coro()  # type: ignore[assignment]
    names = []
    while waiting is not None and hasattr(waiting, "cr_await"):
        names.append(waiting.cr_code.co_name)  # type: ignore[attr-defined]
        waiting = waiting.cr_await
    return "whole" in names


async def test_an_endless_body_ends_at_the_limit(faulty: FaultyLedger) -> None:
    endless = floods(b"HTTP/1.1 200 OK\r\n\r\n", BODY[:LARGE])
    async with _client(faulty.url, ledger__max_reply_bytes=str(SIZE)) as client:
        faulty.plays(endless)
        with pytest.raises(UnexpectedAnswer):
            await client.send(READ, 60)
        await faulty.down_to(0)
