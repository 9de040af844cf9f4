"""Instrument rates: the five calls of the rates API."""

import json
from typing import Any
from uuid import UUID

import pytest
from aiohttp import ClientResponse
from yarl import URL

from gateway.sandbox import LEDGER_ID, ORGANIZATION_ID, RATE_IDS
from tests.gateway.sandbox.conftest import Client
from tests.gateway.sandbox.steps import RATES

ETH_USD = {
    "baseInstrumentCode": "ETH",
    "counterInstrumentCode": "USD",
    "amount": 230000,
    "scale": 2,
    "source": "desk",
}


async def _create(client: Client, **changes: Any) -> ClientResponse:
    return await client.post(RATES, json={**ETH_USD, **changes})


async def _created(client: Client, **changes: Any) -> dict[str, Any]:
    answer = await _create(client, **changes)
    assert answer.status == 201
    rate: dict[str, Any] = await answer.json()
    return rate


async def _listed(client: Client, query: str = "") -> list[str]:
    answer = await client.get(f"{RATES}{query}")
    assert answer.status == 200
    return [rate["id"] for rate in await answer.json()]


async def _code(answer: ClientResponse) -> tuple[int, str]:
    body = await answer.json()
    assert body["origin"] == "ledger"
    assert body["requestId"] == answer.headers["X-Request-Id"]
    return answer.status, body["code"]


async def test_the_documented_rates_are_there(client: Client) -> None:
    assert await _listed(client) == list(RATE_IDS)
    first = await (await client.get(f"{RATES}/{RATE_IDS[0]}")).json()
    assert first["amount"] == 35000000
    assert first["status"]["code"] == "My custom ACTIVE code"
    assert first["createdAt"] == "2024-01-28T21:12:00Z"


async def test_a_created_rate_gets_ids_times_and_defaults(client: Client) -> None:
    rate = await _created(client)
    assert UUID(rate["id"]).version == 4
    assert (rate["organizationId"], rate["ledgerId"]) == (ORGANIZATION_ID, LEDGER_ID)
    assert rate["status"] == {"code": "ACTIVE", "description": None}
    assert rate["metadata"] == {}
    assert rate["createdAt"] == rate["updatedAt"]
    assert rate["deletedAt"] is None
    assert await (await client.get(f"{RATES}/{rate['id']}")).json() == rate


async def test_amounts_of_38_digits_stay_exact(client: Client) -> None:
    amount = int("12345678901234567890123456789012345678")
    rate = await _created(client, amount=amount, scale=38)
    answer = await client.get(f"{RATES}/{rate['id']}")
    assert f'"amount":{amount},' in await answer.text()


async def test_metadata_keeps_its_types(client: Client) -> None:
    metadata = {"text": "300", "number": 300, "fraction": 0.5, "flag": True, "nothing": None}
    rate = await _created(client, metadata=metadata)
    assert json.dumps(rate["metadata"]) == json.dumps(metadata)


async def test_an_active_pair_cannot_be_created_twice(client: Client) -> None:
    rate = await _created(client)
    assert await _code(await _create(client)) == (409, "0028")
    await client.delete(f"{RATES}/{rate['id']}")
    assert (await _create(client)).status == 201


async def test_the_same_pair_may_be_active_in_another_ledger(client: Client) -> None:
    await _created(client)
    elsewhere = RATES.replace(LEDGER_ID, RATE_IDS[0])
    assert (await client.post(elsewhere, json=ETH_USD)).status == 201


async def test_a_patch_may_not_take_an_active_pair(client: Client) -> None:
    rate = await _created(client)
    patch = {"baseInstrumentCode": "BTC"}
    answer = await client.patch(f"{RATES}/{rate['id']}", json=patch)
    assert await _code(answer) == (409, "0028")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?baseInstrumentCode=BRL", [0]),
        ("?counterInstrumentCode=USD", [1]),
        ("?source=Coinmarketcap", [1]),
        ("?metadata.updateCycle=300", [0]),
        ("?metadata.urgent=true", [0]),
        ("?metadata.anyKey=anyValue", [1]),
        ('?metadata.anyKey="anyValue"', []),
        ('?metadata={"anyKey":"anyValue"}', [1]),
        ("?metadata.missing=null", []),
        ("?baseInstrumentCode=BRL&source=Coinmarketcap", []),
    ],
)
async def test_filters_of_the_list(client: Client, query: str, found: list[int]) -> None:
    assert await _listed(client, query) == [RATE_IDS[index] for index in found]


async def test_an_unknown_filter_is_400(client: Client) -> None:
    assert (await client.get(f"{RATES}?limit=3")).status == 400


async def test_a_patch_replaces_metadata_whole_and_leaves_the_rest(client: Client) -> None:
    target = f"{RATES}/{RATE_IDS[0]}"
    before = await (await client.get(target)).json()
    answer = await client.patch(target, json={"source": "my head", "metadata": {"whoAmI": "x"}})
    after = await answer.json()
    assert answer.status == 200
    assert after["metadata"] == {"whoAmI": "x"}
    assert after["updatedAt"] > before["updatedAt"]
    changed = {"source", "metadata", "updatedAt"}
    assert {name for name in before if before[name] != after[name]} == changed
    assert await (await client.get(target)).json() == after


async def test_fields_of_the_ledger_cannot_be_patched(client: Client) -> None:
    answer = await client.patch(f"{RATES}/{RATE_IDS[0]}", json={"createdAt": "x", "id": "y"})
    assert await _code(answer) == (400, "0053")
    assert set((await answer.json())["fields"]) == {"createdAt", "id"}


async def test_missing_fields_are_named(client: Client) -> None:
    answer = await client.post(RATES, json={"source": "desk"})
    assert await _code(answer) == (400, "0009")
    assert "amount" in (await answer.json())["fields"]


async def test_a_deleted_rate_is_read_by_id_and_left_out_of_lists(client: Client) -> None:
    target = f"{RATES}/{RATE_IDS[0]}"
    answer = await client.delete(target)
    assert (answer.status, await answer.read()) == (204, b"")
    rate = await (await client.get(target)).json()
    assert rate["status"]["code"] == "INACTIVE"
    assert rate["deletedAt"].endswith("Z")
    assert await _listed(client) == [RATE_IDS[1]]


async def test_a_deleted_rate_cannot_be_deleted_or_patched_again(client: Client) -> None:
    target = f"{RATES}/{RATE_IDS[0]}"
    await client.delete(target)
    assert await _code(await client.delete(target)) == (404, "0007")
    assert await _code(await client.patch(target, json={"source": "x"})) == (404, "0007")


async def test_ids_count_in_either_case(client: Client) -> None:
    upper = RATES.replace(ORGANIZATION_ID, ORGANIZATION_ID.upper())
    answer = await client.get(f"{upper}/{RATE_IDS[0].upper()}")
    assert (await answer.json())["id"] == RATE_IDS[0]


async def test_a_rate_of_another_ledger_is_not_found(client: Client) -> None:
    elsewhere = RATES.replace(LEDGER_ID, RATE_IDS[1])
    assert await _code(await client.get(f"{elsewhere}/{RATE_IDS[0]}")) == (404, "0007")
    assert await (await client.get(elsewhere)).json() == []


@pytest.mark.parametrize(
    "target",
    [
        f"{RATES}/1",
        f"{RATES}/{{{RATE_IDS[0]}}}",
        RATES.replace(LEDGER_ID, LEDGER_ID.replace("-", "")),
        RATES.replace(ORGANIZATION_ID, "%2e%2e"),
    ],
)
async def test_an_id_that_is_no_uuid_is_400(client: Client, target: str) -> None:
    assert await _code(await client.get(URL(target, encoded=True))) == (400, "0065")


@pytest.mark.parametrize("body", ["{", '{"a":1,"a":2}', "[", '{"amount":NaN}', "\xff"])
async def test_a_body_that_is_not_json_is_400(client: Client, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await client.post(RATES, data=body.encode("latin-1"), headers=headers)
    status, code = await _code(answer)
    assert (status, code[:2]) == (400, "00")


async def test_keys_are_honoured_on_all_writes_of_rates(client: Client) -> None:
    headers = {"Idempotency-Key": "one", "username": "service"}
    first = await client.post(RATES, json=ETH_USD, headers=headers)
    second = await client.post(RATES, json=ETH_USD, headers=headers)
    assert await first.read() == await second.read()
    assert second.headers["Idempotency-Replayed"] == "true"
    target = f"{RATES}/{(await first.json())['id']}"
    deleted = [await client.delete(target, headers=headers) for _ in range(2)]
    assert [answer.status for answer in deleted] == [204, 204]
    assert deleted[1].headers["Idempotency-Replayed"] == "true"
