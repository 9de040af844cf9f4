"""What every work stands on: a ledger that never tires, the gateway, two cores and a folder."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.figures import Series, Shot, contest
from bench.machine import Others, Tools, program
from bench.processes import HOST, BenchError, Cores, Server, ask, free_port, running
from bench.rows import SECRET, identity
from bench.wrk import Load, head, prepared, shoot

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).with_name("peers")
PATH = "/ledger/alice?limit=1000"
# Questions that differ and have the same answer: of equal ones that come together, the gateway
# would ask the ledger one.
DIFFERENT_PATHS = tuple(f"/ledger/alice?limit={limit}" for limit in range(401, 1001))
# What is cached shall stay so for as long as a work takes; the peers keep it as long.
HITS = {"CACHE__LEDGER_TTL_S": "60", "CACHE__RATES_TTL_S": "60"}
MISSES = {"CACHE__ENABLED": "false"}
_WARM_UP_S = 1


@dataclass(frozen=True)
class Stage:
    """Where a work takes place."""

    tools: Tools
    folder: Path
    serving: Cores
    loading: Cores
    rounds: int
    seconds: int
    spare: int
    profiling: bool

    @property
    def both(self) -> Cores:
        """Both cores."""
        return self.serving | self.loading

    def write(self, template: str, **values: object) -> Path:
        """A peer's configuration with its ports filled in."""
        text = (PEERS / template).read_text("utf-8")
        for name, value in values.items():
            text = text.replace(f"@{name.upper()}@", str(value))
        path = self.folder / template
        path.write_text(text)
        return path

    def different(self, headers: Mapping[str, str]) -> Load:
        """A load in which no two requests under way are the same."""
        heads = [head(path, headers) for path in DIFFERENT_PATHS]
        return prepared(self.folder / "different.lua", heads, range(len(heads)))

    @contextmanager
    def ledger(self, rows: bytes, order: bytes = b"", cores: Cores | None = None) -> Iterator[int]:
        """The ledger's port: static files of nginx's, on the core of the load."""
        (self.folder / "ledger.json").write_bytes(rows)
        (self.folder / "order.json").write_bytes(order or rows)
        port = free_port()
        config = self.write("nginx-upstream.conf", port=port, folder=self.folder)
        with running(
            "ledger",
            nginx(config, self.folder),
            port=port,
            cores=cores or self.loading,
            folder=self.folder,
        ) as server:
            yield server.port

    @contextmanager
    def gateway(
        self,
        ledger: int,
        settings: dict[str, str],
        *,
        name: str = "gateway",
        workers: int = 1,
        cores: Cores | None = None,
    ) -> Iterator[Server]:
        """Ours, as an operator starts it; its log goes to a file, one line per request."""
        port = free_port()
        with running(
            name,
            [sys.executable, "-m", "gateway", "serve", "--workers", str(workers)],
            port=port,
            cores=cores or self.serving,
            folder=self.folder,
            cwd=ROOT,
            environment=gateway_environment(ledger, port, settings),
            health="/health/ready",
        ) as server:
            yield server

    def shot(
        self, server: Server, load: Load, seconds: int = 0, cores: Cores | None = None
    ) -> Shot:
        """One round of wrk. The server's log is emptied after it, lest it fills the disk."""
        found = shoot(load, server, seconds or self.seconds, cores or self.loading)
        os.truncate(server.log, 0)
        return found

    def rates(
        self, servers: dict[str, tuple[Server, Load]], cores: Cores | None = None
    ) -> dict[str, Series]:
        """Answers per second of each, warmed up and then in alternation."""
        for server, load in servers.values():
            self.shot(server, load, _WARM_UP_S, cores)
        shots = {
            name: partial(self.shot, server, load, cores=cores)
            for name, (server, load) in servers.items()
        }
        return self.contest(shots, "answers/s")

    def contest(self, shots: Mapping[str, Callable[[], Shot]], unit: str) -> dict[str, Series]:
        """Rounds in alternation, and again where others disturbed them."""
        watched = {name: partial(_watched, shot) for name, shot in shots.items()}
        return contest(watched, self.rounds, unit, self.spare)


def _watched(shot: Callable[[], Shot]) -> Shot:
    others = Others()
    found = shot()
    return replace(found, foreign=others.cores())


def nginx(config: Path, folder: Path) -> list[str]:
    """The command for nginx with a configuration, all its files in a folder."""
    return [program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)]


def gateway_environment(ledger: int, port: int, settings: dict[str, str]) -> dict[str, str]:
    """This environment without settings of the gateway's but these."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    own = {
        "SERVER__PORT": str(port),
        "OPS__PORT": settings.get("OPS__PORT") or str(free_port()),
        "SERVER__DRAIN_S": "0",
        "LEDGER__BASE_URL": f"http://{HOST}:{ledger}",
        "AUTH__SECRET": SECRET,
        **settings,
    }
    return {**plain, **{f"GATEWAY_{name}": value for name, value in own.items()}}


def expect(server: Server, path: str, headers: dict[str, str], body: bytes | None = None) -> bytes:
    """The answer's body. Nothing that answers wrongly is measured."""
    status, found = ask(server.port, path, headers)
    if status != 200 or (body is not None and found != body):
        raise BenchError(f"{server.name} answered {status}: {found[:300]!r}")
    return found


def expect_refusals(server: Server, path: str, *, username_checked: bool = True) -> None:
    """Who has no valid token, or another name than the token's, must be refused."""
    good, other = identity("alice"), identity("bob")
    forged = {**good, "Authorization": good["Authorization"][:-2] + "xx"}
    bad = [forged, {"username": "alice"}]
    if username_checked:
        bad.append({**other, "username": "alice"})
    for headers in bad:
        status, _ = ask(server.port, path, headers)
        if status not in (401, 403, 422):
            raise BenchError(f"{server.name} let a bad token in: {status}")
