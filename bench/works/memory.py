"""What a worker holds in memory, idle and after work."""

import json
import resource
import socket
from contextlib import ExitStack

from bench.figures import Bound, Result, series
from bench.open_loop import is_whole
from bench.processes import HOST, BenchError, Server, ask, free_port
from bench.rows import envelope, identity, user
from bench.stage import PATH, Stage, expect
from bench.wrk import head

ENTRIES = 10_000
ENTRY_BYTES = 1024
CONNECTIONS = 5_000
# Beside the connections: log, listeners, libraries.
_OTHER_FILES = 200
_READ = 1 << 16


def resident(stage: Stage, result: Result) -> None:
    """Idle; with a full cache; with many connections that ask nothing."""
    entry = _entry()
    with stage.ledger(envelope(["alice"] * 10), entry) as ledger:
        idle = [_idle(stage, ledger) for _ in range(stage.rounds)]
        full = _with_entries(stage, ledger)
        crowded = _with_connections(stage, ledger)
    result.notes.append(f"A cached reply of the ledger has {len(entry)} bytes.")
    for what, values, most in (
        ("memory, idle", idle, 70),
        (f"memory, {ENTRIES} entries of 1 KiB", [full], 100),
        (f"memory, {CONNECTIONS} idle connections", [crowded], 130),
    ):
        result.bounds.append(Bound(what, series("gateway", "MiB", values), most))


def _entry() -> bytes:
    """A reply of about 1 KiB in which a user has a row."""
    count = 1
    while len(envelope([user(0)] * (count + 1))) <= ENTRY_BYTES:
        count += 1
    return envelope([user(0)] * count)


def _settings() -> dict[str, str]:
    return {"CACHE__LEDGER_TTL_S": "600", "OPS__PORT": str(free_port())}


def _idle(stage: Stage, ledger: int) -> float:
    with stage.gateway(ledger, _settings()) as server:
        expect(server, PATH, identity("alice"))
        return server.memory()


def _with_entries(stage: Stage, ledger: int) -> float:
    """Memory when so many orders are in the cache, as the gateway's own metrics say."""
    who = identity(user(0))
    settings = _settings()
    with stage.gateway(ledger, settings) as server:
        with _connect(server) as connection:
            for number in range(ENTRIES):
                _greet(connection, head(f"/ledger/order/o-{number}", who).encode())
        if _entries(settings) != ENTRIES:
            raise BenchError(f"{ENTRIES} orders made {_entries(settings)} entries of the cache")
        return server.memory()


def _entries(settings: dict[str, str]) -> int:
    """How many replies the gateway says it keeps."""
    _, body = ask(int(settings["OPS__PORT"]), "/health")
    return int(json.loads(body)["cache"]["entries"])


def _with_connections(stage: Stage, ledger: int) -> float:
    """Memory while callers that have each been answered keep their connections."""
    _allow_files(CONNECTIONS + _OTHER_FILES)
    request = head(PATH, identity("alice")).encode()
    with stage.gateway(ledger, _settings()) as server, ExitStack() as stack:
        for _ in range(CONNECTIONS):
            _greet(stack.enter_context(_connect(server)), request)
        return server.memory()


def _connect(server: Server) -> socket.socket:
    return socket.create_connection((HOST, server.port), timeout=10)


def _greet(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)
    answer = connection.recv(_READ)
    while not is_whole(answer):
        answer += connection.recv(_READ)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"one of many connections got {answer[:200]!r}")


def _allow_files(count: int) -> None:
    """Raises the soft limit of open files, which what is started inherits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (-1, resource.RLIM_INFINITY) and hard < count:
        raise BenchError(f"{count} files must be allowed to be open (ulimit -n), not {hard}")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
