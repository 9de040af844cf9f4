"""Reads that go to the ledger every time."""

from contextlib import ExitStack

from bench import peers
from bench.figures import Ratio, Result
from bench.profiles import profile
from bench.rows import envelope, identity
from bench.stage import MISSES, PATH, Stage, expect, expect_refusals

OURS = "gateway, cache off"


def forwarded(stage: Stage, result: Result) -> None:
    """Ten rows, forwarded and filtered."""
    load = stage.different(identity("alice"))
    with ExitStack() as stack:
        ledger = stack.enter_context(stage.ledger(envelope(["alice"] * 10)))
        started = {
            OURS: stack.enter_context(stage.gateway(ledger, MISSES)),
            peers.ENVOY: stack.enter_context(peers.envoy(stage, ledger)),
            peers.AIOHTTP: stack.enter_context(peers.aiohttp_proxy(stage, ledger)),
            peers.FASTAPI: stack.enter_context(peers.fastapi(stage, ledger)),
        }
        expect(started[OURS], PATH, identity("alice"))
        expect_refusals(started[OURS], PATH)
        found = stage.rates({name: (server, load) for name, server in started.items()})
        profile(stage, result, started[OURS], load)
    ours = found[OURS]
    result.ratios += [
        Ratio("miss, 10 rows", ours, found[peers.ENVOY], reach=0.4, towards=1.0),
        Ratio("miss, 10 rows", ours, found[peers.FASTAPI], reach=10.0),
        Ratio("miss, 10 rows", ours, found[peers.AIOHTTP]),
    ]
