"""The edge: token, paths, shapes of refusals."""

import asyncio
import gzip

import pytest
from yarl import URL

from tests.gateway.sandbox.conftest import Client, Connect
from tests.gateway.sandbox.steps import DEPOSIT, RATES, error_of, rows_of

TOKEN = "a credential of the gateway"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_token_lets_in(connect: Connect, scheme: str) -> None:
    client = await connect(token=TOKEN)
    answer = await client.get("/ledger", headers={"Authorization": f"{scheme} {TOKEN}"})
    assert answer.status == 200


@pytest.mark.parametrize("given", [None, TOKEN, f"Bearer {TOKEN}x", "Bearer", "Basic eDp5", "é"])
@pytest.mark.parametrize("target", ["/ledger", "/nowhere"])
async def test_without_the_token_nothing_is_told(
    connect: Connect, given: str | None, target: str
) -> None:
    client = await connect(token=TOKEN)
    headers = {} if given is None else {"Authorization": given}
    answer = await client.get(target, headers=headers)
    status, code, data = await error_of(answer)
    assert (status, data["origin"]) == (401, "ledger")
    assert code == ("TOKEN_MISSING" if given is None else "TOKEN_INVALID")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_two_tokens_are_none(connect: Connect) -> None:
    client = await connect(token=TOKEN)
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
    assert (await client.get("/ledger", headers=headers)).status == 401


async def test_rates_refuse_in_their_own_form(connect: Connect) -> None:
    client = await connect(token=TOKEN)
    missing = await (await client.get(RATES)).json()
    wrong = await (await client.get(RATES, headers={"Authorization": "Bearer x"})).json()
    assert (missing["code"], wrong["code"]) == ("0041", "0042")
    assert {"title", "message", "requestId", "origin"} < set(missing)


async def test_health_needs_no_token(connect: Connect) -> None:
    answer = await (await connect(token=TOKEN)).get("/health")
    assert (answer.status, await answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "target",
    [
        "/ledger/%2e%2e",
        "/ledger/%7Balice%7D",
        "/ledger/a%2Fb",
        "/ledger/%FF",
        "/ledger/%25FF",
        "/ledger/%2561lice",
        "/ledger/%C3%A9ve",
        "/ledger/-alice",
        f"/ledger/{'a' * 65}",
        "/ledger/alice%0A",
        "/ledger/order/a@b",
        f"/ledger/order/{'1' * 129}",
        "/ledger/users/%2e/deposits",
    ],
)
async def test_a_path_parameter_outside_its_alphabet_is_400(client: Client, target: str) -> None:
    status, code, _ = await error_of(await client.get(URL(target, encoded=True)))
    assert (status, code) == (400, "INVALID_PATH")


@pytest.mark.parametrize(
    "target",
    ["/ledger/..", "/ledger/.", "/ledger/order/..", "/ledger/users/../deposits", RATES + "/.."],
)
async def test_dot_segments_are_400_when_they_are_sent_as_they_are(
    client: Client, target: str
) -> None:
    # The test client would normalize them.
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    status = await reader.readline()
    await reader.read()
    writer.close()
    await writer.wait_closed()
    assert status.startswith(b"HTTP/1.1 400")


async def test_a_target_in_absolute_form_is_served(client: Client) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    target = "http://ledger.example/ledger/alice?limit=1"
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Link: </ledger/alice?limit=1&cursor=" in answer


async def test_a_path_parameter_is_decoded_once(client: Client) -> None:
    assert await rows_of(client, "/ledger/%61lice") == await rows_of(client, "/ledger/alice")


async def test_unknown_paths_and_methods_are_refused_in_shape(client: Client) -> None:
    status, code, _ = await error_of(await client.get("/nowhere"))
    assert (status, code) == (404, "NOT_FOUND")
    answer = await client.delete("/ledger")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD,POST")
    rate = await client.put(RATES)
    assert (rate.status, (await rate.json())["code"]) == (405, "METHOD_NOT_ALLOWED")


async def test_the_request_id_is_taken_over_or_made(client: Client) -> None:
    taken = await client.get("/ledger", headers={"X-Request-Id": "abc-1"})
    made = await client.get("/ledger", headers={"X-Request-Id": "not this one"})
    assert taken.headers["X-Request-Id"] == "abc-1"
    assert len(made.headers["X-Request-Id"]) == 36


async def test_a_body_over_the_limit_is_413(client: Client) -> None:
    headers = {"Idempotency-Key": "one"}
    body = {**DEPOSIT, "comment": "x" * 256 * 1024}
    status, code, _ = await error_of(await client.post("/ledger", json=body, headers=headers))
    assert (status, code) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_body_of_another_type_is_415(client: Client) -> None:
    headers = {"Idempotency-Key": "one"}
    answer = await client.post("/ledger", data=b"{}", headers=headers)
    assert (await error_of(answer))[:2] == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("body", [b"", b"{", b'{"a":1,"a":2}', b"\xff", b'"\\ud800'])
async def test_a_body_that_is_not_json_is_refused(client: Client, body: bytes) -> None:
    headers = {"Idempotency-Key": "one", "Content-Type": "application/json"}
    answer = await client.post("/ledger", data=body, headers=headers)
    assert answer.status in (400, 422)


async def test_a_broken_compressed_body_is_400(client: Client) -> None:
    headers = {
        "Idempotency-Key": "one",
        "Content-Type": "application/json",
        "Content-Encoding": "gzip",
    }
    body = gzip.compress(b"{}")[:-9] + b"broken"
    answer = await client.post("/ledger", data=body, headers=headers)
    assert answer.status == 400


async def test_a_repeated_username_header_is_400(client: Client) -> None:
    headers = [("username", "a"), ("username", "b"), ("Idempotency-Key", "one")]
    answer = await client.post("/ledger", json=DEPOSIT, headers=headers)
    assert answer.status == 400
