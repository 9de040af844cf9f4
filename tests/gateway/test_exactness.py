"""From end to end: what the ledger wrote is what its readers get, and nobody else a byte of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from aiohttp import web
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.app import create_app, shared
from tests.conftest import ADMIN, SERVICE, GatewayServer, caller, config_for
from tests.fakes import FakeLedger
from tests.gateway.test_rows import (
    HIDDEN,
    ODD_NUMBERS,
    SPACE,
    STRINGS,
    key_of,
    members,
    owner_of,
    row_text,
    spelled,
)

# An example takes dozens of requests: a failure is told as it was found, not made smaller.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
bounded = settings(max_examples=15, deadline=None, phases=PHASES)

USERS = ("alice", "bob", "carol")
ORDERS = ("x", "y")
CURRENCIES = ("BTC", "USD")
READERS = (ADMIN, SERVICE, *((name, "user") for name in USERS))

# The rest of a row; what rows may look like at all is the matter of `test_rows`.
NESTED = ('{"lp_id":1,"username":"bob"}', '[ {"username" : "carol"} ]', '{"a":{},"b":[[]]}', "null")
MORE = members(
    st.sampled_from(['"amount"', '"am\\u006funt"', '"lp_idx"', '"日"', '"lp_id"', '""']),
    st.sampled_from((*ODD_NUMBERS, *NESTED)) | STRINGS,
)

T = TypeVar("T")


# What the ledger wrote.


@dataclass(frozen=True)
class Written:
    """A row as its members' texts; `marks` stand in it and nowhere else."""

    members: tuple[str, ...]
    order: str
    currency: str
    marks: tuple[bytes, ...]

    @property
    def text(self) -> str:
        return row_text(list(self.members))

    @property
    def owner(self) -> str | None:
        return owner_of(self.text)

    def seen_by(self, reader: tuple[str, str]) -> bytes | None:
        """The bytes that a reader should get of it, if any."""
        username, role = reader
        if role == "admin" or (role == "service" and self.owner is not None):
            return self.text.encode()
        if role == "user" and self.owner == username:
            kept = [text for text in self.members if key_of(text) not in HIDDEN]
            return row_text(kept).encode()
        return None


def _named(name: str, value: st.SearchStrategy[str]) -> Any:
    return members(spelled(name), value)


@st.composite
def writings(
    draw: st.DrawFn, number: int, owners: Sequence[str] = USERS, orders: Sequence[str] = ORDERS
) -> Written:
    """A row with a mark in an open field and in a hidden one; now and then it names two owners."""
    mark, secret = f"mark{number:04d}z", f"secret{number:04d}z"
    owner = draw(st.sampled_from(owners))
    strategies = [
        _named("id", st.just(f'"row-{number}"')),
        _named("username", spelled(owner)),
        _named("comment", st.just(f'"{mark}"')),
        _named(draw(st.sampled_from(sorted(HIDDEN))), st.just(f'"{secret}"')),
        *[MORE] * draw(st.integers(0, 2)),
    ]
    texts = [draw(strategy) for strategy in strategies]
    if draw(st.integers(0, 9)) == 0:
        texts.append(draw(_named("username", spelled(draw(st.sampled_from(USERS))))))
    return Written(
        tuple(draw(st.permutations(texts))),
        draw(st.sampled_from(orders)),
        draw(st.sampled_from(CURRENCIES)),
        (mark.encode(), secret.encode()),
    )


@st.composite
def ledgers(draw: st.DrawFn) -> list[Written]:
    """The rows of a ledger, newest first."""
    return [draw(writings(number)) for number in range(draw(st.integers(0, 6)))]


# A ledger that serves them, a gateway before it, and a plain client.


@dataclass
class World:
    """A gateway with pages of two rows and no cache, before a ledger with these rows.

    A `leaky` ledger sends everybody's rows on every route.
    """

    runner: asyncio.Runner
    port: int = 0
    rows: list[Written] = field(default_factory=list)
    leaky: bool = False
    space: str = ""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def selected(self, path: str) -> list[Written]:
        """The rows that the ledger sends on a path."""
        parts = path.split("/")
        if parts[2:3] == ["order"]:
            return [row for row in self.rows if row.order == parts[3]]
        if len(parts) == 2 or self.leaky:
            return self.rows
        username = parts[3] if parts[2] == "users" else parts[2]
        return [row for row in self.rows if row.owner == username]

    async def serve(self, request: web.Request) -> web.Response:
        rows = self.selected(request.path)
        if request.path.endswith("/deposits"):
            return self._response(self._grouped(rows))
        start, limit = int(request.query.get("cursor", "0")), int(request.query["limit"])
        texts = [f"{self.space}{row.text}{self.space}" for row in rows[start : start + limit]]
        link = {}
        if start + limit < len(rows):
            link = {"Link": f'<{request.path}?cursor={start + limit}>; rel="next"'}
        return self._response(f"[{','.join(texts)}]", link)

    def _grouped(self, rows: list[Written]) -> str:
        groups = [
            f'"{currency}"{self.space}:[{",".join(row.text for row in group)}]'
            for currency, group in by_currency(rows)
        ]
        return "{" + ",".join(groups) + "}"

    def _response(self, data: str, headers: dict[str, str] | None = None) -> web.Response:
        text = f'{{"api_message":"OK",{self.space}"api_data":{data}}}'
        return web.Response(body=text.encode(), headers=headers)

    async def get(self, target: str, reader: tuple[str, str]) -> bytes:
        """The whole answer, head and body, byte for byte as it came; only the date is left out."""
        stream, writer = await asyncio.open_connection("127.0.0.1", self.port)
        headers = {"Host": "x", "Connection": "close", "X-Request-Id": "r-1", **caller(*reader)}
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        answer = await stream.read()
        writer.close()
        await writer.wait_closed()
        head, gap, body = answer.partition(b"\r\n\r\n")
        kept = [line for line in head.split(b"\r\n") if not line.startswith(b"Date:")]
        return b"\r\n".join(kept) + gap + body


def by_currency(rows: list[Written]) -> list[tuple[str, list[Written]]]:
    groups = [(name, [row for row in rows if row.currency == name]) for name in CURRENCIES]
    return [(name, group) for name, group in groups if group]


@contextlib.asynccontextmanager
async def _running(world: World) -> AsyncIterator[None]:
    fake = FakeLedger(fallback=world.serve)
    async with contextlib.AsyncExitStack() as stack:
        ledger = fake.server()
        await ledger.start_server()
        stack.push_async_callback(ledger.close)
        url = str(ledger.make_url("")).rstrip("/")
        config = config_for(url, cache__enabled="false", ledger__page_size="2")
        gateway = GatewayServer(create_app(config, shared(config)).api)
        await gateway.start_server()
        stack.push_async_callback(gateway.close)
        assert gateway.port is not None
        world.port = gateway.port
        yield


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with asyncio.Runner() as runner:
        world = World(runner)
        running = _running(world)
        runner.run(running.__aenter__())
        yield world
        runner.run(running.__aexit__(None, None, None))


# Taking answers apart, without a JSON reader in the way.


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body_of(answer: bytes) -> bytes:
    """The body, chunks joined; it must have come to its end."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"Transfer-Encoding: chunked" not in head:
        return body
    joined = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        joined, body = joined + body[:length], body[length:]
        assert body.startswith(b"\r\n")
        body = body[2:]
        if length == 0:
            assert body == b""
            return joined


def rows_of(answer: bytes, message: bytes) -> bytes:
    """What stands in the array of a successful list."""
    body, opening = body_of(answer), b'{"api_message":"%b","api_data":[' % message
    assert status_of(answer) == 200
    assert body.startswith(opening)
    assert body.endswith(b"]}")
    return body[len(opening) : -2]


def next_of(answer: bytes) -> str | None:
    """The target of the link to the next page."""
    for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.startswith(b"Link: "):
            return line.removeprefix(b"Link: <").removesuffix(b'>; rel="next"').decode()
    return None


def assert_nothing_of_others(answer: bytes, rows: list[Written], reader: tuple[str, str]) -> None:
    """No mark of a row that is not the reader's, nor of what is hidden from them in their own."""
    for row in rows:
        visible = row.seen_by(reader) or b""
        assert not [mark for mark in row.marks if mark in answer and mark not in visible]


async def _followed(world: World, target: str, reader: tuple[str, str]) -> list[bytes]:
    """The answers on all pages from a target on."""
    answers: list[bytes] = []
    following: str | None = target
    while following is not None:
        assert len(answers) <= len(world.rows) + 1
        answers.append(await world.get(following, reader))
        following = next_of(answers[-1])
    return answers


async def _check_list(world: World, path: str, message: bytes, reader: tuple[str, str]) -> None:
    sent = world.selected(_asked(path, reader))
    expected = [seen for row in sent if (seen := row.seen_by(reader)) is not None]
    nothing_of_theirs = reader[1] == "user" and "/order/" in path and not expected
    for query in ("", "?limit=1", "?limit=3"):
        answers = await _followed(world, path + query, reader)
        for answer in answers:
            assert_nothing_of_others(answer, world.rows, reader)
        if nothing_of_theirs:
            assert [status_of(answer) for answer in answers] == [403]
        else:
            found = [rows_of(answer, message) for answer in answers]
            assert b",".join(rows for rows in found if rows) == b",".join(expected)


def _asked(path: str, reader: tuple[str, str]) -> str:
    """The path at the ledger."""
    return f"/ledger/{reader[0]}" if path == "/ledger" and reader[1] == "user" else path


@bounded
@given(ledgers(), st.booleans(), SPACE)
def test_a_list_is_what_the_ledger_wrote_for_its_readers_and_nothing_for_others(
    world: World, rows: list[Written], leaky: bool, space: str
) -> None:
    world.rows, world.leaky, world.space = rows, leaky, space
    for reader in READERS:
        world.run(_check_list(world, "/ledger", b"LEDGER_GET_LIST_SUCCESS", reader))


@bounded
@given(ledgers(), SPACE)
def test_an_order_is_what_the_ledger_wrote_for_its_readers_and_nothing_for_others(
    world: World, rows: list[Written], space: str
) -> None:
    world.rows, world.leaky, world.space = rows, False, space
    for reader in READERS:
        world.run(_check_list(world, "/ledger/order/x", b"LEDGER_GET_ORDER_SUCCESS", reader))


@bounded
@given(ledgers(), st.booleans(), SPACE)
def test_a_users_rows_are_what_the_ledger_wrote_for_their_readers_and_nothing_for_others(
    world: World, rows: list[Written], leaky: bool, space: str
) -> None:
    world.rows, world.leaky, world.space = rows, leaky, space
    for reader in (ADMIN, SERVICE, ("alice", "user")):
        world.run(_check_list(world, "/ledger/alice", b"LEDGER_GET_USER_SUCCESS", reader))
    for path in ("/ledger/alice", "/ledger/users/alice/deposits"):
        answer = world.run(world.get(path, ("bob", "user")))
        assert status_of(answer) == 403
        assert_nothing_of_others(answer, rows, ("bob", "user"))


@bounded
@given(ledgers(), st.booleans(), SPACE)
def test_deposits_are_what_the_ledger_wrote_for_their_readers_and_nothing_for_others(
    world: World, rows: list[Written], leaky: bool, space: str
) -> None:
    world.rows, world.leaky, world.space = rows, leaky, space
    path = "/ledger/users/alice/deposits"
    for reader in (ADMIN, SERVICE, ("alice", "user")):
        groups = []
        for currency, group in by_currency(world.selected(path)):
            seen = [text for row in group if (text := row.seen_by(reader)) is not None]
            if seen:
                groups.append(b'"%b":[%b]' % (currency.encode(), b",".join(seen)))
        answer = world.run(world.get(path, reader))
        assert status_of(answer) == 200
        assert body_of(answer) == (
            b'{"api_message":"LEDGER_GET_DEPOSITS_SUCCESS","api_data":{%b}}' % b",".join(groups)
        )
        assert_nothing_of_others(answer, rows, reader)


# Non-interference: what alice gets of an order does not depend on anybody else's rows.


@st.composite
def crowds(draw: st.DrawFn) -> tuple[list[Written], list[Written]]:
    """The same rows of alice's in an order, twice, among different rows of others."""
    count = draw(st.integers(0, 5))
    own = [draw(writings(number, owners=("alice",), orders=("x",))) for number in range(count)]
    own = [row for row in own if row.owner == "alice"]
    return _among(draw, own, 100), _among(draw, own, 200)


def _among(draw: st.DrawFn, own: list[Written], first: int) -> list[Written]:
    others = [
        draw(writings(first + number, owners=("bob", "carol"), orders=("x",)))
        for number in range(draw(st.integers(0, 7)))
    ]
    others = [row for row in others if row.owner != "alice"]
    mixed: list[Written] = []
    places = sorted(draw(st.integers(0, len(own))) for _ in others)
    for index in range(len(own) + 1):
        mixed += [row for row, place in zip(others, places, strict=True) if place == index]
        mixed += own[index : index + 1]
    return mixed


@bounded
@given(crowds(), st.sampled_from(["?limit=1", "?limit=2", "?limit=1000"]))
def test_no_byte_of_a_page_of_an_order_depends_on_other_peoples_rows(
    world: World, crowd: tuple[list[Written], list[Written]], query: str
) -> None:
    assert _alice_gets(world, crowd[0], query) == _alice_gets(world, crowd[1], query)


@bounded
@given(crowds())
def test_no_byte_of_a_whole_order_depends_on_other_peoples_rows(
    world: World, crowd: tuple[list[Written], list[Written]]
) -> None:
    """Also not how the answer is cut into chunks, or whether it is."""
    assert _alice_gets(world, crowd[0], "") == _alice_gets(world, crowd[1], "")


def _alice_gets(world: World, rows: list[Written], query: str) -> list[bytes]:
    world.rows, world.leaky, world.space = rows, False, ""
    return world.run(_followed(world, f"/ledger/order/x{query}", ("alice", "user")))
