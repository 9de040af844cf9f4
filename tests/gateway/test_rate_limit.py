"""How much one user may ask for: the bucket by itself, and what a caller sees of it."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway import app, walk
from gateway.cache import bounded_memo
from gateway.errors import RateLimited
from gateway.fast_path import FAST_PATH
from gateway.rate_limit import Bucket, RateLimit
from tests.conftest import ADMIN, RATES, SERVICE, MakeClient, caller
from tests.fakes import FakeLedger


def limit(rate: float, users: int = 100) -> RateLimit:
    return RateLimit(rate, bounded_memo(users))


def allowed(limited: RateLimit, count: int, now: float, username: str = "alice") -> int:
    """How many of so many requests at one moment pass."""
    passed = 0
    for _ in range(count):
        try:
            limited.take(username, now)
        except RateLimited:
            continue
        passed += 1
    return passed


def refusal(limited: RateLimit, now: float) -> dict[str, str]:
    with pytest.raises(RateLimited) as refused:
        limited.take("alice", now)
    return refused.value.headers


def test_zero_is_no_limit_and_remembers_nobody() -> None:
    buckets: dict[str, Bucket] = {}
    limited = RateLimit(0.0, buckets)
    assert [limited.take("alice", 0.0) for _ in range(1000)] == [{}] * 1000
    assert buckets == {}


@pytest.mark.parametrize(("rate", "burst"), [(0.1, 1), (1.0, 1), (1.5, 2), (2.0, 2), (50.0, 50)])
def test_a_seconds_worth_may_come_at_once(rate: float, burst: int) -> None:
    assert allowed(limit(rate), burst + 10, 0.0) == burst


@pytest.mark.parametrize(
    ("rate", "seconds", "more"),
    [(2.0, 0.49, 0), (2.0, 0.5, 1), (2.0, 1.0, 2), (2.0, 3600.0, 2), (0.1, 9.9, 0), (0.1, 10.0, 1)],
)
def test_it_fills_up_with_time_and_not_over_the_brim(
    rate: float, seconds: float, more: int
) -> None:
    limited = limit(rate)
    allowed(limited, 10, 0.0)
    assert allowed(limited, 10, seconds) == more


def test_users_do_not_take_from_one_another() -> None:
    limited = limit(1.0)
    assert allowed(limited, 5, 0.0, "alice") == 1
    assert allowed(limited, 5, 0.0, "bob") == 1
    assert allowed(limited, 5, 0.0, "Alice") == 1


def test_refused_requests_cost_nothing() -> None:
    limited = limit(1.0)
    allowed(limited, 1000, 0.0)
    assert allowed(limited, 1, 1.0) == 1


@pytest.mark.parametrize(
    ("rate", "headers"),
    [
        (2.0, {"RateLimit-Policy": '"user";q=2;w=1', "RateLimit": '"user";r=1;t=0'}),
        (1.0, {"RateLimit-Policy": '"user";q=1;w=1', "RateLimit": '"user";r=0;t=1'}),
        (0.1, {"RateLimit-Policy": '"user";q=1;w=10', "RateLimit": '"user";r=0;t=10'}),
        (100.0, {"RateLimit-Policy": '"user";q=100;w=1', "RateLimit": '"user";r=99;t=0'}),
    ],
)
def test_the_headers_of_a_first_request(rate: float, headers: dict[str, str]) -> None:
    assert limit(rate).take("alice", 0.0) == headers


@pytest.mark.parametrize(
    ("rate", "after", "wait"),
    [(1.0, 0.0, "1"), (0.1, 0.0, "10"), (0.1, 3.5, "7"), (0.1, 9.99, "1"), (100.0, 0.0, "1")],
)
def test_a_refusal_names_the_seconds_until_the_next(rate: float, after: float, wait: str) -> None:
    limited = limit(rate)
    allowed(limited, 200, 0.0)
    headers = refusal(limited, after)
    assert headers["Retry-After"] == wait
    assert headers["RateLimit"] == f'"user";r=0;t={wait}'


def test_memory_is_bounded_and_who_was_not_seen_for_longest_is_forgotten() -> None:
    buckets = bounded_memo(3)
    limited = RateLimit(1.0, buckets)
    for number in range(1000):
        limited.take(f"user{number}", 0.0)
    assert list(buckets) == ["user997", "user998", "user999"]
    assert allowed(limited, 1, 0.0, "user999") == 0
    assert allowed(limited, 1, 0.0, "user0") == 1


@given(
    st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 7.5, 100.0]),
    st.lists(st.integers(0, 40).map(lambda eighths: eighths / 8), max_size=80),
)
def test_never_more_than_the_burst_and_the_rate(rate: float, pauses: list[float]) -> None:
    limited, now, granted = limit(rate), 1000.0, []
    for pause in pauses:
        now += pause
        if allowed(limited, 1, now):
            granted.append(now)
    burst = max(1, -(-rate // 1))
    for start, since in enumerate(granted):
        for count, until in enumerate(granted[start:], 1):
            assert count <= burst + rate * (until - since) + 1e-6


@given(
    st.sampled_from([0.25, 0.3, 1.0, 2.0, 7.5, 100.0]),
    st.lists(st.integers(0, 16).map(lambda eighths: eighths / 8), max_size=40),
)
def test_who_comes_back_when_told_is_let_in(rate: float, pauses: list[float]) -> None:
    limited, now = limit(rate), 1000.0
    for pause in pauses:
        now += pause
        try:
            limited.take("alice", now)
        except RateLimited as refused:
            now += int(refused.headers["Retry-After"]) + 1e-6
            assert allowed(limited, 1, now) == 1


# Over HTTP.


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(walk, "time", SimpleNamespace(monotonic=clock))
    return clock


LIMIT_HEADERS = {"RateLimit", "RateLimit-Policy", "Retry-After"}


async def test_by_default_there_is_no_limit(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client()
    for _ in range(50):
        response = await client.get("/ledger", headers=caller())
        assert response.status == 200
        assert not LIMIT_HEADERS & response.headers.keys()


async def test_the_third_request_of_a_second_is_one_too_many(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="2", cache__enabled="false")
    seen = []
    for _ in range(3):
        response = await client.get("/ledger", headers=caller())
        seen.append((response.status, response.headers["RateLimit"]))
    assert seen == [
        (200, '"user";r=1;t=0'),
        (200, '"user";r=0;t=1'),
        (429, '"user";r=0;t=1'),
    ]
    assert response.headers["RateLimit-Policy"] == '"user";q=2;w=1'
    assert response.headers["Retry-After"] == "1"
    body = await response.json()
    assert body["api_message"] == "RATE_LIMITED"
    assert body["api_data"]["origin"] == "gateway"
    assert body["api_data"]["request_id"] == response.headers["X-Request-Id"]
    assert len(ledger.calls) == 2


async def test_after_the_time_it_named_a_user_is_served_again(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="0.5")
    assert (await client.get("/ledger", headers=caller())).status == 200
    refused = await client.get("/ledger", headers=caller())
    assert (refused.status, refused.headers["Retry-After"]) == (429, "2")
    clock.now += 1.9
    assert (await client.get("/ledger", headers=caller())).status == 429
    clock.now += 0.1
    assert (await client.get("/ledger", headers=caller())).status == 200


async def test_one_users_requests_are_not_anothers(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="1")
    statuses = [
        (await client.get("/ledger", headers=caller(*who))).status
        for who in (("alice",), ("alice",), ("bob",), ADMIN, SERVICE, ADMIN)
    ]
    assert statuses == [200, 429, 200, 200, 200, 429]


async def test_a_second_token_of_the_same_user_is_the_same_user(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="1")
    assert (await client.get("/ledger", headers=caller(jti="one"))).status == 200
    assert (await client.get("/ledger", headers=caller(jti="two"))).status == 429


async def test_cached_answers_count_too(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="4", cache__ledger_ttl_s="60")
    fast_path: Any = client.app.get(FAST_PATH)
    if fast_path is not None:
        fast_path._now = clock
    statuses = [(await client.get("/ledger", headers=caller())).status for _ in range(6)]
    assert statuses == [200, 200, 200, 200, 429, 429]
    assert len(ledger.calls) == 1


async def test_refusals_count_and_tell_the_limit(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="2")
    response = await client.get("/ledger/bob", headers=caller())
    assert (response.status, response.headers["RateLimit"]) == (403, '"user";r=1;t=0')
    response = await client.get("/ledger?nonsense=1", headers=caller())
    assert (response.status, response.headers["RateLimit"]) == (400, '"user";r=0;t=1')
    assert (await client.get("/ledger", headers=caller())).status == 429
    assert ledger.calls == []


async def test_writes_over_the_limit_never_reach_the_ledger(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="1")
    assert (await client.get("/ledger", headers=caller(*ADMIN))).status == 200
    response = await client.post(
        "/ledger", data=b"{", headers=caller(*ADMIN) | {"Idempotency-Key": "one"}
    )
    assert response.status == 429
    assert [call.method for call in ledger.calls] == ["GET"]


async def test_the_rates_api_answers_in_its_own_form(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    ledger.on("GET", RATES, b"[]")
    client = await make_client(limits__requests_per_s="1")
    response = await client.get(RATES, headers=caller())
    assert (response.status, response.headers["RateLimit"]) == (200, '"user";r=0;t=1')
    response = await client.get(RATES, headers=caller())
    body = await response.json()
    assert (response.status, response.headers["Retry-After"]) == (429, "1")
    assert set(body) == {"code", "title", "message", "requestId", "origin"}


async def test_who_is_not_authenticated_takes_nothing_from_anybody(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="1")
    for _ in range(5):
        forged = {"Authorization": caller()["Authorization"] + "x", "username": "alice"}
        response = await client.get("/ledger", headers=forged)
        assert response.status == 401
        assert not LIMIT_HEADERS & response.headers.keys()
    assert (await client.get("/ledger", headers=caller())).status == 200


async def test_health_is_never_limited(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="1")
    statuses = [(await client.get("/health/live")).status for _ in range(10)]
    assert statuses == [200] * 10


async def test_the_headers_are_well_formed_structured_fields(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    client = await make_client(limits__requests_per_s="2.5")
    for _ in range(5):
        headers = (await client.get("/ledger", headers=caller())).headers
        assert re.fullmatch(r'"user";r=\d+;t=\d+', headers["RateLimit"])
        assert re.fullmatch(r'"user";q=\d+;w=\d+', headers["RateLimit-Policy"])
        clock.now += 0.1


async def test_the_gateway_remembers_a_bounded_number_of_users(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.MAX_USERS == 100_000
    monkeypatch.setattr(app, "MAX_USERS", 2)
    client = await make_client(limits__requests_per_s="1")
    statuses = [
        (await client.get("/ledger", headers=caller(name))).status
        for name in ("alice", "bob", "bob", "carol", "carol", "alice")
    ]
    assert statuses == [200, 200, 429, 200, 429, 200]


async def test_a_streamed_answer_tells_the_limit_too(
    ledger: FakeLedger, make_client: MakeClient, clock: Clock
) -> None:
    pages = [(b'[{"id":"1","username":"alice"}]', {"Link": '</x?cursor=two>; rel="next"'})]

    async def script(_request: web.Request) -> web.Response:
        body, headers = pages.pop() if pages else (b'[{"id":"2","username":"alice"}]', {})
        return web.Response(body=body, headers=headers)

    ledger.run("GET", "/ledger/alice", script)
    client = await make_client(limits__requests_per_s="2", ledger__page_size="1")
    response = await client.get("/ledger", headers=caller())
    assert [row["id"] for row in (await response.json())["api_data"]] == ["1", "2"]
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert response.headers["RateLimit"] == '"user";r=1;t=0'
