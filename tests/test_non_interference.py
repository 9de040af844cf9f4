"""What one caller receives does not depend on other people's rows: not a byte, however often they
ask, whatever is kept, and by whichever way the answer goes.

The same requests are made of two ledgers in which only other people's rows differ, and of one in
which they change in between; each time of a gateway with the fast path and of one without. All that
alice receives must be the same, but for the date.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway import representations
from gateway.app import create_app, shared
from gateway.endpoints import Endpoint
from gateway.exchange import Answer, Ask
from gateway.server import listening
from gateway.walk import Walk
from tests.conftest import ADMIN, SERVICE, caller, config_for
from tests.fakes import FakeLedger
from tests.gateway.clock import Clock
from tests.gateway.test_exactness import World as Rows
from tests.gateway.test_exactness import Written, crowds, next_of, status_of

TTL = 10.0
ALICE = ("alice", "user")
BOB = ("bob", "user")
OTHERS = (BOB, ("carol", "user"), ("dave", "user"), ADMIN)
EVERYBODY = (ALICE, *OTHERS)
Who = tuple[str, str]

# A failure is told as it was found, not made smaller: an example takes a hundred requests.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
bounded = settings(max_examples=12, deadline=None, phases=PHASES)


# What is done.


@dataclass(frozen=True)
class Get:
    """A read, a few times over. `follows` goes on to the next page where there is one."""

    who: Who
    target: str
    times: int = 1
    gzip: bool = False
    conditional: bool = False
    wish: str = ""
    follows: bool = False


@dataclass(frozen=True)
class Together:
    """Everybody reads the same at once."""

    target: str


@dataclass(frozen=True)
class Write:
    """Somebody registers an action of bob's."""


@dataclass(frozen=True)
class Later:
    """Time passes."""

    seconds: float


Move = Get | Together | Write | Later

ORDER = ["/ledger/order/x", "/ledger/order/x?limit=1", "/ledger/order/x?limit=3"]
LISTS = ["/ledger", "/ledger?limit=1", "/ledger?limit=2", *ORDER]
OWN = ["/ledger/{0}", "/ledger/{0}?limit=2", "/ledger/users/{0}/deposits"]
WISHES = ["", "", "", "no-cache", "no-store", "max-age=3", "stale-if-error=60"]


@st.composite
def gets(draw: st.DrawFn, who: Who) -> Get:
    name = "alice" if who == ADMIN else who[0]
    return Get(
        who,
        draw(st.sampled_from([*LISTS, *OWN])).format(name),
        draw(st.integers(1, 4)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(WISHES)),
        draw(st.booleans()),
    )


MOVES: st.SearchStrategy[list[Move]] = st.lists(
    st.one_of(
        gets(ALICE),
        gets(ALICE),
        st.sampled_from(OTHERS).flatmap(gets),
        st.sampled_from([*LISTS, "/ledger/alice"]).map(Together),
        st.just(Write()),
        st.sampled_from([0.4, 3.0, 6.0, TTL, TTL * 9]).map(Later),
    ),
    min_size=4,
    max_size=10,
)


# Who does it.


@dataclass
class Line:
    """One caller's connection, which stays open: what repeats on it may go the fast path."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: str
    tags: dict[tuple[str, bool], str] = field(default_factory=dict)

    async def get(self, target: str, **headers: str) -> bytes:
        """The whole answer as it came, without its date."""
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
        self.writer.write(f"GET {target} HTTP/1.1\r\n{self.head}{''.join(lines)}\r\n".encode())
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            body = await self._body(head)
        return re.sub(rb"Date: [^\r]*\r\n", b"", head) + body

    async def _body(self, head: bytes) -> bytes:
        if b"\r\nTransfer-Encoding: chunked\r\n" in head:
            body = b""
            while not body.endswith(b"0\r\n\r\n"):
                size = await self.reader.readuntil(b"\r\n")
                body += size + await self.reader.readexactly(int(size, 16) + 2)
            return body
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
        return await self.reader.readexactly(int(length[1])) if length else b""

    async def act(self, move: Get) -> list[bytes]:
        """The answers to a read, one for each time and page."""
        answers: list[bytes] = []
        for _ in range(move.times):
            target: str | None = move.target
            while target is not None:
                answers.append(await self.get(target, **self._headers(move, target)))
                self._note(move, target, answers[-1])
                target = next_of(answers[-1]) if move.follows else None
        return answers

    def _headers(self, move: Get, target: str) -> dict[str, str]:
        tag = self.tags.get((target, move.gzip)) if move.conditional else None
        said = {"Cache_Control": move.wish, "If_None_Match": tag}
        said["Accept_Encoding"] = "gzip" if move.gzip else None
        return {name: value for name, value in said.items() if value}

    def _note(self, move: Get, target: str, answer: bytes) -> None:
        tag = re.search(rb"\r\nETag: ([^\r]*)\r\n", answer)
        if tag is not None:
            self.tags[target, move.gzip] = tag[1].decode()


HEADS = {
    who: "".join(f"{name}: {value}\r\n" for name, value in caller(*who).items())
    for who in (*EVERYBODY, SERVICE)
}
DEPOSIT = b'{"type":"deposit","username":"bob","currency":"BTC","amount":"0.5"}'
POST = (
    f"POST /ledger HTTP/1.1\r\nHost: g\r\n{HEADS[SERVICE]}Connection: close\r\n"
    "Content-Type: application/json\r\nIdempotency-Key: k\r\n"
    f"Content-Length: {len(DEPOSIT)}\r\n\r\n"
)


@dataclass
class Stage:
    """A ledger that serves `rows`, and before it gateways with and without the fast path."""

    runner: asyncio.Runner
    clock: Clock
    rows: Rows
    ports: dict[bool, int] = field(default_factory=dict)

    def run(self, work: Coroutine[Any, Any, list[bytes]]) -> list[bytes]:
        return self.runner.run(work)

    async def serve(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.Response(status=201, text='[{"id":"9","username":"bob"}]')
        return await self.rows.serve(request)

    async def play(
        self, moves: list[Move], crowd: list[Written], other: list[Written], *, fast: bool
    ) -> list[bytes]:
        """What alice receives. Where time passes, so that nothing kept is used, `crowd` and `other`
        take turns.
        """
        # What was kept before is too old for anything.
        self.clock.now = (self.clock.now // 1000 + 2) * 1000
        port, heard = self.ports[fast], []
        async with contextlib.AsyncExitStack() as stack:
            lines = {who: await _line(stack, port, who) for who in EVERYBODY}
            self.rows.rows = crowd
            for move in moves:
                heard += await self._move(move, lines, port)
                if isinstance(move, Later) and move.seconds >= TTL:
                    crowd, other = other, crowd
                    self.rows.rows = crowd
        return heard

    async def _move(self, move: Move, lines: dict[Who, Line], port: int) -> list[bytes]:
        if isinstance(move, Later):
            self.clock.now += move.seconds
        elif isinstance(move, Write):
            assert status_of(await _post(port)) == 201
        elif isinstance(move, Together):
            answers = await asyncio.gather(*(lines[who].get(move.target) for who in EVERYBODY))
            # Who of them was first is not said.
            return [re.sub(rb"(Cache-Status|Age): [^\r]*\r\n", b"", answers[0])]
        else:
            answers = await lines[move.who].act(move)
            return answers if move.who == ALICE else []
        return []


async def _line(stack: contextlib.AsyncExitStack, port: int, who: Who) -> Line:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    return Line(reader, writer, f"Host: g\r\nX-Request-Id: r-1\r\n{HEADS[who]}")


async def _post(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(POST.encode() + DEPOSIT)
    answer = await reader.read()
    writer.close()
    return answer


@contextlib.asynccontextmanager
async def _running(stage: Stage) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        ledger = FakeLedger(fallback=stage.serve).server()
        await ledger.start_server()
        stack.push_async_callback(ledger.close)
        for fast in (True, False):
            config = config_for(
                str(ledger.make_url("")).rstrip("/"),
                server__fast_path=str(fast).lower(),
                ledger__page_size="4",
                cache__ledger_ttl_s=str(TTL),
                cache__max_stale_s="60",
            )
            app = create_app(config, shared(config)).api
            serving = listening(app, "127.0.0.1", 0)
            stage.ports[fast] = await stack.enter_async_context(serving)
        yield


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    clock = Clock()
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        clock.rule(patch)
        # So few rows are worth a coding only here.
        patch.setattr(representations, "_WORTHWHILE", 100)
        stage = Stage(runner, clock, Rows(runner))
        running = _running(stage)
        runner.run(running.__aenter__())
        yield stage
        runner.run(running.__aexit__(None, None, None))


@bounded
@given(crowds(), MOVES)
def test_no_byte_of_what_a_caller_receives_depends_on_other_peoples_rows(
    stage: Stage, crowd: tuple[list[Written], list[Written]], moves: list[Move]
) -> None:
    one, other = crowd
    heard = stage.run(stage.play(moves, one, one, fast=False))
    assert stage.run(stage.play(moves, other, other, fast=False)) == heard
    assert stage.run(stage.play(moves, one, other, fast=False)) == heard
    assert stage.run(stage.play(moves, one, one, fast=True)) == heard
    assert stage.run(stage.play(moves, other, one, fast=True)) == heard


def _one_after_the_other(targets: list[str]) -> list[Move]:
    """Others and then alice read each target until it is known; then alice again, when it is older,
    and when it is too old.
    """
    moves: list[Move] = []
    for target in targets:
        moves += [Get(BOB, target, times=3), Get(ADMIN, target), Get(ALICE, target, times=3)]
    moves.append(Later(4.0))
    moves += [
        Get(ALICE, target, 1, gzip, conditional)
        for target in targets
        for gzip, conditional in KINDS
    ]
    moves.append(Later(TTL))
    return moves + [Get(ALICE, target, times=2) for target in targets]


KINDS = [(False, False), (False, True), (True, False), (True, True)]
# Whole lists first, then their pages, and the other way round: what is kept of one serves another.
TARGETS = [ORDER, ORDER[::-1], ["/ledger", "/ledger?limit=2"]]


@settings(bounded, max_examples=25)
@given(crowds(), st.sampled_from(TARGETS))
def test_not_even_when_others_have_asked_the_same_before(
    stage: Stage, crowd: tuple[list[Written], list[Written]], targets: list[str]
) -> None:
    one, other = crowd
    moves = _one_after_the_other(targets)
    heard = stage.run(stage.play(moves, one, other, fast=False))
    assert stage.run(stage.play(moves, other, one, fast=True)) == heard


def test_what_is_compared_are_answers_of_every_kind(stage: Stage) -> None:
    """Kept and fetched ones, whole and in pages, coded, in chunks, and those that hold nothing."""
    crowd = [
        Written(tuple(f'"{name}":"{text}"' for name, text in members.items()), "x", "BTC", ())
        for number in range(6)
        for owner in ("alice", "bob")
        for members in ({"username": owner, "id": str(number), "comment": "c" * 50},)
    ]
    moves: list[Move] = [
        Get(ALICE, "/ledger/users/alice/deposits", times=4),
        Get(ALICE, "/ledger/users/alice/deposits", times=2, conditional=True),
        Get(ALICE, "/ledger/users/alice/deposits", times=4, gzip=True),
        Get(ALICE, "/ledger/order/x?limit=1", follows=True),
        Get(ALICE, "/ledger/order/x"),
        Get(ALICE, "/ledger/alice?limit=2", times=2, wish="no-cache"),
        Write(),
        Get(ALICE, "/ledger/alice?limit=2"),
        Get(ALICE, "/ledger/bob"),
    ]
    for fast in (True, False):
        heard = b"".join(stage.run(stage.play(moves, crowd, crowd, fast=fast)))
        for part in (
            *(b"HTTP/1.1 200 ", b"HTTP/1.1 304 ", b"HTTP/1.1 403 "),
            *(b"; hit; ttl=10\r\n", b"fwd=uri-miss; stored\r\n", b"fwd=request; stored\r\n"),
            *(b"\r\nContent-Encoding: gzip\r\n", b"\r\nTransfer-Encoding: chunked\r\n"),
            *(b'; rel="next"\r\n', b"\r\nAge: 0\r\n", b"\r\nETag: "),
        ):
            assert part in heard
        assert heard.count(b"HTTP/1.1 ") == 4 + 2 + 4 + 6 + 5


def test_what_repeats_goes_the_fast_path_where_it_is_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[str] = []
    walk = Walk.__call__

    async def noted(self: Walk, endpoint: Endpoint, ask: Ask) -> Answer:
        walked.append(ask.raw_path)
        return await walk(self, endpoint, ask)

    monkeypatch.setattr(Walk, "__call__", noted)
    counts = []
    for fast in (True, False):
        walked.clear()
        stage.run(stage.play([Get(ALICE, "/ledger", times=6)], [], [], fast=fast))
        counts.append(len(walked))
    assert counts == [2, 6]
