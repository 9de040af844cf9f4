"""Generated rows: a ledger of any size that is never held."""

import json
import time
import tracemalloc

import pytest

from gateway.sandbox.generated import GeneratedRows
from gateway.sandbox.pages import Selection, Window
from tests.gateway.sandbox.conftest import Client, Connect
from tests.gateway.sandbox.steps import error_of, next_target, register, rows_of

MILLION = 1_000_000


async def _ids(client: Client, target: str) -> list[str]:
    ids: list[str] = []
    following: str | None = target
    while following is not None:
        answer = await client.get(following)
        page = (await answer.json())["api_data"]
        assert 0 < len(page) <= 1000
        ids += [row["id"] for row in page]
        following = next_target(answer)
    return ids


async def test_all_rows_are_reached_newest_first_without_repetition(connect: Connect) -> None:
    client = await connect(rows=2_500)
    ids = await _ids(client, "/ledger")
    assert len(ids) == 2_500
    assert ids == sorted(set(ids), reverse=True)
    assert await _ids(client, "/ledger?limit=333") == ids


async def test_alice_owns_exactly_a_tenth(connect: Connect) -> None:
    client = await connect(rows=12_000)
    assert len(await _ids(client, "/ledger/alice")) == 1_200
    assert {row["username"] for row in await rows_of(client, "/ledger/alice")} == {"alice"}
    assert await rows_of(client, "/ledger/user0") == []


async def test_an_order_spans_a_hundred_consecutive_rows_of_ten_users(connect: Connect) -> None:
    client = await connect(rows=250)
    rows = await rows_of(client, "/ledger/order/ord-1")
    assert [int(row["id"][-12:]) for row in rows] == list(range(199, 99, -1))
    assert len({row["username"] for row in rows}) == 10
    assert len(await rows_of(client, "/ledger/order/ord-2")) == 50
    for unknown in ("ord-3", "ord-01", "other", f"ord-{'9' * 100}"):
        assert await rows_of(client, f"/ledger/order/{unknown}") == []


@pytest.mark.parametrize("rows", [0, 1])
async def test_small_ledgers_have_one_page(connect: Connect, rows: int) -> None:
    answer = await (await connect(rows=rows)).get("/ledger")
    assert len((await answer.json())["api_data"]) == rows
    assert "Link" not in answer.headers


async def test_it_has_no_deposits_filters_or_writes(connect: Connect) -> None:
    client = await connect(rows=10)
    deposits = await client.get("/ledger/users/alice/deposits")
    assert (await deposits.json())["api_data"] == {}
    assert (await error_of(await client.get("/ledger?type=trade")))[0] == 400
    refused = await register(client, "one")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET,HEAD")


def test_a_million_rows_are_over_200_megabytes() -> None:
    (row,) = GeneratedRows(MILLION).page(Selection(), Window(limit=1)).rows
    (oldest,) = GeneratedRows(MILLION).page(Selection(), Window(before=2)).rows
    assert len(row) > 220
    assert len(oldest) > 220
    assert json.loads(row)["timestamp"] == "2024-01-12T13:46:39Z"


def test_a_page_is_quick_and_holds_only_itself_however_many_rows_there_are() -> None:
    rows = GeneratedRows(1_000 * MILLION)
    tracemalloc.start()
    started = time.perf_counter()
    page = rows.page(Selection(username="alice"), Window(before=500 * MILLION))
    elapsed = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(page.rows) == 1000
    # A few milliseconds; the bounds are wide enough for a busy machine, and for tracing.
    assert elapsed < 0.5
    assert peak < 2_000_000
