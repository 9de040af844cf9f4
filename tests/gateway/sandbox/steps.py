"""What the tests of the sandbox do again and again."""

from typing import Any

from aiohttp import ClientResponse
from yarl import URL

from gateway.sandbox import LEDGER_ID, ORGANIZATION_ID
from tests.gateway.sandbox.conftest import Client

RATES = f"/v1/organizations/{ORGANIZATION_ID}/ledgers/{LEDGER_ID}/instrument-rates"

DEPOSIT = {"type": "deposit", "username": "alice", "currency": "BTC", "amount": "0.50000000"}


async def rows_of(client: Client, target: str) -> list[dict[str, Any]]:
    """The rows a GET answers with."""
    answer = await client.get(URL(target, encoded=True))
    assert answer.status == 200
    rows: list[dict[str, Any]] = (await answer.json())["api_data"]
    return rows


def next_target(answer: ClientResponse) -> str | None:
    """The target in `Link: <…>; rel="next"`, as it was sent."""
    link = answer.headers.get("Link")
    if link is None:
        return None
    target, relation = link.split(">; ")
    assert relation == 'rel="next"'
    return target.removeprefix("<")


async def register(client: Client, key: str, **changes: Any) -> ClientResponse:
    """Register a deposit for alice, with changes."""
    return await client.post(
        "/ledger",
        json={**DEPOSIT, **changes},
        headers={"Idempotency-Key": key, "username": "service"},
    )


async def error_of(answer: ClientResponse) -> tuple[int, str, dict[str, Any]]:
    """Status, code and data of a refusal on a ledger route."""
    body = await answer.json()
    return answer.status, body["api_message"], body["api_data"]
