"""Reading the seeded ledger: lists, pages, filters, orders, deposits."""

from collections import defaultdict
from decimal import Decimal
from typing import Any

import pytest

from gateway.sandbox import USERS
from gateway.sandbox.store import ROW_FIELDS
from tests.gateway.sandbox.conftest import Client, Connect
from tests.gateway.sandbox.steps import error_of, next_target, register, rows_of


async def test_rows_have_every_field_of_the_contract_in_its_order(client: Client) -> None:
    for row in await rows_of(client, "/ledger"):
        assert tuple(row) == ROW_FIELDS


async def test_running_balances_add_up_for_every_user_and_currency(client: Client) -> None:
    sums: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for row in reversed(await rows_of(client, "/ledger")):
        account = row["username"], row["currency"]
        if row["status"] == "completed":
            sums[account] += Decimal(row["amount"])
        assert Decimal(row["balance"]) == sums[account] >= 0
    assert len(sums) == 9


async def test_the_seed_is_the_same_each_time_and_newest_first(connect: Connect) -> None:
    first = await rows_of(await connect(), "/ledger")
    second = await rows_of(await connect(), "/ledger")
    assert first == second
    assert 180 <= len(first) <= 220
    times = [row["timestamp"] for row in first]
    assert times == sorted(times, reverse=True)
    assert len({row["id"] for row in first}) == len(first)


async def test_the_seed_holds_all_types_and_statuses_of_three_users(client: Client) -> None:
    rows = await rows_of(client, "/ledger")
    assert {row["username"] for row in rows} == set(USERS)
    assert {row["status"] for row in rows} == {"pending", "completed", "canceled", "failed"}
    types = {"trade", "transfer", "deposit", "withdrawal", "balance_update"}
    assert {row["type"] for row in rows} == types


async def test_seeded_trades_name_the_counterparties(client: Client) -> None:
    for row in await rows_of(client, "/ledger?type=trade"):
        assert row["lp_id"]
        assert row["lp_name"]
        assert row["created_by_id"] == "service"


async def test_a_users_list_is_exactly_their_rows(client: Client) -> None:
    everything = await rows_of(client, "/ledger")
    for user in USERS:
        theirs = [row for row in everything if row["username"] == user]
        assert await rows_of(client, f"/ledger/{user}") == theirs


async def test_an_order_is_shared_by_two_users(client: Client) -> None:
    rows = await rows_of(client, "/ledger/order/ord-1001")
    assert {row["username"] for row in rows} == {"alice", "bob"}
    assert {row["order_id"] for row in rows} == {"ord-1001"}


@pytest.mark.parametrize("target", ["/ledger/nobody", "/ledger/order/ord-9"])
async def test_an_unknown_user_or_order_has_no_rows(client: Client, target: str) -> None:
    assert await rows_of(client, target) == []


async def test_pending_deposits_come_by_currency(client: Client) -> None:
    answer = await client.get("/ledger/users/alice/deposits")
    body = await answer.json()
    assert body["api_message"] == "LEDGER_GET_DEPOSITS_SUCCESS"
    assert list(body["api_data"]) == ["BTC", "USD"]
    for currency, rows in body["api_data"].items():
        listed = await rows_of(client, "/ledger/alice?type=deposit&status=pending")
        assert rows == [row for row in listed if row["currency"] == currency]


@pytest.mark.parametrize(("user", "count"), [("bob", 1), ("carol", 0), ("nobody", 0)])
async def test_deposits_are_an_empty_object_when_none_is_pending(
    client: Client, user: str, count: int
) -> None:
    answer = await client.get(f"/ledger/users/{user}/deposits")
    assert len((await answer.json())["api_data"]) == count


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/ledger", "LEDGER_GET_LIST_SUCCESS"),
        ("/ledger/alice", "LEDGER_GET_USER_SUCCESS"),
        ("/ledger/order/ord-1001", "LEDGER_GET_ORDER_SUCCESS"),
    ],
)
async def test_each_list_has_its_message(client: Client, target: str, message: str) -> None:
    assert (await (await client.get(target)).json())["api_message"] == message


async def _follow(client: Client, target: str, between: Any = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    following: str | None = target
    while following is not None:
        answer = await client.get(following)
        assert answer.status == 200
        page = (await answer.json())["api_data"]
        assert 0 < len(page) <= 7
        rows += page
        following = next_target(answer)
        if between is not None:
            await between(len(rows))
    return rows


@pytest.mark.parametrize("target", ["/ledger", "/ledger/alice", "/ledger?type=deposit"])
async def test_pages_follow_each_other_without_loss_or_repetition(
    client: Client, target: str
) -> None:
    mark = "&" if "?" in target else "?"
    assert await _follow(client, f"{target}{mark}limit=7") == await rows_of(client, target)


async def test_pages_stay_right_while_rows_are_added_at_the_head(client: Client) -> None:
    before = await rows_of(client, "/ledger/alice")

    async def add(count: int) -> None:
        assert (await register(client, f"key-{count}")).status == 201

    assert await _follow(client, "/ledger/alice?limit=7", add) == before


async def test_the_last_page_has_no_link(client: Client) -> None:
    count = len(await rows_of(client, "/ledger/alice"))
    assert next_target(await client.get(f"/ledger/alice?limit={count}")) is None
    assert next_target(await client.get(f"/ledger/alice?limit={count - 1}")) is not None


async def test_a_cursor_without_a_limit_gives_all_the_rest(client: Client) -> None:
    everything = await rows_of(client, "/ledger")
    following = next_target(await client.get("/ledger?limit=5")) or ""
    rest = following.replace("limit=5&", "")
    assert await rows_of(client, rest) == everything[5:]


@pytest.mark.parametrize(
    ("field", "value"), [("type", "transfer"), ("currency", "ETH"), ("status", "failed")]
)
async def test_a_filter_keeps_exactly_the_matching_rows(
    client: Client, field: str, value: str
) -> None:
    matching = [row for row in await rows_of(client, "/ledger") if row[field] == value]
    assert matching
    assert await rows_of(client, f"/ledger?{field}={value}") == matching


async def test_since_and_until_are_inclusive(client: Client) -> None:
    rows = await rows_of(client, "/ledger")
    newest, oldest = rows[3]["timestamp"], rows[8]["timestamp"]
    assert await rows_of(client, f"/ledger?since={oldest}&until={newest}") == rows[3:9]


async def test_filters_are_combined(client: Client) -> None:
    rows = await rows_of(client, "/ledger/bob?type=trade&currency=USD")
    assert {(row["username"], row["type"], row["currency"]) for row in rows} == {
        ("bob", "trade", "USD")
    }


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=x",
        "cursor=MQ",
        "cursor=YmVmb3JlOjA",
        "cursor=%C3%A9",
        "limit=1&limit=2",
        "offset=3",
        "since=yesterday",
    ],
)
async def test_a_query_outside_the_contract_is_400(client: Client, query: str) -> None:
    status, _, data = await error_of(await client.get(f"/ledger?{query}"))
    assert (status, data["origin"]) == (400, "ledger")


async def test_deposits_take_no_query(client: Client) -> None:
    status, _, _ = await error_of(await client.get("/ledger/users/alice/deposits?limit=3"))
    assert status == 400
