"""How long the slowest callers wait when the gateway has half of what it can bear."""

from collections.abc import Sequence
from functools import partial
from statistics import median

from bench.figures import Bound, Result, Shot
from bench.open_loop import Timing
from bench.processes import Server
from bench.rows import envelope, identity
from bench.stage import DIFFERENT_PATHS, HITS, MISSES, PATH, Stage, expect
from bench.steady import steady

_SHARE = 0.5
# A generator that is busier than this would be measured in place of the gateway.
_GENERATOR_LIMIT = 0.9
_LESS = 0.85


def at_half(stage: Stage, result: Result) -> None:
    """Saturation by wrk, then half of that by the open loop, one after the other."""
    with stage.ledger(envelope(["alice"] * 10)) as ledger:
        for what, settings, most in (("hits", HITS, 5.0), ("misses", MISSES, 15.0)):
            with stage.gateway(ledger, settings) as server:
                expect(server, PATH, identity("alice"))
                result.bounds.append(_p99(stage, result, server, what, most))


def _p99(stage: Stage, result: Result, server: Server, what: str, most: float) -> Bound:
    load = stage.different(identity("alice"))
    stage.shot(server, load, 1)
    saturation = stage.contest({what: partial(stage.shot, server, load)}, "answers/s")[what].median
    rate = _bearable(stage, server, saturation * _SHARE)
    timings: list[Timing] = []

    def shot() -> Shot:
        timings.append(_steady(stage, server, rate))
        return Shot(timings[-1].p99, load_busy=timings[-1].busy)

    name = f"gateway, {what}"
    found = stage.contest({name: shot}, "ms")[name]
    result.notes.append(_note(what, saturation, rate, timings))
    return Bound(f"p99 at {rate / saturation:.0%} of saturation, {what}", found, most)


def _bearable(stage: Stage, server: Server, rate: float) -> float:
    """The rate, or as much of it as one core can send."""
    while _steady(stage, server, rate, 1).busy > _GENERATOR_LIMIT:
        rate *= _LESS
    return rate


def _note(what: str, saturation: float, rate: float, timings: Sequence[Timing]) -> str:
    middle = median(timing.p50 for timing in timings)
    late = median(timing.late_p99 for timing in timings)
    text = (
        f"{what}: {rate:,.0f} requests/s of {saturation:,.0f}. Half of the answers came within "
        f"{middle:.2f} ms. The generator itself was at most {late:.2f} ms late with 99 of 100."
    )
    missing = sum(timing.due - timing.answered for timing in timings)
    if missing:
        text += f" {missing} had no answer when it stopped waiting."
    if rate < saturation * _SHARE:
        text += " More than that one core could not send: the load generator is the limit."
    return text


def _steady(stage: Stage, server: Server, rate: float, seconds: int = 0) -> Timing:
    seconds = seconds or stage.seconds
    who = identity("alice")
    with steady(stage, server, DIFFERENT_PATHS, who, rate=rate, seconds=seconds) as callers:
        return callers.timing()
