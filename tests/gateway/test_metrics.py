"""What is counted: every answer once, under names of ours, and nothing that a caller chose."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from gateway.exchange import Trace
from gateway.metrics import Metrics, _observe
from tests.conftest import ADMIN, CREDENTIAL, RATE, RATES, SECRET, MakeClient, caller
from tests.fakes import FakeLedger

Client = TestClient[Any, Any]
Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]

ALICES = '{"id":"1","username":"alice","comment":"' + "x" * 20_000 + '"}'
RATE_TEMPLATE = (
    "/v1/organizations/{organization_id}/ledgers/{ledger_id}/instrument-rates/{id}",
    "/v1/organizations/{organization_id}/ledgers/{ledger_id}/instrument-rates",
)


def samples(text: str) -> Samples:
    """Name and labels of each sample to its value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def answers(found: Samples) -> dict[tuple[str, str, str], float]:
    """Method, route and status to the number of answers, without those to operators."""
    named = {
        labels: value
        for (name, labels), value in found.items()
        if name == "gateway_requests_total" and dict(labels)["route"] != "/metrics"
    }
    return {tuple(value for _, value in labels): count for labels, count in named.items()}  # type: ignore[misc]


@pytest.fixture
async def ops(client: Client) -> AsyncIterator[Client]:
    """A client of the operators' listener; `client` is one of its API."""
    ops = await ops_of(client)
    yield ops
    await ops.close()


async def ops_of(client: Client) -> Client:
    ops: Client = TestClient(TestServer(client.gateway.ops))  # type: ignore[attr-defined]
    await ops.start_server()
    return ops


async def scrape(ops: Client) -> Samples:
    response = await ops.get("/metrics")
    assert response.status == 200
    return samples(await response.text())


def in_flight(found: Samples) -> float:
    return found["gateway_requests_in_flight", ()]


# Labels.


async def test_answers_are_counted_by_method_template_and_status(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    ledger.on("GET", f"{RATES}/{RATE}", "{}")
    for path, username in (
        ("/ledger", "admin"),
        ("/ledger", "admin"),
        ("/ledger/alice", "admin"),
        ("/ledger/bob", "admin"),
        ("/ledger/order/o-1", "admin"),
        ("/ledger/users/alice/deposits?a=b", "admin"),
        (f"{RATES}/{RATE}", "admin"),
        (f"{RATES}/{RATE.upper()}", "admin"),
        (f"{RATES}/nonsense", "admin"),
    ):
        await client.get(path, headers=caller(username, "admin"))
    await client.get("/ledger/alice")
    await client.post("/ledger", headers=caller("alice"), json={})
    assert answers(await scrape(ops)) == {
        ("GET", "/ledger", "200"): 2,
        ("GET", "/ledger/{username}", "200"): 2,
        ("GET", "/ledger/{username}", "401"): 1,
        ("GET", "/ledger/order/{order_id}", "200"): 1,
        ("GET", "/ledger/users/{username}/deposits", "400"): 1,
        ("GET", RATE_TEMPLATE[0], "200"): 2,
        ("GET", RATE_TEMPLATE[0], "400"): 1,
        ("POST", "/ledger", "403"): 1,
    }


async def test_paths_that_match_nothing_share_one_label(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    paths = [f"/nowhere/{number}" for number in range(30)]
    for path in [*paths, "/ledger/a/b/c", "/v1/organizations/x", "/health", "/metrics"]:
        assert (await client.get(path, headers=caller(*ADMIN))).status == 404
    response = await ops.get("/metrics")
    text = await response.text()
    assert answers(samples(text)) == {("GET", "unmatched", "404"): 34}
    assert "nowhere" not in text
    assert ledger.calls == []


async def test_a_method_of_a_callers_own_is_counted_as_other(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    for method in ("PROPFIND", "TRACE", "MKCOL", "SEARCH"):
        response = await client.request(method, "/ledger", headers=caller(*ADMIN))
        assert response.status == 405
    assert (await client.request("PUT", "/ledger", headers=caller(*ADMIN))).status == 405
    text = await (await ops.get("/metrics")).text()
    assert answers(samples(text)) == {
        ("other", "unmatched", "405"): 4,
        ("PUT", "unmatched", "405"): 1,
    }
    assert "MKCOL" not in text
    assert ledger.calls == []


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=8), st.sampled_from([200, 404, 499])), max_size=30
    )
)
async def test_no_number_of_methods_makes_more_series(
    requests: list[tuple[str, int]],
) -> None:
    metrics = Metrics()
    for method, status in requests:
        metrics.started()
        metrics.finished(Trace("id", time.monotonic()), method, status)
    found = answers(samples(metrics.exposition().decode()))
    assert sum(found.values()) == len(requests)
    assert len(found) <= 8 * 3
    assert metrics.totals() == (
        {"unmatched": {str(status): count(requests, status) for status in set(of(requests))}}
        if requests
        else {}
    )


def of(requests: list[tuple[str, int]]) -> list[int]:
    return [status for _, status in requests]


def count(requests: list[tuple[str, int]], status: int) -> int:
    return of(requests).count(status)


async def test_metrics_hold_no_secret_and_nothing_of_a_user(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    ledger.rows("/ledger/mallory", '{"id":"row-1","username":"mallory"}')
    headers = {**caller("mallory"), "X-Request-Id": "an-id-of-mine"}
    assert (await client.get("/ledger?currency=BTC", headers=headers)).status == 200
    text = await (await ops.get("/metrics")).text()
    for hidden in (SECRET, CREDENTIAL, "mallory", "row-1", "BTC", "an-id-of-mine", ledger.url):
        assert hidden not in text
    assert len(ledger.calls) == 1


async def test_metrics_are_in_the_format_of_prometheus(ops: Client) -> None:
    response = await ops.get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples(await response.text())


# Requests under way.


async def test_a_request_is_in_flight_until_it_is_answered(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        asked.set()
        await answer.wait()
        return web.json_response([])

    ledger.run("GET", "/ledger", slow)
    before = in_flight(await scrape(ops))
    read = asyncio.create_task(client.get("/ledger", headers=caller(*ADMIN)))
    await asyncio.wait_for(asked.wait(), 10)
    assert in_flight(await scrape(ops)) == before + 1
    answer.set()
    assert (await read).status == 200
    assert in_flight(await scrape(ops)) == before


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (401, "/ledger", {}),
        (403, "/ledger/bob", caller("alice")),
        (404, "/nowhere", {}),
        (400, "/ledger?nonsense=1", caller("alice")),
        (502, "/ledger", caller("alice")),
    ],
)
async def test_a_refusal_leaves_nothing_in_flight(
    ledger: FakeLedger,
    client: Client,
    ops: Client,
    status: int,
    path: str,
    headers: dict[str, str],
) -> None:
    ledger.on("GET", "/ledger/alice", "nonsense")
    before = in_flight(await scrape(ops))
    assert (await client.get(path, headers=headers)).status == status
    found = await scrape(ops)
    assert in_flight(found) == before
    assert sum(answers(found).values()) == 1


async def test_what_is_in_flight_comes_back_to_zero() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.started()
    assert in_flight(samples(metrics.exposition().decode())) == 3
    for _ in range(3):
        metrics.finished(Trace("id", time.monotonic()), "GET", 200)
    assert in_flight(samples(metrics.exposition().decode())) == 0


def test_repeated_answers_are_counted_together_as_they_would_be_one_by_one() -> None:
    durations = (0.0004, 0.001, 0.0011, 0.3, 0.25, 29.0, 31.0, 0.0)
    ours, theirs = (Histogram(name, "", buckets=(0.001, 0.25, 30.0)) for name in ("ours", "theirs"))
    _observe(ours, durations)
    for seconds in durations:
        theirs.observe(seconds)
    found, wanted = (
        [sample.value for family in one.collect() for sample in family.samples][:6]
        for one in (ours, theirs)
    )
    assert found == pytest.approx(wanted)
    assert found[:5] == [3.0, 5.0, 7.0, 8.0, 8.0]


# Streams.


def endless(ledger: FakeLedger, path: str, pages: int) -> None:
    """So many pages of a list, and then nonsense."""

    async def script(request: web.Request) -> web.Response:
        number = int(request.query.get("cursor", "0"))
        if number == pages:
            return web.Response(text="nonsense")
        link = {"Link": f'<{path}?cursor={number + 1}>; rel="next"'}
        return web.Response(text=f"[{ALICES}]", content_type="application/json", headers=link)

    ledger.run("GET", path, script)


async def counted(ops: Client, number: float) -> Samples:
    """What is counted when so many answers are; a cut connection is seen before it is counted."""
    async with asyncio.timeout(10):
        while sum(answers(found := await scrape(ops)).values()) < number:
            pass
    return found


async def test_a_stream_that_the_ledger_breaks_off_is_counted_as_cut(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    endless(ledger, "/ledger/alice", pages=3)
    before = in_flight(await scrape(ops))
    response = await client.get("/ledger", headers=caller("alice"))
    assert response.status == 200
    with pytest.raises(aiohttp.ClientError):
        await response.read()
    found = await counted(ops, 1)
    assert answers(found) == {("GET", "/ledger", "499"): 1}
    assert in_flight(found) == before
    assert len(ledger.calls) == 4


async def test_a_stream_that_its_caller_leaves_is_counted_as_cut(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    endless(ledger, "/ledger/alice", pages=100_000)
    before = in_flight(await scrape(ops))
    response = await client.get("/ledger", headers=caller("alice"))
    assert await response.content.read(100)
    response.close()
    found = await counted(ops, 1)
    assert answers(found) == {("GET", "/ledger", "499"): 1}
    assert in_flight(found) == before
    assert len(ledger.calls) < 100_000


async def test_a_stream_that_comes_to_its_end_is_counted_as_what_it_is(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    link = '</ledger/alice?cursor=1>; rel="next"'
    replies = iter([{"Link": link}, {}])

    async def script(_request: web.Request) -> web.Response:
        text = f"[{ALICES}]"
        return web.Response(text=text, content_type="application/json", headers=next(replies))

    ledger.run("GET", "/ledger/alice", script)
    response = await client.get("/ledger", headers=caller("alice"))
    assert len((await response.json())["api_data"]) == 2
    assert answers(await counted(ops, 1)) == {("GET", "/ledger", "200"): 1}


# What else is counted.


async def test_rows_that_were_not_the_callers_are_counted(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    ledger.rows("/ledger/alice", *(f'{{"username":"{name}"}}' for name in ("bob", "alice", "eve")))
    assert (await client.get("/ledger", headers=caller("alice"))).status == 200
    assert (await scrape(ops))["gateway_rows_dropped_total", ()] == 2


async def test_reads_are_counted_by_what_the_cache_knew(
    ledger: FakeLedger, make_client: MakeClient
) -> None:
    client = await make_client()
    async with await ops_of(client) as ops:
        for _ in range(3):
            assert (await client.get("/ledger", headers=caller(*ADMIN))).status == 200
        found = await scrape(ops)
    assert found["gateway_cache_total", (("outcome", "miss"),)] == 1
    assert found["gateway_cache_total", (("outcome", "hit"),)] == 2
    assert len(ledger.calls) == 1


async def test_time_is_told_by_route_and_that_at_the_ledger_apart(
    client: Client, ops: Client
) -> None:
    await client.get("/ledger", headers=caller(*ADMIN))
    await client.get("/ledger/alice")
    found = await scrape(ops)
    total = "gateway_request_duration_seconds"
    ledgers = "gateway_ledger_duration_seconds"
    all_rows, of_one = (("route", "/ledger"),), (("route", "/ledger/{username}"),)
    assert found[f"{total}_count", all_rows] == found[f"{total}_count", of_one] == 1
    assert found[f"{ledgers}_count", all_rows] == 1
    assert (f"{ledgers}_count", of_one) not in found
    assert found[f"{total}_sum", all_rows] >= found[f"{ledgers}_sum", all_rows] > 0
