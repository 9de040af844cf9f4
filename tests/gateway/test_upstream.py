"""What goes over the wire to the ledger, and over which connection."""

import asyncio
from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from yarl import URL

from gateway.calls import LedgerCall
from gateway.config import Ledger
from gateway.errors import LedgerBroken, LedgerTimeout, LedgerUnreachable
from gateway.ledger import LedgerClient
from gateway.upstream import request
from tests.conftest import config_for
from tests.faulty import FaultyLedger, chunk, chunked, reply, sends, sends_apart
from tests.gateway.no_time import in_no_time, now
from tests.test_overload import until

READ = LedgerCall("GET", "/ledger", (("limit", "2"),), "alice", "r-1")
WRITE = LedgerCall("POST", "/ledger", (), "alice", "r-1", b'{"a":1}', "key-1")
BASE = "http://ledger:8080/prefix"


def _settings(url: str, **settings: str) -> Ledger:
    return config_for(url, **settings).ledger


# The head.


def test_a_read_is_sent_as_it_always_was() -> None:
    headers = {"Host": "ledger", "username": "alice"}
    assert request("GET", "/a?b=c", headers, None) == (
        b"GET /a?b=c HTTP/1.1\r\nHost: ledger\r\nusername: alice\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("body", "end"),
    [(None, b"Content-Length: 0\r\n\r\n"), (b"{}", b"Content-Length: 2\r\n\r\n{}")],
)
def test_a_write_says_how_long_it_is(body: bytes | None, end: bytes) -> None:
    assert request("DELETE", "/a", {}, body) == b"DELETE /a HTTP/1.1\r\n" + end


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("http://ledger", "ledger", "/ledger"),
        ("http://ledger:80/", "ledger", "/ledger"),
        ("http://ledger:8080/a/b/", "ledger:8080", "/a/b/ledger"),
        ("https://ledger:443", "ledger", "/ledger"),
        ("https://ledger:80", "ledger:80", "/ledger"),
        ("http://[::1]", "[::1]", "/ledger"),
        ("http://[::1]:8080", "[::1]:8080", "/ledger"),
    ],
)
def test_host_and_path_are_those_of_the_url(url: str, host: str, path: str) -> None:
    client = LedgerClient(_settings(url))
    assert client._headers(READ)["Host"] == host
    assert client._target(replace(READ, query=())) == path


@given(st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple))
def test_a_query_is_written_as_the_url_library_writes_it(
    query: tuple[tuple[str, str], ...],
) -> None:
    client = LedgerClient(_settings(BASE))
    url = URL(f"{BASE}/ledger", encoded=True).with_query(query or None)
    assert client._target(replace(READ, query=query)) == url.raw_path_qs


FORBIDDEN = ["\r", "\n", "\r\nX-Role: admin", "\0", "\x7f", "\t", "\x1b", "é", "\u0100", "\u2028"]


@pytest.mark.parametrize("text", FORBIDDEN, ids=ascii)
@pytest.mark.parametrize("field", ["method", "path", "username", "request_id", "idempotency_key"])
async def test_nothing_in_a_head_begins_a_line_of_its_own(field: str, text: str) -> None:
    async with FaultyLedger().run() as ledger:
        client = LedgerClient(_settings(ledger.url))
        async with client.run():
            with pytest.raises(ValueError, match="does not belong"):
                await client.send(replace(WRITE, **{field: f"/a{text}b"}), 1)
    assert ledger.connections == 0


@pytest.mark.parametrize("text", FORBIDDEN, ids=ascii)
def test_nor_does_anything_in_the_credential(text: str) -> None:
    with pytest.raises(ValueError, match="does not belong"):
        request("GET", "/", {"Authorization": f"Bearer a{text}b"}, None)


def test_a_path_with_a_space_is_no_path() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        request("GET", "/a HTTP/1.0", {}, None)


# Over which connection.


Greeting = Callable[[asyncio.StreamWriter], None]


@pytest.mark.parametrize(
    "greeting",
    [lambda writer: writer.write(reply()), lambda writer: writer.close()],
    ids=["speaks first", "closes at once"],
)
async def test_a_server_that_cannot_be_asked_is_left_alone(greeting: Greeting) -> None:
    greeted, heard = 0, b""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted, heard
        greeted += 1
        greeting(writer)
        heard += await reader.read()
        writer.close()
        done.set()

    done = asyncio.Event()
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    client = LedgerClient(_settings(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    async with client.run():
        connector = client._upstream._connector
        assert connector is not None
        connect = connector.connect

        async def slowly(*arguments: object) -> object:
            # What the server says has time to arrive before anything is asked.
            connection = await connect(*arguments)  # type: ignore[arg-type]
            await until(lambda: connection.protocol.should_close)
            return connection

        connector.connect = slowly  # type: ignore[method-assign, assignment]
        with pytest.raises(LedgerUnreachable):
            await client.send(WRITE, 5)
    await done.wait()
    server.close()
    await server.wait_closed()
    assert (greeted, heard) == (1, b"")


@pytest.mark.parametrize("timeout_s", [3, 30])
@in_no_time
async def test_no_connection_is_waited_for_beyond_the_time_of_the_call(timeout_s: float) -> None:
    async def silent(*_arguments: object, **_options: object) -> None:
        await asyncio.get_running_loop().create_future()

    client = LedgerClient(_settings("http://ledger.invalid", ledger__connect_timeout_s="4"))
    with patch.object(asyncio.get_running_loop(), "getaddrinfo", silent):
        async with client.run():
            started = now()
            with pytest.raises(LedgerTimeout):
                await client.send(READ, timeout_s)
            assert now() - started == pytest.approx(min(timeout_s, 4))


async def test_a_bad_chunk_behind_good_ones_is_told_at_once() -> None:
    async with FaultyLedger().run() as ledger:
        client = LedgerClient(_settings(ledger.url, ledger__read_timeout_s="600"))
        act = sends_apart(chunked(chunk(b"[]"), end=b""), b"zz\r\n")
        async with client.run(), asyncio.timeout(10):
            for _ in range(2):
                ledger.plays(act)
                with pytest.raises(LedgerBroken):
                    await client.send(READ, 600)
                assert (await client.send(READ, 600)).status == 200


@pytest.mark.parametrize("more", [b"H", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_what_begins_right_behind_an_answer_is_nobodys(more: bytes) -> None:
    """Else what is left of it would be read as the next answer."""
    async with FaultyLedger().run() as ledger:
        client = LedgerClient(_settings(ledger.url))
        async with client.run():
            ledger.plays(sends(reply(b"[1]") + more), sends(reply(b"[2]")))
            assert (await client.send(READ, 5)).body == b"[1]"
            assert (await client.send(READ, 5)).body == b"[2]"
    assert ledger.connections == 2


async def test_a_part_of_an_answer_that_nobody_asked_for_is_nobodys() -> None:
    """Else what is left of it would be read as the next answer."""
    go_on, spoken = asyncio.Event(), asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await sends(reply(b"[1]"))(reader, writer)
        await go_on.wait()
        await sends_apart(b"HTTP/1.1 2")(reader, writer)
        spoken.set()

    async with FaultyLedger().run() as ledger:
        client = LedgerClient(_settings(ledger.url))
        async with client.run():
            ledger.plays(act, sends(reply(b"[2]")))
            assert (await client.send(READ, 5)).body == b"[1]"
            go_on.set()
            await spoken.wait()
            assert (await client.send(READ, 5)).body == b"[2]"
    assert ledger.connections == 2
