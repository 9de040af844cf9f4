"""A ledger that sends all it has at once: 100 000 rows, of which one user may see a hundredth."""

import subprocess
import sys
import time
from functools import partial

from bench.figures import Bound, Ratio, Result, Series, Shot
from bench.processes import Server, ask, on_cores
from bench.profiles import record
from bench.reference import filtered
from bench.rows import envelope, identity, user
from bench.stage import MISSES, ROOT, Stage, expect
from bench.steady import steady

ROWS = 100_000
USERS = 100
PATH = "/ledger/order/o-1"
OURS = "gateway, end to end"
THEIRS = "json: loads, filter, dumps"
LIVE = "/health/live"
_LIVE_RATE = 250
_AROUND_S = 1.0


def filtering(stage: Stage, result: Result) -> None:
    """How long it takes, and how long everybody else waits meanwhile."""
    body = envelope([user(number % USERS) for number in range(ROWS)], long=True)
    result.notes.append(f"The ledger's reply has {len(body) / 1e6:.1f} MB.")
    with (
        stage.ledger(b"{}", body) as ledger,
        stage.gateway(ledger, MISSES) as server,
    ):
        wanted = filtered(body, user(0)).replace(b"LIST", b"ORDER")
        expect(server, PATH, identity(user(0)), wanted)
        contestants = {OURS: partial(_asked, server), THEIRS: partial(_reference, stage)}
        found = stage.contest(contestants, "s")
        alone, meanwhile = _waits(stage, server)
        if stage.profiling:
            record(stage, result, server, partial(_often, server))
    ratio = Ratio("filter 100 000 rows", found[OURS], found[THEIRS], 3.0, less_is_better=True)
    result.ratios.append(ratio)
    result.bounds.append(Bound("longest wait of others meanwhile", meanwhile, 20.0))
    result.notes.append(f"With nothing else to do, the longest wait was {alone.median:.1f} ms.")


def _asked(server: Server) -> Shot:
    started = time.perf_counter()
    ask(server.port, PATH, identity(user(0)))
    return Shot(time.perf_counter() - started)


def _reference(stage: Stage) -> Shot:
    command = [sys.executable, "-m", "bench.reference", str(stage.folder / "order.json"), user(0)]
    with on_cores(stage.serving):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=120)
    return Shot(float(done.stdout))


def _waits(stage: Stage, server: Server) -> tuple[Series, Series]:
    """The longest wait for an answer from `/health/live`: alone, and while the list is filtered."""
    names = ("nothing else to do", "gateway, filtering")
    waits = {name: partial(_longest_wait, stage, server, asking=name == names[1]) for name in names}
    found = stage.contest(waits, "ms")
    return found[names[0]], found[names[1]]


def _longest_wait(stage: Stage, server: Server, *, asking: bool) -> Shot:
    seconds = 2 * _AROUND_S + 1
    with steady(
        stage, server, [LIVE], {}, rate=_LIVE_RATE, seconds=seconds, connections=16
    ) as others:
        time.sleep(_AROUND_S)
        if asking:
            _asked(server)
        return Shot(others.timing().longest)


def _often(server: Server) -> None:
    for _ in range(15):
        _asked(server)
