"""How long the slowest callers wait when the gateway has half of what it can bear."""

from functools import partial

from bench.figures import Bound, Result, Series, Shot, contest, series
from bench.open_loop import Timing
from bench.processes import Server
from bench.rows import envelope, identity
from bench.stage import HITS, MISSES, PATH, Stage, expect
from bench.steady import steady
from bench.wrk import Load

_SHARE = 0.5
# A generator that is later than this with a hundredth of its requests is what was measured.
_LATE_MS = 2.0


def at_half(stage: Stage, result: Result) -> None:
    """Saturation by wrk, then half of that by the open loop, one after the other."""
    with stage.ledger(envelope(["alice"] * 10)) as ledger:
        for what, settings, most in (("hits", HITS, 5.0), ("misses", MISSES, 15.0)):
            with stage.gateway(ledger, settings) as server:
                expect(server, PATH, identity("alice"))
                measured = _p99(stage, result, server, what)
            result.bounds.append(Bound(f"p99 at half of saturation, {what}", measured, most))


def _p99(stage: Stage, result: Result, server: Server, what: str) -> Series:
    load = Load(PATH, identity("alice"))
    stage.shot(server, load, 1)
    saturation = contest({what: partial(stage.shot, server, load)}, stage.rounds)[what].median
    rate = saturation * _SHARE
    timings = [_steady(stage, server, rate) for _ in range(stage.rounds)]
    late = series("late", "ms", [timing.late_p99 for timing in timings]).median
    limit = "; the generator is the limit" if late > _LATE_MS else ""
    middle = series("p50", "ms", [timing.p50 for timing in timings]).median
    result.notes.append(
        f"{what}: {rate:,.0f} requests/s, half of {saturation:,.0f}. Half of the answers came "
        f"within {middle:.2f} ms. The generator was at most {late:.2f} ms late "
        f"with 99 of 100 requests{limit}."
    )
    return Series(f"gateway, {what}", "ms", tuple(Shot(timing.p99) for timing in timings))


def _steady(stage: Stage, server: Server, rate: float) -> Timing:
    with steady(
        stage, server, PATH, identity("alice"), rate=rate, seconds=stage.seconds
    ) as callers:
        return callers.timing()
