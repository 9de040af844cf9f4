"""A gateway's two listeners: opened together, drained on a signal, closed when all is answered."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway import app, demo, logs, metrics, request_lines, server
from gateway.app import Gateway, Shared, shared
from gateway.config import Config
from gateway.demo import introduction
from gateway.middlewares import METRICS
from tests.conftest import ADMIN, caller, config_for
from tests.fakes import FakeLedger
from tests.gateway.processes import free_ports

STOPS = [signal.SIGTERM, signal.SIGINT]
PLACES = ("Gateway", "Operators")
# A caller of whom nothing more is expected.
LAST = {"Connection": "close"}


@dataclass
class Drain:
    """The time that a drain takes, driven by hand: it has begun, and now it is over."""

    seconds: list[float] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.begun.set()
        await self.over.wait()


@pytest.fixture
def drain(monkeypatch: pytest.MonkeyPatch) -> Drain:
    driven = Drain()
    stand_in = SimpleNamespace(**{**vars(asyncio), "sleep": driven.sleep})
    monkeypatch.setattr(server, "asyncio", stand_in)
    return driven


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


@dataclass
class Serving:
    api: str
    ops: str
    task: asyncio.Task[None]


@asynccontextmanager
async def serving(ledger_url: str, **settings: str) -> AsyncIterator[Serving]:
    """A gateway served in this process, started; whoever asks for it stops it."""
    api, ops = free_ports(2)
    config = config_for(ledger_url, server__port=str(api), ops__port=str(ops), **settings)
    started: asyncio.Future[Config] = asyncio.Future()
    task = asyncio.create_task(server.serve(config, shared(config), started=started.set_result))
    try:
        async with asyncio.timeout(10):
            await started
        yield Serving(f"http://127.0.0.1:{api}", f"http://127.0.0.1:{ops}", task)
        async with asyncio.timeout(10):
            await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def refuses(url: str) -> bool:
    """Whether nobody listens there."""
    _, _, port = url.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) != 0


@pytest.mark.parametrize("stop", STOPS)
async def test_after_a_stop_signal_it_is_not_ready_and_still_serves(
    ledger: FakeLedger, drain: Drain, session: aiohttp.ClientSession, stop: signal.Signals
) -> None:
    async with serving(ledger.url, server__drain_s="12.5") as running:
        for url in (running.api, running.ops):
            async with session.get(f"{url}/health/ready") as response:
                assert response.status == 200
                assert response.headers.get("Connection") != "close"
        signal.raise_signal(stop)
        await asyncio.wait_for(drain.begun.wait(), 10)
        for url in (running.api, running.ops):
            async with session.get(f"{url}/health/ready") as response:
                assert response.status == 503
            async with session.get(f"{url}/health/live") as response:
                assert response.status == 200
                assert response.headers["Connection"] == "close"
        async with session.get(f"{running.api}/ledger", headers=caller(*ADMIN)) as response:
            assert response.status == 200
        drain.over.set()
    assert drain.seconds == [12.5]
    assert len(ledger.calls) == 1
    assert refuses(running.api)
    assert refuses(running.ops)


async def test_what_is_in_flight_is_finished_while_health_goes_on(
    ledger: FakeLedger, drain: Drain, session: aiohttp.ClientSession
) -> None:
    drain.over.set()
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        asked.set()
        await answer.wait()
        return web.json_response([])

    ledger.run("GET", "/ledger", slow)
    async with serving(ledger.url) as running:
        read = asyncio.create_task(whole(session, f"{running.api}/ledger"))
        await asyncio.wait_for(asked.wait(), 10)
        signal.raise_signal(signal.SIGTERM)
        await until_it_refuses(running.api)
        async with session.get(f"{running.ops}/health/ready") as response:
            assert response.status == 503
        async with session.get(f"{running.ops}/health") as response:
            assert (await response.json())["draining"] is True
        assert not read.done()
        answer.set()
        assert await read == (200, b'{"api_message":"LEDGER_GET_LIST_SUCCESS","api_data":[]}')


async def test_what_does_not_finish_in_time_is_cut(
    ledger: FakeLedger, drain: Drain, session: aiohttp.ClientSession
) -> None:
    drain.over.set()
    asked, leaving = asyncio.Event(), asyncio.Event()

    async def hangs(_request: web.Request) -> web.Response:
        asked.set()
        await leaving.wait()
        return web.json_response([])

    ledger.run("GET", "/ledger", hangs)
    async with serving(ledger.url, server__shutdown_timeout_s="0.01") as running:
        read = asyncio.create_task(whole(session, f"{running.api}/ledger"))
        await asyncio.wait_for(asked.wait(), 10)
        begun = time.monotonic()
        signal.raise_signal(signal.SIGTERM)
    assert time.monotonic() - begun < 1.5
    with pytest.raises(aiohttp.ClientError):
        await read
    leaving.set()


async def whole(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    async with session.get(url, headers=caller(*ADMIN)) as response:
        return response.status, await response.read()


async def until_it_refuses(url: str) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(refuses, url):
            pass


@pytest.mark.parametrize("taken", ["server__port", "ops__port"])
async def test_a_port_in_use_fails_the_start_and_leaves_nothing_open(
    ledger: FakeLedger, taken: str
) -> None:
    ports = dict(zip(("server__port", "ops__port"), free_ports(2), strict=True))
    settings = {name: str(port) for name, port in ports.items()}
    with socket.create_server(("127.0.0.1", ports[taken])):
        config = config_for(ledger.url, **settings)
        begun: list[Config] = []
        with pytest.raises(OSError, match=str(ports[taken])):
            await server.serve(config, shared(config), started=begun.append)
    assert begun == []
    assert all(refuses(f"http://127.0.0.1:{port}") for port in ports.values())


async def test_ports_that_were_left_to_chance_are_told(
    ledger: FakeLedger, drain: Drain, session: aiohttp.ClientSession
) -> None:
    drain.over.set()
    config = config_for(ledger.url, server__port="0", ops__port="0")
    started: asyncio.Future[Config] = asyncio.Future()
    with capture_logs() as logs:
        task = asyncio.create_task(server.serve(config, shared(config), started=started.set_result))
        async with asyncio.timeout(10):
            told = await started
            for url in (f"http://127.0.0.1:{one.port}" for one in (told.server, told.ops)):
                async with session.get(f"{url}/health/ready", headers=LAST) as response:
                    assert response.status == 200
            signal.raise_signal(signal.SIGTERM)
            await task
    (event,) = [one for one in logs if one["event"] == "started"]
    assert (event["port"], event["ops_port"]) == (told.server.port, told.ops.port)
    assert told.ledger == config.ledger


async def test_workers_can_share_the_ports(ledger: FakeLedger, drain: Drain) -> None:
    drain.over.set()
    api, ops = free_ports(2)
    config = config_for(ledger.url, server__port=str(api), ops__port=str(ops))
    started: list[asyncio.Future[Config]] = [asyncio.Future(), asyncio.Future()]
    tasks = [
        asyncio.create_task(
            server.serve(config, shared(config), reuse_port=True, started=one.set_result)
        )
        for one in started
    ]
    async with asyncio.timeout(10):
        for one in started:
            await one
        # Two servers in one loop have one handler for a signal between them: the second's.
        signal.raise_signal(signal.SIGTERM)
        await tasks[1]
    assert not refuses(f"http://127.0.0.1:{api}")
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# Listening.


def application(*closed: Callable[[], Awaitable[None]]) -> web.Application:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def leave(_app: web.Application) -> None:
        for close in closed:
            await close()

    app = web.Application()
    app.router.add_get("/", hello)
    app.on_cleanup.append(leave)
    return app


async def test_listening_yields_the_port_that_it_got(session: aiohttp.ClientSession) -> None:
    async with server.listening(application(), "127.0.0.1", 0) as port:
        response = await session.get(f"http://127.0.0.1:{port}/")
        assert await response.text() == "hello"
    assert refuses(f"http://127.0.0.1:{port}")


async def test_an_application_that_found_its_port_in_use_is_cleaned_up() -> None:
    cleaned: list[bool] = []

    async def clean() -> None:
        cleaned.append(True)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            async with server.listening(application(clean), "127.0.0.1", port):
                raise AssertionError("not reached")
    assert cleaned == [True]


@pytest.mark.parametrize("stop", STOPS)
async def test_an_application_alone_says_where_it_is_and_ends_on_a_signal(
    monkeypatch: pytest.MonkeyPatch, stop: signal.Signals, session: aiohttp.ClientSession
) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(server, "print", lambda line, flush: said.put_nowait(line), raising=False)
    task = asyncio.create_task(server.serve_alone(application(), "127.0.0.1", 0))
    async with asyncio.timeout(10):
        url = await said.get()
        async with session.get(url) as response:
            assert response.status == 200
        signal.raise_signal(stop)
        await task
    assert refuses(url)


HOSTS = [
    ("127.0.0.1", "http://127.0.0.1:4711"),
    ("gateway.internal", "http://gateway.internal:4711"),
    ("::1", "http://[::1]:4711"),
    ("::", "http://[::]:4711"),
]


@pytest.mark.parametrize(("host", "url"), HOSTS)
async def test_an_application_alone_says_an_address_that_can_be_followed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, url: str
) -> None:
    """No address of the machine's is needed: not every machine has one of each kind."""

    @asynccontextmanager
    async def bound(*_: object) -> AsyncIterator[int]:
        signal.raise_signal(signal.SIGTERM)
        yield 4711

    monkeypatch.setattr(server, "listening", bound)
    await asyncio.wait_for(server.serve_alone(application(), host, 0), 10)
    assert capsys.readouterr().out == f"{url}\n"


@pytest.mark.parametrize(("host", "url"), HOSTS)
def test_a_demo_says_addresses_that_can_be_followed(host: str, url: str) -> None:
    places = {"server__host": host, "server__port": "4711", "ops__host": host, "ops__port": "4712"}
    text = introduction(config_for("http://127.0.0.1", **places), "http://sandbox")
    ops = url.replace("4711", "4712")
    printed = re.findall(r"http://[^\s/']+", text)
    assert printed == [url, url, ops, "http://sandbox", url, url, url]
    assert all(urlsplit(one).hostname for one in printed)


async def test_a_demo_says_the_ports_that_it_got(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(demo, "print", lambda text, flush: said.put_nowait(text), raising=False)
    places = {f"GATEWAY_{name}": "0" for name in ("SERVER__PORT", "OPS__PORT", "SERVER__DRAIN_S")}
    task = asyncio.create_task(demo.demo(None, places))
    async with asyncio.timeout(10):
        text = await said.get()
        api, ops = (re.findall(rf"^{name} +(\S+)", text, re.M)[0] for name in PLACES)
        for url in (f"{api}/health/ready", f"{ops}/health"):
            async with session.get(url, headers=LAST) as response:
                assert response.status == 200
        signal.raise_signal(signal.SIGTERM)
        await task


# Running.


async def loop_type(found: list[str]) -> None:
    found.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])


def test_it_runs_on_uvloop() -> None:
    found: list[str] = []
    server.run(loop_type(found))
    assert found == ["uvloop"]


def test_it_runs_on_asyncio_where_there_is_no_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    found: list[str] = []
    server.run(loop_type(found))
    assert found == ["asyncio"]


def test_what_goes_wrong_comes_out() -> None:
    async def fails() -> None:
        raise OSError("no such port")

    with pytest.raises(OSError, match="no such port"):
        server.run(fails())


async def test_what_was_noted_for_later_is_told_before_the_end(
    ledger: FakeLedger,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line, and a count, that would wait longer than the process lives."""
    made: list[Gateway] = []

    def create_app(config: Config, common: Shared) -> Gateway:
        made.append(app.create_app(config, common))
        return made[0]

    monkeypatch.setattr(server, "create_app", create_app)
    monkeypatch.setattr(request_lines, "_DELAY_S", 3600)
    monkeypatch.setattr(metrics, "_SETTLE_S", 3600)
    monkeypatch.setattr(logs, "_lines", request_lines.Lines(sys.stdout))
    ledger.rows("/ledger/alice", "")
    async with serving(ledger.url, server__drain_s="0") as served:
        async with session.get(f"{served.api}/ledger", headers=caller("alice")) as response:
            assert response.status == 200
        assert '"event":"request"' not in capsys.readouterr().out
        os.kill(os.getpid(), signal.SIGTERM)
    lines = [line for line in capsys.readouterr().out.splitlines() if '"event":"request"' in line]
    assert [json.loads(line)["route"] for line in lines] == ["/ledger"]
    pending = made[0].api[METRICS]._pending
    assert not any(answers.durations for answers in pending.values())


def test_a_process_that_serves_passes_over_what_lasts() -> None:
    program = """
import gc
from gateway import server

async def serve(*_args, **_options):
    print(gc.get_freeze_count() > 10_000, gc.get_threshold()[0])

server.serve = serve
server.work(None, None)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True 10000\n"
