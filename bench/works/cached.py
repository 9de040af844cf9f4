"""Reads that the cache can answer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from bench import peers
from bench.figures import Ratio, Result, Series
from bench.processes import BenchError, Server, whole_answer
from bench.profiles import profile
from bench.rows import envelope, identity, user, zipf_order
from bench.stage import HITS, PATH, Stage, expect, expect_refusals
from bench.wrk import TRACE_MARK, Load, head, prepared

OURS = "gateway"
ORDER = "/ledger/order/o-1"
USERS = 50
_CALLS = 20_000


@contextmanager
def _ours(stage: Stage, ledger: int) -> Iterator[Server]:
    with stage.gateway(ledger, HITS) as server:
        expect(server, PATH, identity("alice"), envelope(["alice"] * 10).replace(b"LIST", b"USER"))
        expect_refusals(server, PATH)
        yield server


_STARTS: dict[str, Callable[[Stage, int], AbstractContextManager[Server]]] = {
    OURS: _ours,
    peers.NGINX: peers.nginx_cache,
    peers.NGINX_PLAIN: peers.nginx_plain,
    peers.HAPROXY: peers.haproxy,
    peers.ENVOY: peers.envoy,
}


def repeated(stage: Stage, result: Result) -> None:
    """Clients that send the same head again and again."""
    load = Load(PATH, identity("alice"))
    found = _compare(stage, result, load, [OURS, peers.HAPROXY])
    result.ratios += [
        Ratio("cached read", found[OURS], found[peers.HAPROXY], reach=1.0),
        Ratio("cached read", found[OURS], found[peers.ECHO]),
    ]


def traced(stage: Stage, result: Result) -> None:
    """Clients that are traced: every head is another."""
    headers = {"traceparent": TRACE_MARK, **identity("alice")}
    load = prepared(stage.folder / "traced.lua", [head(PATH, headers)], [0])
    names = [OURS, peers.NGINX, peers.NGINX_PLAIN, peers.ENVOY, peers.HAPROXY]
    found = _compare(stage, result, load, names)
    what, ours = "cached read, traced", found[OURS]
    result.ratios += [
        Ratio(what, ours, found[peers.NGINX], reach=1.0),
        Ratio(what, ours, found[peers.ENVOY], reach=2.5),
        Ratio(what, ours, found[peers.HAPROXY], towards=0.7),
        Ratio(what, ours, found[peers.NGINX_PLAIN]),
        Ratio(what, ours, found[peers.ECHO]),
    ]


def _compare(stage: Stage, result: Result, load: Load, names: list[str]) -> dict[str, Series]:
    """The rates of ours and its peers, and of what only echoes ours."""
    with ExitStack() as stack:
        ledger = stack.enter_context(stage.ledger(envelope(["alice"] * 10)))
        started = {name: stack.enter_context(_STARTS[name](stage, ledger)) for name in names}
        answer = whole_answer(started[OURS].port, PATH, identity("alice"))
        started[peers.ECHO] = stack.enter_context(peers.echo(stage, answer))
        found = stage.rates({name: (server, load) for name, server in started.items()})
        profile(stage, result, started[OURS], load)
    return found


def shared(stage: Stage, result: Result) -> None:
    """One entry of the cache, shown to fifty users, each with a token and a view of their own."""
    heads = [head(ORDER, identity(user(number))) for number in range(USERS)]
    many = prepared(stage.folder / "many.lua", heads, zipf_order(USERS, _CALLS))
    single = prepared(stage.folder / "single.lua", heads[:1], [0])
    owners = [user(number) for number in range(USERS)] * 2
    names = ("gateway, 50 users", "gateway, one user")
    with (
        stage.ledger(envelope(["alice"]), envelope(owners)) as ledger,
        stage.gateway(ledger, HITS) as server,
    ):
        for number in range(USERS):
            seen = expect(server, ORDER, identity(user(number)))
            own = seen.count(b'"username":"%b"' % user(number).encode())
            if (own, seen.count(b'"username"')) != (2, 2):
                raise BenchError(f"{user(number)} did not see just the two rows of their own")
        found = stage.rates({names[0]: (server, many), names[1]: (server, single)})
        profile(stage, result, server, many)
    ratio = Ratio("cached order of 50 users", found[names[0]], found[names[1]], reach=0.8)
    result.ratios.append(ratio)
