"""Gateways that go away under load: whoever was taken in is answered, every write is made once.

A request may go unanswered in one case: it was written into a connection that had been silent for
so long that the gateway was just closing it (RFC 9112 section 9.3). Then it was not carried out,
which tests/gateway/test_connections.py shows. Callers who go on asking never meet that case, and
here nothing at all may be lost.
"""

import asyncio
import itertools
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.conftest import CREDENTIAL, SECRET, SERVICE, caller
from tests.fakes import FakeLedger
from tests.gateway.processes import PATIENCE_S, Running, command, free_ports, is_alive, python

HEAD = "".join(f"{name}: {value}\r\n" for name, value in caller(*SERVICE).items())
DRAIN_S = 0.5
SHUTDOWN_S = 10.0


# Callers.


@dataclass
class Tally:
    """What became of every request."""

    answers: Counter[int] = field(default_factory=Counter)
    written: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    refused: int = 0

    @property
    def answered(self) -> int:
        return self.answers.total()


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    is_last: bool


class Lost(Exception):
    """A request was sent, and no whole answer came."""


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> Answer:
    """The answer to one request, whole. Raises `Lost`."""
    head = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
            body = await reader.readexactly(int(length))
            is_last = b"\r\nconnection: close\r\n" in head.lower()
            if is_last and await reader.read():
                raise Lost(f"there was more behind {head!r}")
            return Answer(int(head.split()[1]), body, is_last)
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        raise Lost(f"{error!r} after {head!r}") from error


def reading(username: str, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"GET /ledger/{username} HTTP/1.1\r\nHost: g\r\n{HEAD}{lines}\r\n".encode()


def writing(key: str, *headers: str) -> bytes:
    body = '{"type":"deposit","username":"alice","currency":"BTC","amount":"0.1"}'
    own = ("Content-Type: application/json", f"Idempotency-Key: {key}")
    lines = "".join(f"{header}\r\n" for header in (*own, f"Content-Length: {len(body)}", *headers))
    return f"POST /ledger HTTP/1.1\r\nHost: g\r\n{HEAD}{lines}\r\n{body}".encode()


@asynccontextmanager
async def connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def once(port: int, data: bytes) -> Answer:
    """The answer to a request on a connection of its own."""
    async with connection(port) as streams:
        return await ask(*streams, data)


class Load:
    """Callers who read and write in turn without a pause, until they are refused or it is over."""

    def __init__(self, port: int) -> None:
        self.tally = Tally()
        self._port = port
        self._over = asyncio.Event()
        self._callers: list[asyncio.Task[None]] = []

    @contextmanager
    def running(self, kept: int, short: int) -> Iterator[None]:
        """So many callers who keep their connection, and so many who make one for each request."""
        for number in range(kept):
            self._callers.append(asyncio.create_task(self._call(f"kept{number}")))
        for number in range(short):
            self._callers.append(
                asyncio.create_task(self._call(f"short{number}", "Connection: close"))
            )
        try:
            yield
        finally:
            for task in self._callers:
                task.cancel()

    async def ended(self) -> Tally:
        """When every caller was refused."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._callers)
        return self.tally

    async def stopped(self) -> Tally:
        """When every caller has had the answer to their last request."""
        self._over.set()
        return await self.ended()

    async def _call(self, name: str, *headers: str) -> None:
        numbers = itertools.count()
        while not self._over.is_set():
            try:
                async with connection(self._port) as streams:
                    await self._visit(*streams, name, numbers, *headers)
            except ConnectionRefusedError:
                self.tally.refused += 1
                return
            except (Lost, OSError) as error:
                self.tally.lost.append(f"{name}: {error!r}")

    async def _visit(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        name: str,
        numbers: Iterator[int],
        *headers: str,
    ) -> None:
        """Asks for as long as the connection is kept."""
        while not self._over.is_set():
            number = next(numbers)
            key = f"{name}-{number}"
            data = writing(key, *headers) if number % 2 else reading(name, *headers)
            answer = await ask(reader, writer, data)
            self.tally.answers[answer.status] += 1
            if answer.status == 201:
                self.tally.written.append(key)
            if (key if number % 2 else name).encode() not in answer.body:
                self.tally.lost.append(f"{key} had another's answer: {answer.body!r}")
            if answer.is_last:
                return


# The ledger.


class Book:
    """What a fake ledger was told to write, and how often; it can hold its answers back."""

    def __init__(self, ledger: FakeLedger) -> None:
        self.url = ledger.url
        self.entries: Counter[str] = Counter()
        self._calls: asyncio.Queue[str] = asyncio.Queue()
        self.open = asyncio.Event()
        self.open.set()
        ledger.fallback = self._answer

    async def writes(self, count: int) -> None:
        """Returns when so many more writes have come."""
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(count):
                await self._calls.get()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.method != "POST":
            name = request.path.rpartition("/")[2]
            return web.json_response([{"id": "1", "username": name}])
        key = request.headers["Idempotency-Key"]
        self.entries[key] += 1
        self._calls.put_nowait(key)
        await self.open.wait()
        row = {"id": key, "username": "alice"}
        return web.json_response({"api_message": "OK", "api_data": row}, status=201)


@pytest.fixture
def book(ledger: FakeLedger) -> Book:
    return Book(ledger)


# The gateways.


@dataclass(frozen=True)
class Place:
    """Where gateways listen, and what they are told."""

    port: int
    ops: int
    folder: Path
    environ: dict[str, str]

    @asynccontextmanager
    async def serving(self, workers: int = 2) -> AsyncIterator[Running]:
        """A gateway in processes of its own, up and answering."""
        arguments = ("serve", "--workers", str(workers))
        async with command(*arguments, cwd=self.folder, **self.environ) as running:
            for _ in range(workers):
                await running.line('"started"')
            yield running


@pytest.fixture
def place(tmp_path: Path, book: Book) -> Place:
    port, ops = free_ports(2)
    environ = {
        "LEDGER__BASE_URL": book.url,
        "LEDGER__TOKEN": CREDENTIAL,
        "AUTH__SECRET": SECRET,
        "SERVER__PORT": str(port),
        "OPS__PORT": str(ops),
        "SERVER__DRAIN_S": str(DRAIN_S),
        "SERVER__SHUTDOWN_TIMEOUT_S": str(SHUTDOWN_S),
        "CACHE__ENABLED": "false",
    }
    return Place(port, ops, tmp_path, environ)


READY = b"GET /health/ready HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"


async def until_refused(port: int) -> list[int]:
    """What readiness was, asked again and again, until nobody listened any more."""
    statuses = []
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                statuses.append((await once(port, READY)).status)
            except ConnectionRefusedError:
                return statuses


# Going away.


async def test_two_workers_that_are_told_to_stop_under_load_lose_no_request(
    place: Place, book: Book
) -> None:
    load = Load(place.port)
    async with place.serving() as running:
        with load.running(kept=30, short=30):
            await book.writes(150)
            before = load.tally.answered
            begun = time.monotonic()
            running.send(signal.SIGTERM)
            tally = await load.ended()
            status, out, err = await running.ended()
            took = time.monotonic() - begun
    print(f"{tally.answers} answers, {tally.answered - before} of them after the signal")
    assert tally.lost == []
    assert set(tally.answers) == {200, 201}
    assert tally.refused == 60
    assert tally.answered - before > 60
    assert book.entries == Counter(tally.written)
    assert (status, err) == (0, "")
    assert out.count('"stopped"') == 2
    assert took < DRAIN_S + SHUTDOWN_S


# How many processes, and what they are sent after the first signal.
STOPS: list[tuple[int, tuple[signal.Signals, ...]]] = [
    (2, ()),
    (1, (signal.SIGTERM,)),
    (2, (signal.SIGINT, signal.SIGTERM, signal.SIGINT)),
]


@pytest.mark.parametrize(("workers", "more"), STOPS, ids=["once", "alone", "impatiently"])
async def test_writes_that_a_slow_ledger_is_at_are_finished_and_answered(
    place: Place, book: Book, workers: int, more: tuple[signal.Signals, ...]
) -> None:
    """Whoever sends another signal while the gateway is going away changes nothing."""
    book.open.clear()
    keys = {f"slow{number}" for number in range(20)}
    async with place.serving(workers) as running:
        assert (await once(place.port, READY)).status == 200
        writes = [asyncio.create_task(once(place.port, writing(key))) for key in sorted(keys)]
        await book.writes(20)
        running.send(signal.SIGTERM)
        ready = await until_refused(place.port)
        assert ready[-1] == 503
        for number in more:
            running.send(number)
            assert (await once(place.ops, READY)).status == 503
        assert not any(write.done() for write in writes)
        book.open.set()
        answers = await asyncio.gather(*writes)
        status, out, err = await running.ended()
    assert [(answer.status, answer.is_last) for answer in answers] == [(201, True)] * 20
    assert book.entries == Counter(keys)
    assert (status, err) == (0, "")
    assert out.count('"stopped"') == workers


async def test_restarts_one_after_the_other_on_one_port_refuse_nobody_and_lose_nothing(
    place: Place, book: Book
) -> None:
    load = Load(place.port)
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(place.serving())
        with load.running(kept=5, short=100):
            await book.writes(100)
            for _ in range(3):
                before = load.tally.answered
                new = await stack.enter_async_context(place.serving())
                old.send(signal.SIGTERM)
                status, _, err = await old.ended()
                assert (status, err) == (0, "")
                assert load.tally.answered - before > 105
                old = new
            tally = await load.stopped()
    print(f"{tally.answers} answers")
    assert (tally.lost, tally.refused) == ([], 0)
    assert set(tally.answers) == {200, 201}
    assert book.entries == Counter(tally.written)


# Workers that are killed.

# Workers whose death just after their birth is no sign that the next ones will die, too, and a
# parent that replaces none before it is told to.
SERVE = """
import signal, sys
from gateway import workers
from gateway.__main__ import main

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
workers._INFANCY_S = 0.0
fork, born = workers.Workers._fork, []

def fork_when_told(parent):
    if len(born) >= 2:
        signal.sigwait({signal.SIGUSR1})
    born.append(parent)
    fork(parent)

workers.Workers._fork = fork_when_told
sys.exit(main(["serve", "--workers", "2"]))
"""


async def test_a_worker_that_is_killed_is_replaced_and_the_other_serves_all_the_while(
    place: Place,
) -> None:
    folder = place.folder / "counts"
    folder.mkdir()
    environ = {**place.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "SERVER__DRAIN_S": "0"}
    async with python("-c", SERVE, cwd=place.folder, **environ) as running:
        for _ in range(2):
            await running.line('"started"')
        first = workers_seen(folder)
        assert len(first) == 2
        # What goes on while the parent stands still is what the parent does not do.
        running.send(signal.SIGSTOP)
        await all_are_served(place.port)
        running.send(signal.SIGCONT)
        for victim in first:
            async with AsyncExitStack() as stack:
                kept = [await stack.enter_async_context(connection(place.port)) for _ in range(40)]
                assert {(await ask(*streams, READS)).status for streams in kept} == {200}
                os.kill(victim, signal.SIGKILL)
                await running.line('"worker died"')
                answers = [await answered(*streams) for streams in kept]
            # The connections of the one have ended, those of the other go on.
            assert set(answers) == {True, False}
            await all_are_served(place.port)
            running.send(signal.SIGUSR1)
            await running.line('"started"')
        assert len(workers_seen(folder)) == 4
        running.send(signal.SIGTERM)
        status, _, err = await running.ended()
    assert (status, err) == (0, "")
    assert not any(is_alive(worker) for worker in workers_seen(folder))


READS = reading("alice")


def workers_seen(folder: Path) -> set[int]:
    """All workers that ever were, by the files that they count in."""
    return {int(path.stem.rpartition("_")[2]) for path in folder.glob("counter_*.db")}


async def all_are_served(port: int) -> None:
    """If one who does not answer listened, too, some of so many would have come to it."""
    answers = await asyncio.gather(*(once(port, READS) for _ in range(60)))
    assert [answer.status for answer in answers] == [200] * 60


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    try:
        return (await ask(reader, writer, READS)).status == 200
    except Lost:
        return False
