"""Registering actions: validation, exactness, idempotency."""

import asyncio
import json
from typing import Any

import pytest

from gateway.errors import LedgerRefused
from gateway.sandbox.idempotency import Answer, Journal, Scope, fingerprint_of, once
from tests.gateway.sandbox.conftest import Client
from tests.gateway.sandbox.steps import DEPOSIT, error_of, register, rows_of


async def test_a_registered_action_is_the_newest_row_and_moves_the_balance(client: Client) -> None:
    answer = await register(client, "one", username="dora", amount="1.50")
    body = await answer.json()
    assert (answer.status, body["api_message"]) == (201, "LEDGER_POST_SUCCESS")
    (row,) = body["api_data"]
    assert (row["status"], row["balance"], row["created_by_id"]) == ("completed", "1.50", "service")
    assert row["timestamp"].endswith("Z")
    assert (await rows_of(client, "/ledger"))[0] == row
    assert await rows_of(client, "/ledger/dora") == [row]


async def test_amounts_of_38_digits_add_up_exactly(client: Client) -> None:
    large, small = "99999999999999999999999999999999999999", "0.000000000000000001"
    await register(client, "large", username="dora", amount=large)
    answer = await register(client, "small", username="dora", amount=small)
    (row,) = (await answer.json())["api_data"]
    assert row["balance"] == f"{large}.000000000000000001"
    assert row["amount"] == small


async def test_tiny_balances_are_printed_without_an_exponent(client: Client) -> None:
    answer = await register(client, "tiny", username="dora", amount="0.000000000000000001")
    (row,) = (await answer.json())["api_data"]
    assert row["balance"] == "0.000000000000000001"


async def test_a_pending_deposit_is_listed_and_leaves_the_balance(client: Client) -> None:
    answer = await register(client, "one", username="dora", status="pending")
    (row,) = (await answer.json())["api_data"]
    assert row["balance"] == "0"
    deposits = await client.get("/ledger/users/dora/deposits")
    assert (await deposits.json())["api_data"] == {"BTC": [row]}


async def test_a_given_timestamp_is_used(client: Client) -> None:
    answer = await register(client, "one", timestamp="2024-02-03T04:05:06Z")
    (row,) = (await answer.json())["api_data"]
    assert row["timestamp"] == "2024-02-03T04:05:06Z"


async def test_a_timestamp_with_an_offset_is_kept_in_utc_to_its_last_digit(client: Client) -> None:
    answer = await register(client, "one", timestamp="2024-02-03t04:05:06.123456789+03:00")
    (row,) = (await answer.json())["api_data"]
    assert row["timestamp"] == "2024-02-03T01:05:06.123456789Z"


async def test_a_repeated_field_is_422(client: Client) -> None:
    body = json.dumps(DEPOSIT).replace("{", '{"amount":"1",')
    headers = {"Idempotency-Key": "one", "Content-Type": "application/json"}
    answer = await client.post("/ledger", data=body, headers=headers)
    status, code, data = await error_of(answer)
    assert (status, code, list(data["errors"])) == (422, "INVALID_ACTION", ["amount"])


async def test_the_same_key_and_body_give_the_first_answer_byte_for_byte(client: Client) -> None:
    before = len(await rows_of(client, "/ledger"))
    first, second = await register(client, "one"), await register(client, "one")
    assert second.status == first.status == 201
    assert await second.read() == await first.read()
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert len(await rows_of(client, "/ledger")) == before + 1


async def test_concurrent_repetitions_register_once(client: Client) -> None:
    before = len(await rows_of(client, "/ledger"))
    answers = await asyncio.gather(*(register(client, "one") for _ in range(10)))
    assert len({await answer.read() for answer in answers}) == 1
    assert len(await rows_of(client, "/ledger")) == before + 1


async def test_white_space_and_key_order_do_not_make_another_body(client: Client) -> None:
    await register(client, "one")
    answer = await client.post(
        "/ledger",
        data=json.dumps(dict(reversed(DEPOSIT.items())), indent=2),
        headers={
            "Idempotency-Key": "one",
            "username": "service",
            "Content-Type": "application/json",
        },
    )
    assert answer.headers["Idempotency-Replayed"] == "true"


async def test_the_same_key_with_another_body_is_422(client: Client) -> None:
    await register(client, "one")
    status, code, _ = await error_of(await register(client, "one", amount="0.5"))
    assert (status, code) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_a_key_of_another_actor_is_another_key(client: Client) -> None:
    await register(client, "one")
    headers = {"Idempotency-Key": "one", "username": "admin"}
    answer = await client.post("/ledger", json=DEPOSIT, headers=headers)
    assert answer.status == 201
    assert "Idempotency-Replayed" not in answer.headers


async def test_a_refused_action_leaves_its_key_free(client: Client) -> None:
    assert (await register(client, "one", amount="0")).status == 422
    assert (await register(client, "one")).status == 201


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
async def test_a_malformed_key_is_400(client: Client, key: str) -> None:
    status, code, _ = await error_of(await register(client, key))
    assert (status, code) == (400, "INVALID_IDEMPOTENCY_KEY")


async def test_a_missing_or_repeated_key_is_400(client: Client) -> None:
    missing = await client.post("/ledger", json=DEPOSIT)
    keys = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]
    repeated = await client.post("/ledger", json=DEPOSIT, headers=keys)
    assert [missing.status, repeated.status] == [400, 400]


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "gift"},
        {"amount": "-1"},
        {"amount": "0.00"},
        {"amount": 1.5},
        {"amount": "1e3"},
        {"amount": "9" * 39},
        {"surprise": "x"},
        {"username": ".."},
        {"type": "trade"},
    ],
)
async def test_an_action_that_breaks_a_rule_is_422_and_not_kept(
    client: Client, changes: dict[str, Any]
) -> None:
    before = await rows_of(client, "/ledger")
    status, _, data = await error_of(await register(client, "one", **changes))
    assert (status, data["origin"]) == (422, "ledger")
    assert data["errors"]
    assert await rows_of(client, "/ledger") == before


def test_a_key_in_flight_is_409_until_it_is_finished() -> None:
    journal, scope = Journal(), Scope("one", "POST", "/ledger", None)
    assert journal.begin(scope, "body") is None
    with pytest.raises(LedgerRefused) as refused:
        journal.begin(scope, "body")
    assert refused.value.status == 409
    journal.finish(scope, Answer(201, b"row"))
    assert journal.begin(scope, "body") == Answer(201, b"row")


def test_a_write_that_fails_frees_its_key() -> None:
    journal, scope = Journal(), Scope("one", "POST", "/ledger", None)

    def fail() -> Answer:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        once(journal, scope, {}, fail)
    assert journal.begin(scope, "other body") is None


def test_fingerprints_tell_numbers_booleans_and_strings_apart() -> None:
    documents = [1, 1.0, True, "1", None, [1], {"a": 1}]
    assert len({fingerprint_of(document) for document in documents}) == len(documents)
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})
