"""Each command, as an operator types it: what it prints, when it fails, and how it goes away."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import yaml
from aiohttp import web
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from gateway.__main__ import main
from gateway.config import MASK, read
from gateway.endpoints import ENDPOINTS
from tests.conftest import ADMIN, CREDENTIAL, SECRET, MakeClient, caller
from tests.fakes import FakeLedger
from tests.gateway.processes import (
    PATIENCE_S,
    Running,
    command,
    free_ports,
    is_alive,
    python,
    result,
)

LEDGER_URL = "http://127.0.0.1:1"
ENOUGH = {"LEDGER__BASE_URL": LEDGER_URL, "AUTH__SECRET": SECRET}
ARGUMENTS = ["-m", "gateway"]
COMMANDS = ["demo", "serve", "sandbox", "token", "check", "routes", "openapi"]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose every request has a connection of its own."""
    connector = aiohttp.TCPConnector(force_close=True)
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """For commands run in this process: an empty folder, and only the settings that are given."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)

    def settings(**given: str) -> None:
        for name, value in given.items():
            monkeypatch.setenv(f"GATEWAY_{name}", value)

    return settings


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, SECRET, algorithms=["HS256"])
    return claims


# Usage.


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert [word for word in COMMANDS if f"\n    {word} " in out] == COMMANDS


async def test_an_unknown_command_is_bad_usage(tmp_path: Path) -> None:
    status, out, err = await result("nonsense", cwd=tmp_path)
    assert (status, out) == (2, "")
    assert "invalid choice: 'nonsense'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--nonsense"],
        ["serve", "--workers", "0"],
        ["serve", "--workers", "-1"],
        ["serve", "--workers", "two"],
        ["serve", "--nonsense"],
        ["sandbox", "--rows", "0"],
        ["sandbox", "--port", "http"],
        ["sandbox", "--port", "-1"],
        ["sandbox", "--port", "65536"],
        ["token"],
        ["token", "--username", "alice"],
        ["token", "--role", "user"],
        ["token", "--username", "alice", "--role", "root"],
        ["token", "--username", "alice", "--role", "user", "--ttl", "0"],
        ["check", "file.yaml"],
    ],
)
def test_bad_usage_is_told_and_nothing_is_done(
    alone: Callable[..., None], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    alone(**ENOUGH)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: ledger-gateway")


# token


async def test_a_gateway_with_the_same_secret_accepts_a_token(
    ledger: FakeLedger, make_client: MakeClient, tmp_path: Path
) -> None:
    arguments = ["token", "--username", "alice", "--role", "user"]
    status, out, err = await result(*arguments, cwd=tmp_path, AUTH__SECRET=SECRET)
    assert (status, err) == (0, "")
    token = out.removesuffix("\n")
    client = await make_client()
    headers = {"Authorization": f"Bearer {token}", "username": "alice"}
    assert (await client.get("/ledger", headers=headers)).status == 200
    assert [call.path for call in ledger.calls] == ["/ledger/alice"]
    claims = claims_of(token)
    assert claims["exp"] - claims["iat"] == 3600


@pytest.mark.parametrize("role", ["admin", "service", "user"])
async def test_a_token_carries_what_was_asked_for(
    alone: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    make_client: MakeClient,
    role: str,
) -> None:
    addressed = {"AUTH__ISSUER": "issuer", "AUTH__AUDIENCE": "audience"}
    alone(AUTH__SECRET=SECRET, **addressed)
    assert main(["token", "--username", "bob", "--role", role, "--ttl", "90"]) == 0
    token = capsys.readouterr().out.strip()
    claims: Any = jwt.decode(token, SECRET, algorithms=["HS256"], audience="audience")
    assert (claims["username"], claims["role"]) == ("bob", role)
    assert claims["exp"] - claims["iat"] == 90
    client = await make_client(auth__issuer="issuer", auth__audience="audience")
    headers = {"Authorization": token, "username": "bob"}
    assert (await client.get("/ledger", headers=headers)).status == 200


async def test_without_a_secret_there_is_no_token(tmp_path: Path) -> None:
    arguments = ["token", "--username", "alice", "--role", "user"]
    status, out, err = await result(*arguments, cwd=tmp_path)
    assert (status, out) == (1, "")
    assert "auth.secret: HS256 needs one" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--username", "../alice"], "user name"),
        (["--username", ""], "user name"),
        (["--username", "alice", "--ttl", "7201"], "auth.max_lifetime_s"),
    ],
)
def test_a_token_that_the_gateway_would_refuse_is_not_made(
    alone: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    complaint: str,
) -> None:
    alone(AUTH__SECRET=SECRET, AUTH__MAX_LIFETIME_S="7200")
    assert main(["token", "--role", "user", *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err


def test_a_token_names_its_user_where_the_gateway_looks(
    alone: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    alone(AUTH__SECRET=SECRET, AUTH__USERNAME_CLAIMS="preferred_username")
    assert main(["token", "--username", "alice", "--role", "user"]) == 0
    assert claims_of(capsys.readouterr().out.strip())["preferred_username"] == "alice"


def test_with_public_keys_alone_there_is_no_token(
    alone: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    alone(AUTH__ALGORITHMS="RS256", AUTH__JWKS_URL="https://keys.example")
    assert main(["token", "--username", "alice", "--role", "user"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "a secret" in err


def test_a_token_can_be_made_from_a_file(
    alone: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alone()
    (tmp_path / "other.yaml").write_text(json.dumps({"auth": {"secret": SECRET}}))
    arguments = ["token", "--username", "alice", "--role", "user", "--config", "other.yaml"]
    assert main(arguments) == 0
    assert claims_of(capsys.readouterr().out.strip())["sub"] == "alice"


# check


async def test_check_prints_what_is_in_effect_without_a_secret(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("server: {port: 9090}\nauth: {secret: overridden}\n")
    environ = {**ENOUGH, "LEDGER__TOKEN": CREDENTIAL, "OPS__HOST": "::1"}
    status, out, err = await result("check", cwd=tmp_path, **environ)
    assert (status, err) == (0, "")
    printed = yaml.safe_load(out)
    assert printed["server"]["port"] == 9090
    assert printed["ops"]["host"] == "::1"
    assert printed["ledger"]["base_url"] == LEDGER_URL
    assert printed["auth"]["secret"] == printed["ledger"]["token"] == MASK
    assert not any(secret in out for secret in (SECRET, CREDENTIAL, "overridden"))


def test_what_check_prints_is_a_configuration(
    alone: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alone(**ENOUGH)
    assert main(["check"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    environ = {f"GATEWAY_{name}": value for name, value in ENOUGH.items()}
    assert read(printed, environ) == read(None, environ)


async def test_check_names_every_mistake_and_no_secret(tmp_path: Path) -> None:
    text = "server: {port: no}\nauth: {secret: hunter2}\nnonsense: {}\n"
    (tmp_path / "other.yaml").write_text(text)
    arguments = ["check", "--config", "other.yaml"]
    status, out, err = await result(*arguments, cwd=tmp_path, CACHE__ENABLED="maybe", CACHE__X="1")
    assert (status, out) == (1, "")
    for named in (
        "GATEWAY_CACHE__X: unknown setting",
        "auth.secret: HS256 needs at least 32 bytes",
        "cache.enabled: ",
        "ledger.base_url: ",
        "nonsense: unknown section",
        "server.port: ",
    ):
        assert f"\n  {named}" in err
    assert "hunter2" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["check", "serve", "demo"])
def test_a_file_that_is_not_there_is_named(
    alone: Callable[..., None], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    alone(**ENOUGH, NONSENSE__KEY="1")
    arguments = [name] if name == "demo" else [name, "--config", "missing.yaml"]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "GATEWAY_NONSENSE__KEY: unknown setting" in err
    assert ("missing.yaml" in err) is (name != "demo")


# routes and openapi


async def test_routes_prints_every_route_and_who_may_call_it(tmp_path: Path) -> None:
    status, out, err = await result("routes", cwd=tmp_path)
    assert (status, err) == (0, "")
    printed = {tuple(line.split()[:2]): line.split(maxsplit=2)[2] for line in out.splitlines()}
    assert list(printed) == [(endpoint.method, endpoint.path) for endpoint in ENDPOINTS]
    rates = "/v1/organizations/{organization_id}/ledgers/{ledger_id}/instrument-rates"
    staff, everybody = "admin: all, service: all", "admin: all, service: all, user: all"
    assert printed == {
        ("GET", "/ledger"): f"{staff}, user: own rows",
        ("POST", "/ledger"): staff,
        ("GET", "/ledger/order/{order_id}"): f"{staff}, user: own rows",
        ("GET", "/ledger/{username}"): f"{staff}, user: own name only",
        ("GET", "/ledger/users/{username}/deposits"): f"{staff}, user: own name only",
        ("POST", rates): staff,
        ("GET", rates): everybody,
        ("GET", f"{rates}/{{id}}"): everybody,
        ("PATCH", f"{rates}/{{id}}"): staff,
        ("DELETE", f"{rates}/{{id}}"): staff,
    }


async def test_openapi_prints_the_document_that_is_served(
    make_client: MakeClient, tmp_path: Path
) -> None:
    status, out, err = await result("openapi", cwd=tmp_path)
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert isinstance(document, dict)
    assert document == await (await (await make_client()).get("/openapi.json")).json()


# sandbox


async def test_the_sandbox_serves_so_many_rows_where_it_says(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    arguments = ["sandbox", "--port", "0", "--rows", "100"]
    async with command(*arguments, cwd=tmp_path) as running:
        url = (await running.line("http://")).strip()
        assert (await session.get(f"{url}/health")).status == 200
        rows = (await (await session.get(f"{url}/ledger")).json())["api_data"]
        running.send(signal.SIGTERM)
        assert await running.ended() == (0, f"{url}\n", "")
    assert len({row["id"] for row in rows}) == 100


async def test_the_sandbox_asks_for_the_credential_that_it_was_given(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    arguments = ["sandbox", "--port", str(port)]
    async with command(*arguments, cwd=tmp_path, LEDGER__TOKEN=CREDENTIAL) as running:
        url = (await running.line("http://")).strip()
        assert url == f"http://127.0.0.1:{port}"
        assert (await session.get(f"{url}/ledger")).status == 401
        right = {"Authorization": f"Bearer {CREDENTIAL}", "username": "admin"}
        assert (await session.get(f"{url}/ledger", headers=right)).status == 200
        running.send(signal.SIGINT)
        status, _, err = await running.ended()
    assert (status, err) == (0, "")


# serve


@dataclass
class Served:
    """A gateway in a process of its own."""

    running: Running
    api: str
    ops: str


@asynccontextmanager
async def serving(
    folder: Path, ledger_url: str, *arguments: str, **settings: str
) -> AsyncIterator[Served]:
    """`serve`, up and answering."""
    api, ops = free_ports(2)
    environ = {
        **{"LEDGER__BASE_URL": ledger_url, "LEDGER__TOKEN": CREDENTIAL, "AUTH__SECRET": SECRET},
        **{"SERVER__PORT": str(api), "OPS__PORT": str(ops), "SERVER__DRAIN_S": "0.1"},
        **settings,
    }
    async with command("serve", *arguments, cwd=folder, **environ) as running:
        await running.line('"started"')
        yield Served(running, f"http://127.0.0.1:{api}", f"http://127.0.0.1:{ops}")


@dataclass
class SlowLedger:
    """Makes reads of `/ledger` wait at a ledger until they are let go."""

    ledger: FakeLedger
    asked: asyncio.Event
    answer: asyncio.Event


@pytest.fixture
def slow(ledger: FakeLedger) -> SlowLedger:
    held = SlowLedger(ledger, asyncio.Event(), asyncio.Event())

    async def script(_request: web.Request) -> web.Response:
        held.asked.set()
        await held.answer.wait()
        return web.json_response([{"id": "1", "username": "alice"}])

    ledger.run("GET", "/ledger", script)
    return held


async def reached(condition: Callable[[], Awaitable[bool]]) -> None:
    """Asks again and again, but not for ever."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            pass


async def status_of(session: aiohttp.ClientSession, url: str) -> int | None:
    """The status of an answer, None if nobody listens."""
    try:
        async with session.get(url) as response:
            return response.status
    except aiohttp.ClientConnectionError:
        return None


async def whole(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with session.get(url, headers=caller(*ADMIN)) as response:
        return response.status, await response.json()


async def test_serve_finishes_what_is_in_flight_before_it_goes(
    slow: SlowLedger, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with serving(tmp_path, slow.ledger.url) as served:
        assert await status_of(session, f"{served.api}/health/ready") == 200
        assert await status_of(session, f"{served.ops}/health/ready") == 200
        read = asyncio.create_task(whole(session, f"{served.api}/ledger"))
        await asyncio.wait_for(slow.asked.wait(), PATIENCE_S)
        served.running.send(signal.SIGTERM)

        async def unready() -> bool:
            return await status_of(session, f"{served.ops}/health/ready") == 503

        async def closed() -> bool:
            return await status_of(session, f"{served.api}/health/live") is None

        await reached(unready)
        await reached(closed)
        assert await unready()
        assert not read.done()
        slow.answer.set()
        status, body = await read
        assert (status, body["api_data"]) == (200, [{"id": "1", "username": "alice"}])
        status, out, err = await served.running.ended()
    assert (status, err) == (0, "")
    assert [json.loads(line)["event"] for line in out.splitlines()][-1] == "stopped"
    assert SECRET not in out
    assert CREDENTIAL not in out


async def test_serve_ends_in_good_order_on_ctrl_c(
    ledger: FakeLedger, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with serving(tmp_path, ledger.url, SERVER__DRAIN_S="0") as served:
        assert (await whole(session, f"{served.api}/ledger"))[0] == 200
        served.running.send(signal.SIGINT)
        status, _, err = await served.running.ended()
    assert (status, err) == (0, "")
    assert len(ledger.calls) == 1


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
async def test_serve_says_that_its_port_is_in_use(tmp_path: Path, workers: list[str]) -> None:
    (ops,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {**ENOUGH, "SERVER__PORT": port, "OPS__PORT": str(ops)}
        status, _, err = await result("serve", *workers, cwd=tmp_path, **environ)
    assert status == 1
    assert port in err
    assert "in use" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
async def test_serve_says_that_it_cannot_listen_on_its_host(
    tmp_path: Path, workers: list[str]
) -> None:
    environ = {**ENOUGH, "SERVER__HOST": "a..b"}
    status, _, err = await result("serve", *workers, cwd=tmp_path, **environ)
    assert status == 1
    assert "label" in err
    assert "Traceback" not in err


async def test_serve_names_what_is_missing(tmp_path: Path) -> None:
    status, out, err = await result("serve", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert "ledger.base_url: " in err
    assert "auth.secret: " in err
    assert "Traceback" not in err


# serve --workers


class Counts:
    """What the workers count, each in files of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def workers(self) -> set[int]:
        """The process ids of all workers that ever were."""
        return {int(path.stem.rpartition("_")[2]) for path in self._folder.glob("counter_*.db")}

    def answered(self, worker: int) -> float:
        """How many requests a worker has answered."""
        return self._sum(worker, "counter", "gateway_requests_total")

    def in_flight(self, worker: int) -> float:
        return self._sum(worker, "gauge_livesum", "gateway_requests_in_flight")

    def _sum(self, worker: int, kind: str, name: str) -> float:
        merge: Any = MultiProcessCollector.merge
        families = merge([str(self._folder / f"{kind}_{worker}.db")])
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)


@pytest.fixture
def counts(tmp_path: Path) -> Counts:
    (tmp_path / "counts").mkdir()
    return Counts(tmp_path / "counts")


async def scraped(session: aiohttp.ClientSession, ops: str) -> dict[str, float]:
    """The sum of each metric over its labels, without the answers to operators."""
    async with session.get(f"{ops}/metrics") as response:
        text = await response.text()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("route") != "/metrics":
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


async def test_workers_share_the_work_and_one_that_is_killed_is_replaced(
    slow: SlowLedger, session: aiohttp.ClientSession, tmp_path: Path, counts: Counts
) -> None:
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counts")}
    ledger_url = slow.ledger.url
    async with serving(tmp_path, ledger_url, "--workers", "2", **folder) as served:
        await served.running.line('"started"')
        workers = counts.workers()
        assert len(workers) == 2
        asked = 0

        async def both_have_answered() -> bool:
            nonlocal asked
            asked += 1
            assert (await whole(session, f"{served.api}/ledger/alice"))[0] == 200
            return all(counts.answered(worker) for worker in workers)

        await reached(both_have_answered)

        # A worker counts what it answered a moment later.
        async def all_are_counted() -> bool:
            return (await scraped(session, served.ops))["gateway_requests_total"] == asked

        await reached(all_are_counted)
        idle = (await scraped(session, served.ops))["gateway_requests_in_flight"]

        # Old enough that its death is not taken for a fault of the configuration.
        async def grown_up() -> bool:
            async with session.get(f"{served.ops}/health") as response:
                return (await response.json())["uptime_s"] > 2.0

        await reached(grown_up)
        # Not through the session, which would send it again when its connection dies.
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.api.split(":")[2]))
        head = [f"{name}: {value}" for name, value in caller(*ADMIN).items()]
        request = "\r\n".join(["GET /ledger HTTP/1.1", "Host: gateway", *head, "", ""])
        writer.write(request.encode())
        await asyncio.wait_for(slow.asked.wait(), PATIENCE_S)
        (busy,) = [worker for worker in workers if counts.in_flight(worker)]
        os.kill(busy, signal.SIGKILL)
        assert await reader.read() == b""
        writer.close()
        slow.answer.set()
        await served.running.line('"worker died"')
        await served.running.line('"started"')
        (replacement,) = counts.workers() - workers
        assert not is_alive(busy)

        async def replacement_has_answered() -> bool:
            await whole(session, f"{served.api}/ledger/alice")
            return counts.answered(replacement) > 0

        await reached(replacement_has_answered)
        sums = await scraped(session, served.ops)
        assert sums["gateway_requests_total"] > asked
        assert sums["gateway_requests_in_flight"] == idle
        served.running.send(signal.SIGTERM)
        status, out, err = await served.running.ended()
    assert (status, err) == (0, "")
    assert out.count('"stopped"') == 2
    assert not any(is_alive(worker) for worker in counts.workers())


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
async def test_when_nobody_reads_the_log_any_more_nothing_else_changes(
    ledger: FakeLedger, session: aiohttp.ClientSession, tmp_path: Path, workers: list[str]
) -> None:
    drain = {"SERVER__DRAIN_S": "1"}
    async with serving(tmp_path, ledger.url, *workers, **drain) as served:
        served.running.stop_reading()
        assert (await whole(session, f"{served.api}/ledger"))[0] == 200
        if workers:
            await one_is_killed_and_replaced(session, served)
        served.running.send(signal.SIGTERM)

        async def unready() -> bool:
            return await status_of(session, f"{served.api}/health/ready") == 503

        await reached(unready)
        status, _, err = await served.running.ended()
    assert (status, err) == (0, "")


def children_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in found.split()]


async def one_is_killed_and_replaced(session: aiohttp.ClientSession, served: Served) -> None:
    """Waits until one of two workers is old enough to be replaced, kills it, and waits for that."""
    supervisor = served.running.process.pid

    async def grown_up() -> bool:
        async with session.get(f"{served.ops}/health") as response:
            return float((await response.json())["uptime_s"]) > 2.5

    async def replaced() -> bool:
        found = children_of(supervisor)
        return len(found) == 2 and killed not in found

    await reached(grown_up)
    killed = children_of(supervisor)[0]
    os.kill(killed, signal.SIGKILL)
    await reached(replaced)
    assert (await whole(session, f"{served.api}/ledger"))[0] == 200


@pytest.mark.parametrize("name", ["serve", "demo", "routes", "openapi", "check"])
async def test_without_a_standard_output_nothing_is_done(tmp_path: Path, name: str) -> None:
    program = f"import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *{ARGUMENTS}"
    async with python("-c", f"{program}, {name!r}])", cwd=tmp_path, **ENOUGH) as running:
        status, _, err = await running.ended()
    assert (status, err) == (1, "standard output is closed\n")


@pytest.mark.parametrize("closed", [[0], [2], [0, 2]])
async def test_what_else_was_closed_is_not_taken_for_a_connection(
    ledger: FakeLedger, tmp_path: Path, closed: list[int]
) -> None:
    api, ops = free_ports(2)
    settings = {"LEDGER__BASE_URL": ledger.url, "SERVER__PORT": str(api), "OPS__PORT": str(ops)}
    closing = f"import os, sys; [os.close(number) for number in {closed}]"
    program = f"{closing}; os.execv(sys.executable, [sys.executable, *{ARGUMENTS}, 'serve'])"
    environ = {**ENOUGH, **settings, "SERVER__DRAIN_S": "0"}
    async with python("-c", program, cwd=tmp_path, **environ) as running:
        await running.line('"started"')
        running.send(signal.SIGTERM)
        status, out, _ = await running.ended()
    assert status == 0
    assert '"stopped"' in out


def unreserved(folder: Path) -> list[str]:
    """The files that hold less room on the disk than they say that they are long."""
    files = {file.name: file.stat() for file in folder.iterdir()}
    assert files
    return [name for name, file in files.items() if file.st_blocks * 512 < file.st_size]


async def test_workers_that_count_need_no_more_room_when_the_disk_is_full(
    ledger: FakeLedger, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    (tmp_path / "counts").mkdir()
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counts")}
    async with serving(tmp_path, ledger.url, "--workers", "2", **folder) as served:
        await served.running.line('"started"')
        assert (await whole(session, f"{served.api}/ledger/alice"))[0] == 200

        async def counted() -> bool:
            return (await scraped(session, served.ops))["gateway_requests_total"] == 1

        await reached(counted)
        assert unreserved(tmp_path / "counts") == []


async def test_workers_clear_away_what_they_counted(ledger: FakeLedger, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    settings = {"TMPDIR": str(tmp_path / "temporary"), "SERVER__DRAIN_S": "0"}
    async with serving(tmp_path, ledger.url, SERVER__WORKERS="2", **settings) as served:
        await served.running.line('"started"')
        assert list((tmp_path / "temporary").iterdir())
        served.running.send(signal.SIGINT)
        status, _, err = await served.running.ended()
    assert (status, err) == (0, "")
    assert list((tmp_path / "temporary").iterdir()) == []
