"""The walk from end to end: what the ledger hears, and what of its answer each caller sees."""

import asyncio
import gc
import itertools
import json
import re
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import jwt
import pytest
from aiohttp import ClientResponse, web
from aiohttp.client_exceptions import ClientPayloadError
from yarl import URL

from gateway import views
from tests.conftest import (
    ADMIN,
    CREDENTIAL,
    LEDGER,
    NO_RETRIES,
    ORGANIZATION,
    RATE,
    RATES,
    SERVICE,
    MakeClient,
    caller,
)
from tests.fakes import FakeLedger, envelope
from tests.gateway.test_edge import Client, RawAnswer, exchange, heard, lines, parsed, raw

ALICE, BOB = caller("alice"), caller("bob")
AS_ADMIN, AS_SERVICE = caller(*ADMIN), caller(*SERVICE)
JSON = {"Content-Type": "application/json"}
ACTION = b'{"type":"deposit","username":"alice","currency":"BTC","amount":"1"}'
ONE_RATE = f"{RATES}/{RATE}"


def row(number: int, username: str = "alice", **fields: Any) -> str:
    """A row as a ledger may write it."""
    return json.dumps({"id": f"row-{number}", "username": username, **fields})


def rows_of(count: int, username: str = "alice") -> list[str]:
    return [row(number, username) for number in range(count)]


class Paged:
    """A ledger list in pages of at most `most` rows, whatever is asked for."""

    def __init__(self, rows: Sequence[str], most: int = 1000) -> None:
        self.rows = rows
        self.most = most

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        start = int(request.query.get("cursor", "0"))
        end = start + min(self.most, int(request.query["limit"]))
        more = (
            {"Link": f'<{request.path}?cursor={end}>; rel="next"'} if end < len(self.rows) else {}
        )
        text = f'{{"api_message":"OK","api_data":[{",".join(self.rows[start:end])}]}}'
        return web.Response(text=text, content_type="application/json", headers=more)


async def get(client: Client, target: str, headers: dict[str, str]) -> ClientResponse:
    """The answer to a GET whose target is already encoded."""
    return await client.get(URL(target, encoded=True), headers=headers)


async def seen(client: Client, target: str, headers: dict[str, str]) -> Any:
    """The `api_data` of a good answer."""
    answer = await get(client, target, headers)
    assert answer.status == 200, await answer.text()
    return envelope(await answer.json())


async def refused(client: Client, target: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and code of a refusal."""
    answer = await get(client, target, headers)
    body = await answer.json()
    return answer.status, body["code"] if target.startswith("/v1/") else body["api_message"]


def next_of(answer: ClientResponse) -> str | None:
    """The target of the link to the next page."""
    link = answer.headers.get("Link")
    if link is None:
        return None
    match = re.fullmatch(r'<(/[^>]*)>; rel="next"', link)
    assert match is not None
    return match[1]


async def followed(
    client: Client, target: str | None, headers: dict[str, str]
) -> list[tuple[bytes, str | None]]:
    """Body and link of a page and of all that follow it."""
    found = []
    while target is not None:
        answer = await get(client, target, headers)
        assert answer.status == 200, await answer.text()
        found.append((await answer.read(), answer.headers.get("Link")))
        target = next_of(answer)
        assert len(found) < 500, "the pages come to an end"
    return found


def ids(pages: Sequence[tuple[bytes, str | None]]) -> list[list[str]]:
    return [[one["id"] for one in json.loads(body)["api_data"]] for body, _ in pages]


# What the ledger hears.

WHOLE = {"limit": "1000"}
UPPER = f"/v1/organizations/{ORGANIZATION.upper()}/ledgers/{LEDGER.upper()}/instrument-rates"
HEARD: list[tuple[str, dict[str, str], str, dict[str, str]]] = [
    ("/ledger", AS_ADMIN, "/ledger", WHOLE),
    ("/ledger", AS_SERVICE, "/ledger", WHOLE),
    ("/ledger", ALICE, "/ledger/alice", WHOLE),
    ("/ledger", caller("a.b+c@d-e_f"), "/ledger/a.b%2Bc%40d-e_f", WHOLE),
    ("/ledger?limit=5", ALICE, "/ledger/alice", {"limit": "5"}),
    ("/ledger?limit=1000", AS_ADMIN, "/ledger", WHOLE),
    ("/ledger/alice", ALICE, "/ledger/alice", WHOLE),
    ("/ledger/%61lice", ALICE, "/ledger/alice", WHOLE),
    ("/ledger/bob", AS_ADMIN, "/ledger/bob", WHOLE),
    ("/ledger/a%2Bb%40c", AS_ADMIN, "/ledger/a%2Bb%40c", WHOLE),
    ("/ledger/a+b@c", AS_ADMIN, "/ledger/a%2Bb%40c", WHOLE),
    ("/ledger/order", AS_ADMIN, "/ledger/order", WHOLE),
    ("/ledger/order/a:b_c-1", AS_ADMIN, "/ledger/order/a%3Ab_c-1", WHOLE),
    ("/ledger/order/a%3Ab?limit=7", AS_ADMIN, "/ledger/order/a%3Ab", {"limit": "7"}),
    ("/ledger/order/own?limit=7", ALICE, "/ledger/order/own", WHOLE),
    ("/ledger/users/bob/deposits", AS_ADMIN, "/ledger/users/bob/deposits", {}),
    (
        "/ledger?type=deposit&status=pending&currency=BTC",
        ALICE,
        "/ledger/alice",
        WHOLE | {"type": "deposit", "status": "pending", "currency": "BTC"},
    ),
    (
        "/ledger?since=2024-01-28T21:12:00%2B03:00&until=2024-01-29t00:00:00.5z",
        AS_ADMIN,
        "/ledger",
        WHOLE | {"since": "2024-01-28T21:12:00+03:00", "until": "2024-01-29t00:00:00.5z"},
    ),
    (
        "/ledger?type=some_type_of_the_ledger",
        AS_ADMIN,
        "/ledger",
        WHOLE | {"type": "some_type_of_the_ledger"},
    ),
    (RATES, ALICE, RATES, {}),
    (UPPER, ALICE, RATES, {}),
    (f"{UPPER}/{RATE.upper()}", ALICE, ONE_RATE, {}),
    (
        f"{RATES}?baseInstrumentCode=BRL&counterInstrumentCode=BTC&source=a%20b%26c",
        ALICE,
        RATES,
        {"baseInstrumentCode": "BRL", "counterInstrumentCode": "BTC", "source": "a b&c"},
    ),
    (f"{RATES}?metadata.any%20Key=a%3Db%26c", ALICE, RATES, {"metadata.any Key": "a=b&c"}),
    (
        f"{RATES}?metadata=" + quote('{"a":"x","n":1.50,"t":true,"z":null}'),
        ALICE,
        RATES,
        {"metadata.a": "x", "metadata.n": "1.50", "metadata.t": "true", "metadata.z": "null"},
    ),
    (f"{RATES}?metadata=%7B%7D", ALICE, RATES, {}),
]


@pytest.mark.parametrize(("target", "headers", "path", "query"), HEARD)
async def test_the_ledger_is_asked_on_a_path_of_ours_with_checked_parameters(
    client: Client,
    ledger: FakeLedger,
    target: str,
    headers: dict[str, str],
    path: str,
    query: dict[str, str],
) -> None:
    ledger.on("GET", RATES, "[]")
    ledger.on("GET", ONE_RATE, "{}")
    ledger.on("GET", "/ledger/users/bob/deposits", '{"api_message":"OK","api_data":{}}')
    ledger.rows("/ledger/order/own", row(1))
    answer = await get(client, target, headers)
    assert answer.status == 200, await answer.text()
    assert [(call.method, call.path, call.query) for call in ledger.calls] == [("GET", path, query)]


NOISE = {
    "Cookie": "session=1",
    "Referer": "http://caller/secret",
    "User-Agent": "caller/1.0",
    "Accept-Language": "de",
    "X-Forwarded-For": "10.0.0.1",
    "X-Forwarded-Host": "evil",
    "X-Forwarded-User": "bob",
    "X-Original-URL": "/ledger/bob",
    "X-Rewrite-URL": "/ledger/bob",
    "X-HTTP-Method-Override": "DELETE",
    "Forwarded": "for=10.0.0.1;host=evil",
    "X-Role": "admin",
    "Role": "admin",
    "X-User": "bob",
    "Proxy-Authorization": "Basic YTpi",
    "Traceparent": "00-1-1-00",
}


async def test_of_a_read_the_ledger_sees_who_acts_and_which_request_and_nothing_else(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.on("GET", RATES, "[]")
    extra = NOISE | JSON | {"Idempotency-Key": "key-1", "X-Request-Id": "mine"}
    for target in ("/ledger", "/ledger/order/1?limit=2", RATES):
        assert (await get(client, target, AS_ADMIN | extra)).status == 200
    for call in ledger.calls:
        assert {name: value for name, value in heard(call).items() if name != "host"} == {
            "accept": "application/json",
            "accept-encoding": "identity",
            "authorization": f"Bearer {CREDENTIAL}",
            "username": ADMIN[0],
            "x-request-id": "mine",
        }
        assert heard(call)["host"] in ledger.url
        assert AS_ADMIN["Authorization"] not in str(call)


async def test_of_a_write_the_ledger_sees_the_body_and_its_key_too(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.on("POST", "/ledger", f'{{"api_message":"OK","api_data":{row(1)}}}', 201)
    headers = AS_SERVICE | NOISE | JSON | {"Idempotency-Key": "key-1", "X-Request-Id": "mine"}
    answer = await client.post("/ledger", headers=headers, data=ACTION)
    assert answer.status == 201
    (call,) = ledger.calls
    assert {name: value for name, value in heard(call).items() if name != "host"} == {
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": f"Bearer {CREDENTIAL}",
        "username": SERVICE[0],
        "x-request-id": "mine",
        "content-type": "application/json",
        "content-length": str(len(ACTION)),
        "idempotency-key": "key-1",
    }
    assert (call.method, call.path, call.query, call.body) == ("POST", "/ledger", {}, ACTION)


async def test_a_ledger_on_a_path_prefix_is_asked_below_it(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(f"{ledger.url}/core/ledger-api/")
    assert (await get(client, "/ledger/alice", ALICE)).status == 200
    assert [call.path for call in ledger.calls] == ["/core/ledger-api/ledger/alice"]


# Whose rows.

MIXED = [
    row(1, "alice"),
    row(2, "bob"),
    row(3, "Alice"),
    row(4, "alice "),
    row(5, "\uff41lice"),
    '{"id":"row-6"}',
    '{"id":"row-7","username":null}',
    '{"id":"row-8","username":["alice"]}',
    '{"id":"row-9","username":"alice","username":"bob"}',
    '{"id":"row-10","username":"bob","username":"alice"}',
    '{"id":"row-11","username":"alice","username":"alice"}',
    '{"id":"row-12","username":"alice","\\u0075sername":"bob"}',
    '{"id":"row-13","user":{"username":"alice"}}',
    '{"id":"row-14","username":"bob","comment":"\\"username\\":\\"alice\\""}',
    '{"id":"row-15","\\u0075sername":"\\u0061lice"}',
    '{"id":"row-16","comment":"\\"username\\":\\"bob\\"","username":"alice"}',
    '{"id":"row-17","USERNAME":"alice","username":"bob"}',
    '{"id":"row-18","nested":{"username":"bob"},"username":"alice"}',
]
ALICES = ["row-1", "row-15", "row-16", "row-18"]
AMBIGUOUS = {f"row-{number}" for number in (6, 7, 8, 9, 10, 11, 12, 13)}
LISTS = ["/ledger", "/ledger/alice", "/ledger/order/1"]


@pytest.mark.parametrize("query", ["", "?limit=1000", "?limit=18"])
@pytest.mark.parametrize("target", LISTS)
async def test_a_user_sees_rows_that_are_theirs_beyond_doubt_and_no_others(
    client: Client, ledger: FakeLedger, target: str, query: str
) -> None:
    for path in LISTS:
        ledger.rows(path, *MIXED)
    answer = await get(client, target + query, ALICE)
    assert answer.status == 200
    assert [one["id"] for one in envelope(await answer.json())] == ALICES
    assert "bob" not in (await answer.text()).replace('\\"username\\":\\"bob\\"', "").replace(
        '"nested":{"username":"bob"}', ""
    )
    assert "Link" not in answer.headers


@pytest.mark.parametrize("target", LISTS)
async def test_an_admin_sees_every_row_and_a_service_every_row_with_one_owner(
    client: Client, ledger: FakeLedger, target: str
) -> None:
    for path in LISTS:
        ledger.rows(path, *MIXED)
    every = [f"row-{number}" for number in range(1, 19)]
    assert [one["id"] for one in await seen(client, target, AS_ADMIN)] == every
    found = [one["id"] for one in await seen(client, target, AS_SERVICE)]
    assert found == [one for one in every if one not in AMBIGUOUS]


@pytest.mark.parametrize("headers", [ALICE, AS_ADMIN], ids=["user", "admin"])
async def test_pending_deposits_are_grouped_by_currency(
    client: Client, ledger: FakeLedger, headers: dict[str, str]
) -> None:
    data = f'{{"BTC":[{row(1)},{row(2)}], "ETH" : [{row(3)}]}}'
    path = "/ledger/users/alice/deposits"
    ledger.on("GET", path, f'{{"api_message":"OK","api_data":{data}}}')
    found = await seen(client, path, headers)
    assert {name: [one["id"] for one in group] for name, group in found.items()} == {
        "BTC": ["row-1", "row-2"],
        "ETH": ["row-3"],
    }


async def test_no_pending_deposits_are_an_empty_object(client: Client, ledger: FakeLedger) -> None:
    path = "/ledger/users/alice/deposits"
    ledger.on("GET", path, '{"api_message":"OK","api_data":{}}')
    answer = await get(client, path, ALICE)
    assert await answer.read() == b'{"api_message":"LEDGER_GET_DEPOSITS_SUCCESS","api_data":{}}'


async def test_a_user_does_not_hear_in_which_currencies_others_wait_for_deposits(
    client: Client, ledger: FakeLedger
) -> None:
    data = f'{{"XMR":[{row(1, "bob")}],"BTC":[{row(2, "bob")},{row(3)}],"ETH":[{MIXED[8]}]}}'
    path = "/ledger/users/alice/deposits"
    ledger.on("GET", path, f'{{"api_message":"OK","api_data":{data}}}')
    found = await seen(client, path, ALICE)
    assert {name: [one["id"] for one in group] for name, group in found.items()} == {
        "BTC": ["row-3"]
    }
    assert set(await seen(client, path, AS_ADMIN)) == {"XMR", "BTC", "ETH"}
    assert set(await seen(client, path, AS_SERVICE)) == {"XMR", "BTC"}


OTHERS_ONLY = [row(1, "bob"), row(2, "Alice"), MIXED[8]]


async def answer_without_time(
    client: Client, target: str, headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    """All of an answer but what tells when it was made."""
    answer = await get(client, target, headers | {"X-Request-Id": "the-same"})
    of_time = {"Date", "Age", "Cache-Status"}
    kept = {name: value for name, value in answer.headers.items() if name not in of_time}
    return answer.status, kept, await answer.read()


@pytest.mark.parametrize("query", ["", "?limit=1", "?limit=1000", "?status=pending"])
async def test_an_order_of_others_and_no_order_are_answered_alike(
    client: Client, ledger: FakeLedger, query: str
) -> None:
    path, answers = "/ledger/order/1", []
    for status, body in (
        (200, f'{{"api_message":"OK","api_data":[{",".join(OTHERS_ONLY)}]}}'),
        (200, f"[{OTHERS_ONLY[0]}]"),
        (200, '{"api_message":"OK","api_data":[]}'),
        (404, '{"api_message":"ORDER_NOT_FOUND","api_data":{"detail":"no such order"}}'),
        (410, "gone"),
    ):
        ledger.on("GET", path, body, status)
        answers.append(await answer_without_time(client, path + query, ALICE))
    ledger.run("GET", path, Paged(rows_of(5, "bob"), most=1))
    answers.append(await answer_without_time(client, path + query, ALICE))
    assert answers[0][0] == 403
    assert all(answer == answers[0] for answer in answers)


async def test_those_who_see_all_hear_that_an_order_is_empty_or_not_there(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.rows("/ledger/order/1")
    ledger.on("GET", "/ledger/order/2", "{}", 404)
    for headers in (AS_ADMIN, AS_SERVICE):
        assert await seen(client, "/ledger/order/1", headers) == []
        assert await refused(client, "/ledger/order/2", headers) == (404, "NOT_FOUND")


async def test_a_user_without_rows_has_an_empty_ledger(client: Client, ledger: FakeLedger) -> None:
    ledger.rows("/ledger/alice", *OTHERS_ONLY)
    for target in ("/ledger", "/ledger/alice", "/ledger?limit=1", "/ledger/alice?limit=2"):
        assert await seen(client, target, ALICE) == []


# Which fields, and every byte of them.

ODD = (
    '{ "id" : "row-1" ,"username":"alice","amount":"-0.10000000","n":1.50e+02, "lp_id" : "x" ,'
    '"big":12345678901234567890123456789012345678,"lp_name":{"a":[1,{"b":"}"}]},"zero":-0.0,'
    '"text":"\\u00e9 é \\/ \\"lp_id\\":1","list":[1, 2 ,{"lp_id":"kept"}],"lp_ids":1,'
    '"lp\\u005fid":"y","created_by_id":null,"twice":1,"twice":2,"new field":true }'
)
SHOWN = (
    '{ "id" : "row-1" ,"username":"alice","amount":"-0.10000000","n":1.50e+02,'
    '"big":12345678901234567890123456789012345678,"zero":-0.0,'
    '"text":"\\u00e9 é \\/ \\"lp_id\\":1","list":[1, 2 ,{"lp_id":"kept"}],"lp_ids":1,'
    '"twice":1,"twice":2,"new field":true }'
)
LIST_MESSAGES = {
    "/ledger": "LEDGER_GET_LIST_SUCCESS",
    "/ledger/alice": "LEDGER_GET_USER_SUCCESS",
    "/ledger/order/1": "LEDGER_GET_ORDER_SUCCESS",
}


@pytest.mark.parametrize("query", ["", "?limit=9"])
@pytest.mark.parametrize(("target", "message"), LIST_MESSAGES.items())
async def test_a_row_is_passed_on_byte_for_byte_but_for_what_a_user_may_not_see(
    client: Client, ledger: FakeLedger, target: str, message: str, query: str
) -> None:
    for path in LISTS:
        ledger.rows(path, ODD, ODD)
    for headers, one in ((AS_ADMIN, ODD), (AS_SERVICE, ODD), (ALICE, SHOWN)):
        answer = await get(client, target + query, headers)
        wanted = f'{{"api_message":"{message}","api_data":[{one},{one}]}}'
        assert (await answer.read()).decode() == wanted


async def test_the_fields_of_deposits_are_hidden_too(client: Client, ledger: FakeLedger) -> None:
    path = "/ledger/users/alice/deposits"
    ledger.on("GET", path, f'{{"api_message":"OK","api_data":{{"B\\u0054C":[{ODD}]}}}}')
    for headers, one in ((AS_ADMIN, ODD), (ALICE, SHOWN)):
        answer = await get(client, path, headers)
        wanted = (
            f'{{"api_message":"LEDGER_GET_DEPOSITS_SUCCESS","api_data":{{"B\\u0054C":[{one}]}}}}'
        )
        assert (await answer.read()).decode() == wanted


async def test_which_fields_are_hidden_is_configurable(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    ledger.rows("/ledger/alice", row(1, lp_id="x", comment="y"))
    some = await make_client(visibility__hidden_fields="comment, id")
    none = await make_client(visibility__hidden_fields="[]")
    assert await seen(some, "/ledger", ALICE) == [{"username": "alice", "lp_id": "x"}]
    assert await seen(none, "/ledger", ALICE) == [json.loads(row(1, lp_id="x", comment="y"))]


@pytest.mark.parametrize("headers", [ALICE, AS_SERVICE, AS_ADMIN], ids=["user", "service", "admin"])
async def test_rates_are_passed_on_byte_for_byte(
    client: Client, ledger: FakeLedger, headers: dict[str, str]
) -> None:
    one = (
        '{ "amount":35000000.00, "scale" : 2,"big":1e5,"lp_id":"kept",\n'
        '"source":"\\u00e9 é","a":1,"a":2}'
    )
    for path, body in ((RATES, f"[{one} ,\n{one}]"), (RATES, "[]"), (ONE_RATE, one)):
        ledger.on("GET", path, body)
        answer = await get(client, path, headers)
        assert (answer.status, (await answer.read()).decode()) == (200, body)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"api_message":"OK","api_data":[{row(1)}]}}',
        f'{{"api_data":[{row(1)}],"api_message":"OK","more":[1]}}',
        f'{{"api_data":[{row(1)}]}}',
        f"[{row(1)}]",
        f" \r\n\t[ {row(1)} ] \n",
    ],
)
@pytest.mark.parametrize("target", LISTS)
async def test_the_ledger_may_send_an_envelope_or_a_bare_array(
    client: Client, ledger: FakeLedger, target: str, body: str
) -> None:
    for path in LISTS:
        ledger.on("GET", path, body)
    for headers in (ALICE, AS_ADMIN):
        assert await seen(client, target, headers) == [json.loads(row(1))]


# A body that cannot be read is passed on to nobody.

DEPOSITS = "/ledger/users/alice/deposits"
GOOD_ROW = row(1, marker="MARKER")
NONSENSE: dict[str, bytes] = {
    "nothing": b"",
    "HTML": b"<html>MARKER</html>",
    "text": b"MARKER",
    "a string": b'"MARKER"',
    "half": b'{"api_message":"OK","api_data":[' + GOOD_ROW.encode(),
    "trailing data": b'{"api_message":"OK","api_data":[]}MARKER',
    "two documents": b"[][]",
    "null": b"null",
    "null inside": b'{"api_message":"OK","api_data":null}',
    "no api_data": b'{"api_message":"OK","data":["MARKER"]}',
    "a string inside": b'{"api_message":"OK","api_data":"MARKER"}',
    "rows that are strings": b'{"api_message":"OK","api_data":["MARKER"]}',
    "rows that are arrays": b'{"api_message":"OK","api_data":[["MARKER"]]}',
    "groups that are strings": b'{"api_message":"OK","api_data":{"BTC":"MARKER"}}',
    "groups that are rows": b'{"api_message":"OK","api_data":{"BTC":' + GOOD_ROW.encode() + b"}}",
    "bad UTF-8": b'[{"id":"1","username":"alice","x":"MARKER\xff"}]',
    "bad UTF-8 in groups": b'{"api_data":{"BTC":[{"id":"1","username":"alice","x":"MARKER\xff"}]}}',
    "BOM": b"\xef\xbb\xbf[" + GOOD_ROW.encode() + b"]",
    "UTF-16": f"[{GOOD_ROW}]".encode("utf-16"),
    "NaN": b'[{"id":"1","username":"alice","x":NaN}]',
    "NaN in groups": b'{"api_data":{"BTC":[{"id":"1","username":"alice","x":NaN}]}}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep inside": b'{"api_data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "5000 digits": b'[{"id":"1","username":"alice","x":' + b"9" * 5000 + b"}]",
    "5000 digits in groups": b'{"api_data":{"B":[{"id":"1","username":"alice","x":%b}]}}'
    % (b"9" * 5000),
    "single quotes": b"[{'username':'alice'}]",
    "trailing comma": b'[{"id":"1","username":"alice"},]',
}


@pytest.mark.parametrize("headers", [ALICE, AS_SERVICE, AS_ADMIN], ids=["user", "service", "admin"])
@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_from_the_ledger_is_502_and_not_shown(
    client: Client, ledger: FakeLedger, name: str, headers: dict[str, str]
) -> None:
    for target in (*LISTS, "/ledger?limit=2", DEPOSITS):
        for path in (*LISTS, DEPOSITS):
            ledger.on("GET", path, NONSENSE[name])
        answer = await get(client, target, headers)
        body = await answer.json()
        assert (answer.status, body["api_message"]) == (502, "LEDGER_BROKEN")
        assert body["api_data"]["origin"] == "ledger"
        assert "MARKER" not in await answer.text()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RATES, "{}"),
        (RATES, '{"api_data":[]}'),
        (RATES, "null"),
        (RATES, "[NaN]"),
        (RATES, f"[{'9' * 5000}]"),
        (RATES, "[" * 100_000 + "]" * 100_000),
        (RATES, "[{}] MARKER"),
        (RATES, "<html>MARKER</html>"),
        (RATES, ""),
        (RATES, '[{"code":"0007","message":"MARKER"}]'),
        (ONE_RATE, '{"code":"0007","title":"MARKER","message":"MARKER"}'),
        (ONE_RATE, '{"error":"MARKER"}'),
        (ONE_RATE, "[]"),
        (ONE_RATE, '"MARKER"'),
        (ONE_RATE, ""),
        (ONE_RATE, '{"amount":' + "9" * 5000 + "}"),
        (ONE_RATE, '{"amount":1'),
    ],
)
async def test_rates_that_cannot_be_read_are_502(
    client: Client, ledger: FakeLedger, path: str, body: str
) -> None:
    ledger.on("GET", path, body)
    for headers in (ALICE, AS_ADMIN):
        answer = await get(client, path, headers)
        document = await answer.json()
        assert (answer.status, document["code"], document["origin"]) == (
            *(502, "LEDGER_BROKEN", "ledger"),
        )
        assert "MARKER" not in await answer.text()


# Queries.

BAD_LIST_QUERIES = [
    *(
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=01",
        "limit=1.0",
        "limit=+1",
        "limit=x",
        "limit=",
    ),
    *("limit=%D9%A1", "limit=1%20", "limit=1_0", "limit=99999999999999999999", "limit=1e3"),
    *("limit=1&limit=1", "type=a&type=b", "unknown=1", "Limit=1", "username=bob", "user=bob"),
    *("cursor=abc", "limit=5&cursor=", "limit=5&cursor=%00", "limit=5&cursor=a%2Fb", "offset=1"),
    *(
        "status=done",
        "status=Pending",
        "status=",
        "type=",
        "type=a%20b",
        "currency=",
        "currency=%2e",
    ),
    *(
        "since=yesterday",
        "since=2024-01-28",
        "until=1706476320",
        "since=",
        "until=2024-13-01T00:00:00Z",
    ),
    *("%zz=1", "limit=%", "a", "=1", "&", "limit=5&", "%FF=1", "limit=5%00", "type=a%0d%0aX:y"),
    *("fields=lp_id", "include=all", "as=bob", "type[]=a", "limit[]=5", "limit=5;type=a"),
]


@pytest.mark.parametrize("query", BAD_LIST_QUERIES)
async def test_a_list_is_not_asked_for_in_other_ways(
    client: Client, ledger: FakeLedger, query: str
) -> None:
    for target in LISTS:
        for headers in (ALICE, AS_ADMIN):
            status, code = await refused(client, f"{target}?{query}", headers)
            assert status == 400
            assert code in ("INVALID_QUERY", "INVALID_CURSOR")
    assert ledger.calls == []


@pytest.mark.parametrize(
    "query",
    [
        *("limit=5", "cursor=a", "unknown=1", "baseInstrumentCode=brl", "baseInstrumentCode="),
        *("source=", "source=a&source=b", "metadata=x", "metadata=[]", "metadata=%7B", "metadata."),
        *("metadata.=1", "metadata.a=1&metadata.a=2", "metadata.a=", "metadata%5Ba%5D=1"),
        *("metadata=%7B%22a%22:%7B%7D%7D", "metadata=%7B%22a%22:1,%22a%22:2%7D", "metadata.a=%00"),
        *("metadata=%7B%22a%22:%221%22%7D&metadata.a=1", "metadata=%7B%22a%22:NaN%7D", "%FF=1"),
        "&".join(f"metadata.k{number}=1" for number in range(33)),
        f"metadata.{'k' * 101}=1",
    ],
)
async def test_rates_are_not_filtered_in_other_ways(
    client: Client, ledger: FakeLedger, query: str
) -> None:
    for headers in (ALICE, AS_ADMIN):
        assert await refused(client, f"{RATES}?{query}", headers) == (400, "0047")
    assert ledger.calls == []


@pytest.mark.parametrize("query", ["limit=1", "x=1", "cursor=a", "metadata.a=1", "&"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", DEPOSITS),
        ("GET", ONE_RATE),
        ("POST", "/ledger"),
        ("POST", RATES),
        ("PATCH", ONE_RATE),
        ("DELETE", ONE_RATE),
    ],
)
async def test_other_routes_take_no_query(
    client: Client, ledger: FakeLedger, method: str, path: str, query: str
) -> None:
    answer = await client.request(
        method,
        URL(f"{path}?{query}", encoded=True),
        headers=AS_ADMIN | JSON | {"Idempotency-Key": "1"},
        data=ACTION,
    )
    assert answer.status == 400
    assert ledger.calls == []


async def test_a_bare_question_mark_is_no_query(client: Client, ledger: FakeLedger) -> None:
    assert await seen(client, "/ledger?", ALICE) == []
    assert [call.query for call in ledger.calls] == [WHOLE]


# Writes.

KEY = {"Idempotency-Key": "key-1"}
NEW_RATE = (
    '{ "baseInstrumentCode":"BRL","counterInstrumentCode":"BTC", "amount" : 35000000,"scale":2,\n'
    '"source":"\\u00e9 é","metadata":{"n":1.50e+02}}'
)
WRITES = [
    ("POST", "/ledger", ACTION.decode(), f'{{"api_message":"OK","api_data":{ODD}}}', 201),
    ("POST", RATES, NEW_RATE, ODD, 201),
    ("PATCH", ONE_RATE, '{ "amount" : 1 }', ODD, 200),
    ("DELETE", ONE_RATE, "", "", 204),
]


@pytest.mark.parametrize("headers", [AS_SERVICE, AS_ADMIN], ids=["service", "admin"])
@pytest.mark.parametrize(("method", "path", "body", "reply", "status"), WRITES)
async def test_a_write_goes_on_byte_for_byte_and_its_answer_comes_back_so(
    client: Client,
    ledger: FakeLedger,
    method: str,
    path: str,
    body: str,
    reply: str,
    status: int,
    headers: dict[str, str],
) -> None:
    wanted = reply.replace("OK", "LEDGER_POST_SUCCESS").encode()
    for ledgers_status in {200, status}:
        ledger.on(method, path, reply, ledgers_status)
        ledger.calls.clear()
        answer = await client.request(
            method, path, headers=headers | JSON | KEY, data=body.encode()
        )
        assert (answer.status, await answer.read()) == (status, wanted)
        assert "Idempotency-Replayed" not in answer.headers
        (call,) = ledger.calls
        assert (call.method, call.path, call.body) == (method, path, body.encode())
        assert heard(call)["idempotency-key"] == "key-1"


@pytest.mark.parametrize(("method", "path", "body", "reply", "status"), WRITES)
async def test_that_a_write_was_replayed_is_passed_on(
    client: Client,
    ledger: FakeLedger,
    method: str,
    path: str,
    body: str,
    reply: str,
    status: int,
) -> None:
    for said, told in (("true", ["true"]), ("TRUE", ["true"]), ("false", []), ("1", [])):
        ledger.on(method, path, reply, status, Idempotency_Replayed=said)
        answer = await client.request(
            method, path, headers=AS_SERVICE | JSON | KEY, data=body.encode()
        )
        assert answer.status == status
        assert answer.headers.getall("Idempotency-Replayed", []) == told
    assert len(ledger.calls) == 4, "the ledger decides what a repetition is"


@pytest.mark.parametrize(
    ("status", "code"), [(409, "CONFLICT"), (422, "REFUSED"), (429, "TOO_MANY_REQUESTS")]
)
async def test_what_the_ledger_says_of_a_repetition_is_passed_on(
    client: Client, ledger: FakeLedger, status: int, code: str
) -> None:
    ledger.on("POST", "/ledger", "{}", status)
    answer = await client.post("/ledger", headers=AS_SERVICE | JSON | KEY, data=ACTION)
    assert (answer.status, (await answer.json())["api_message"]) == (status, code)
    assert len(ledger.calls) == 1


@pytest.mark.parametrize(
    "reply",
    [
        f'{{"api_message":"OK","api_data":{ODD}}}',
        f'{{"api_message":"OK","api_data":[{ODD}]}}',
        f"[{ODD}]",
    ],
)
async def test_the_row_of_an_action_may_come_alone_or_in_an_array(
    client: Client, ledger: FakeLedger, reply: str
) -> None:
    ledger.on("POST", "/ledger", reply, 201)
    answer = await client.post("/ledger", headers=AS_SERVICE | JSON | KEY, data=ACTION)
    assert answer.status == 201
    data = envelope(await answer.json())
    assert (data if isinstance(data, dict) else data[0])["id"] == "row-1"
    assert ODD in await answer.text()


UNREADABLE = [
    *("", "<html>MARKER</html>", "MARKER", '{"api_message":"OK"}', '{"api_data":"MARKER"}', "[]"),
    *(
        "null",
        "1",
        f"[{GOOD_ROW},{GOOD_ROW}]",
        f"[{GOOD_ROW}",
        '{"api_data":[["MARKER"]]}',
        "[NaN]",
    ),
]


@pytest.mark.parametrize("body", ["<html>", "{", '"x"', "null", "[]", "NaN", '{"error":"MARKER"}'])
async def test_nonsense_in_place_of_a_deletion_tells_nothing(
    client: Client, ledger: FakeLedger, body: str
) -> None:
    ledger.on("DELETE", ONE_RATE, body, 200)
    answer = await client.delete(ONE_RATE, headers=AS_SERVICE)
    assert (answer.status, (await answer.json())["code"]) == (504, "OUTCOME_UNKNOWN")
    assert "MARKER" not in await answer.text()


@pytest.mark.parametrize("body", ["", '{"id":"1","deletedAt":"2024-01-01T00:00:00Z"}'])
async def test_a_deletion_may_be_answered_with_the_rate(
    client: Client, ledger: FakeLedger, body: str
) -> None:
    ledger.on("DELETE", ONE_RATE, body, 200)
    answer = await client.delete(ONE_RATE, headers=AS_SERVICE)
    assert (answer.status, await answer.read()) == (204, b"")


async def test_an_error_in_place_of_the_written_rate_tells_nothing(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.on("POST", RATES, '{"code":"0001","message":"MARKER"}', 201)
    answer = await client.post(RATES, headers=AS_SERVICE | JSON | KEY, data=NEW_RATE.encode())
    assert (answer.status, (await answer.json())["code"]) == (504, "OUTCOME_UNKNOWN")
    assert "MARKER" not in await answer.text()


@pytest.mark.parametrize("reply", UNREADABLE)
async def test_a_write_whose_answer_cannot_be_read_may_have_been_carried_out(
    client: Client, ledger: FakeLedger, reply: str
) -> None:
    ledger.on("POST", "/ledger", reply, 201)
    ledger.on("POST", RATES, reply.replace("[]", "[1]"), 201)
    action = await client.post("/ledger", headers=AS_ADMIN | JSON | KEY, data=ACTION)
    assert (action.status, (await action.json())["api_message"]) == (504, "OUTCOME_UNKNOWN")
    if not reply.startswith("{"):
        rate = await client.post(RATES, headers=AS_ADMIN | JSON | KEY, data=NEW_RATE.encode())
        assert (rate.status, (await rate.json())["code"]) == (504, "OUTCOME_UNKNOWN")
        assert "MARKER" not in await rate.text()
    assert "MARKER" not in await action.text()
    assert [call.method for call in ledger.calls] == ["POST"] * (1 if reply[:1] == "{" else 2)


# Pages.


@pytest.mark.parametrize("most", [1, 2, 1000])
@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/ledger", AS_ADMIN),
        ("/ledger", AS_SERVICE),
        ("/ledger", ALICE),
        ("/ledger/alice", ALICE),
        ("/ledger/alice", AS_ADMIN),
        ("/ledger/order/1", ALICE),
        ("/ledger/order/1", AS_ADMIN),
    ],
)
async def test_pages_follow_each_other_without_gap_or_repetition(
    client: Client, ledger: FakeLedger, target: str, headers: dict[str, str], most: int
) -> None:
    for total in (1, 2, 5, 6):
        for path in LISTS:
            ledger.run("GET", path, Paged(rows_of(total), most))
        for limit in (1, 2, 3, 5, 6, 1000):
            pages = ids(await followed(client, f"{target}?limit={limit}", headers))
            wanted = [f"row-{number}" for number in range(total)]
            chunks = [wanted[start : start + limit] for start in range(0, total, limit)]
            assert pages == chunks


async def test_a_user_gets_full_pages_whatever_else_the_ledger_sends(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(cache__enabled="false", ledger__page_size="4")
    mixed = [row(number, "alice" if number % 3 == 0 else "bob") for number in range(30)]
    for path in ("/ledger/alice", "/ledger/order/1"):
        ledger.run("GET", path, Paged(mixed))
        for limit in (1, 3, 4, 10, 11):
            pages = ids(await followed(client, f"{path}?limit={limit}", ALICE))
            wanted = [f"row-{number}" for number in range(0, 30, 3)]
            assert [one for page in pages for one in page] == wanted
            assert all(len(page) == limit for page in pages[:-1])


async def test_the_link_keeps_the_filters_and_the_ledger_hears_them_on_every_page(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.run("GET", "/ledger", Paged(rows_of(5)))
    filters = {"since": "2024-01-28T21:12:00+03:00", "status": "pending", "type": "deposit"}
    pages = await followed(client, f"/ledger?limit=2&{urlencode(filters)}", AS_ADMIN)
    assert len(pages) == 3
    for _, link in pages[:-1]:
        assert link is not None
        query = parse_qs(urlsplit(link[1 : link.index(">")]).query)
        assert {name: values for name, values in query.items() if name != "cursor"} == {
            "limit": ["2"],
            **{name: [value] for name, value in filters.items()},
        }
    for call in ledger.calls:
        assert {name: call.query[name] for name in filters} == filters
    assert [call.query.get("cursor") for call in ledger.calls] == [None, "2", "4"]


async def test_the_next_page_may_be_of_another_length(client: Client, ledger: FakeLedger) -> None:
    ledger.run("GET", "/ledger", Paged(rows_of(6)))
    first = await get(client, "/ledger?limit=2", AS_ADMIN)
    target = next_of(first)
    assert target is not None
    pages = ids(await followed(client, target.replace("limit=2", "limit=3"), AS_ADMIN))
    assert pages == [["row-2", "row-3", "row-4"], ["row-5"]]


async def test_a_cursor_tells_nothing_of_the_ledgers_own(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.rows("/ledger", row(1), Link='<http://10.0.0.7/x?cursor=user%3Dbob>; rel="next"')
    answer = await get(client, "/ledger?limit=1", AS_ADMIN)
    target = next_of(answer)
    assert target is not None
    assert target.startswith("/ledger?limit=1&cursor=")
    for secret in ("10.0.0.7", "user=bob", "user%3Dbob"):
        assert secret not in target


@pytest.fixture
async def paged(client: Client, ledger: FakeLedger) -> Client:
    """A client of a ledger whose lists all have six rows of alice."""
    for path in (*LISTS, "/ledger/bob", "/ledger/order/2"):
        ledger.run("GET", path, Paged(rows_of(6)))
    return client


async def cursor_of(client: Client, target: str, headers: dict[str, str]) -> str:
    link = next_of(await get(client, target, headers))
    assert link is not None
    return parse_qs(urlsplit(link).query)["cursor"][0]


FOREIGN = [
    ("/ledger?limit=2", ALICE, "/ledger?limit=2", BOB),
    ("/ledger?limit=2", ALICE, "/ledger?limit=2", AS_ADMIN),
    ("/ledger?limit=2", AS_ADMIN, "/ledger?limit=2", ALICE),
    ("/ledger?limit=2", AS_ADMIN, "/ledger?limit=2", AS_SERVICE),
    ("/ledger?limit=2", caller("alice", "admin"), "/ledger?limit=2", ALICE),
    ("/ledger?limit=2", ALICE, "/ledger?limit=2", caller("alice", "service")),
    ("/ledger?limit=2", ALICE, "/ledger/alice?limit=2", ALICE),
    ("/ledger/alice?limit=2", ALICE, "/ledger?limit=2", ALICE),
    ("/ledger/alice?limit=2", AS_ADMIN, "/ledger/bob?limit=2", AS_ADMIN),
    ("/ledger/order/1?limit=2", ALICE, "/ledger/order/2?limit=2", ALICE),
    ("/ledger/order/1?limit=2", AS_ADMIN, "/ledger/order/2?limit=2", AS_ADMIN),
    ("/ledger/order/1?limit=2", ALICE, "/ledger?limit=2", ALICE),
    ("/ledger?limit=2", ALICE, "/ledger?limit=2&type=trade", ALICE),
    ("/ledger?limit=2&type=trade", ALICE, "/ledger?limit=2", ALICE),
    ("/ledger?limit=2&type=trade", ALICE, "/ledger?limit=2&type=deposit", ALICE),
    ("/ledger?limit=2&type=trade", ALICE, "/ledger?limit=2&currency=trade", ALICE),
]


@pytest.mark.parametrize(("target", "headers", "elsewhere", "others"), FOREIGN)
async def test_a_cursor_is_good_for_its_caller_route_and_filters_only(
    paged: Client,
    ledger: FakeLedger,
    target: str,
    headers: dict[str, str],
    elsewhere: str,
    others: dict[str, str],
) -> None:
    cursor = await cursor_of(paged, target, headers)
    assert (await get(paged, f"{target}&cursor={cursor}", headers)).status == 200
    ledger.calls.clear()
    found = await refused(paged, f"{elsewhere}&cursor={cursor}", others)
    assert found == (400, "INVALID_CURSOR")
    assert ledger.calls == []


async def test_an_altered_cursor_is_refused(paged: Client, ledger: FakeLedger) -> None:
    cursor = await cursor_of(paged, "/ledger?limit=2", ALICE)
    altered = {
        cursor[:index] + char + cursor[index + 1 :]
        for index in range(len(cursor))
        for char in ("A", "B", cursor[index].swapcase())
    } - {cursor}
    altered |= {cursor[:-1], cursor[1:], cursor + "A", cursor + "=", cursor + "==", cursor * 2}
    altered |= {"A", "AAAA", "A" * 43, "A" * 80, "eyJhIjoxfQ", "-", "_" * 64, "x" * 4096}
    ledger.calls.clear()
    for bad in sorted(altered):
        assert (await get(paged, f"/ledger?limit=2&cursor={bad}", ALICE)).status == 400, bad
    assert ledger.calls == []


async def test_a_cursor_of_another_deployment_is_refused(
    paged: Client, make_client: MakeClient, ledger: FakeLedger
) -> None:
    elsewhere = "the secret of another deployment, long enough for HS256"
    other = await make_client(auth__secret=elsewhere)
    claims = {"sub": "alice", "role": "user", "exp": int(time.time()) + 60}
    theirs = {"Authorization": jwt.encode(claims, elsewhere), "username": "alice"}
    cursor = await cursor_of(other, "/ledger?limit=2", theirs)
    ledger.calls.clear()
    found = await refused(paged, f"/ledger?limit=2&cursor={cursor}", ALICE)
    assert found == (400, "INVALID_CURSOR")
    assert ledger.calls == []


async def test_a_cursor_whose_row_is_gone_is_refused(client: Client, ledger: FakeLedger) -> None:
    ledger.run("GET", "/ledger/order/1", Paged(rows_of(3)))
    cursor = await cursor_of(client, "/ledger/order/1?limit=1", ALICE)
    ledger.run("GET", "/ledger/order/1", Paged(rows_of(3)[1:]))
    found = await refused(client, f"/ledger/order/1?limit=1&cursor={cursor}", ALICE)
    assert found == (400, "INVALID_CURSOR")


async def test_new_rows_do_not_shift_the_pages_of_an_order(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.run("GET", "/ledger/order/1", Paged(rows_of(4)))
    cursor = await cursor_of(client, "/ledger/order/1?limit=2", ALICE)
    newer = [row(number, name) for number, name in ((11, "alice"), (12, "bob"))]
    ledger.run("GET", "/ledger/order/1", Paged([*newer, *rows_of(4)]))
    pages = ids(await followed(client, f"/ledger/order/1?limit=2&cursor={cursor}", ALICE))
    assert pages == [["row-2", "row-3"]]


async def test_pages_of_an_order_do_not_tell_of_the_rows_of_others(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(cache__enabled="false", ledger__page_size="2")
    mine = rows_of(3)
    worlds = []
    # Up to three rows of others before, between and behind those of alice.
    for counts in itertools.product((0, 1, 3), repeat=len(mine) + 1):
        world: list[str] = []
        for count, own in itertools.zip_longest(counts, mine):
            world += [row(100 + number, "bob") for number in range(count)]
            world += [own] if own else []
        worlds.append(world)
    for limit in (1, 2, 3, 4):
        answers = []
        for world in worlds[:: 1 if limit < 3 else 5]:
            ledger.run("GET", "/ledger/order/1", Paged(world))
            answers.append(await followed(client, f"/ledger/order/1?limit={limit}", ALICE))
        assert ids(answers[0]) == [
            [f"row-{number}" for number in range(3)][start : start + limit]
            for start in range(0, 3, limit)
        ]
        assert all(answer == answers[0] for answer in answers)


async def test_an_order_shown_whole_does_not_tell_of_the_rows_of_others(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(cache__enabled="false", ledger__page_size="2")
    bodies = []
    for others in range(6):
        world = rows_of(1) + rows_of(others, "bob")
        ledger.run("GET", "/ledger/order/1", Paged(world))
        bodies.append(await (await get(client, "/ledger/order/1", ALICE)).read())
    assert set(bodies) == {bodies[0]}
    assert [one["id"] for one in json.loads(bodies[0])["api_data"]] == ["row-0"]


# Streams.


@pytest.mark.parametrize(
    ("target", "headers"), [("/ledger", AS_ADMIN), ("/ledger", ALICE), ("/ledger/order/1", ALICE)]
)
async def test_without_a_limit_all_rows_come_however_many_pages_they_are(
    make_client: MakeClient, ledger: FakeLedger, target: str, headers: dict[str, str]
) -> None:
    client = await make_client(ledger__page_size="2")
    rows = [row(number, lp_id="x", n=number / 8) for number in range(301)]
    others = [row(1000 + number, "bob") for number in range(301)]
    mixed = [one for pair in zip(rows, others, strict=True) for one in pair]
    for path in LISTS:
        ledger.run("GET", path, Paged(mixed))
    answer = await get(client, target, headers)
    assert answer.status == 200
    assert "Link" not in answer.headers
    found = [one["id"] for one in envelope(await answer.json())]
    wanted = mixed if headers is AS_ADMIN else rows
    assert found == [json.loads(one)["id"] for one in wanted]
    assert ("lp_id" in await answer.text()) == (headers is AS_ADMIN)
    assert [call.query.get("cursor") for call in ledger.calls] == [
        str(start) if start else None for start in range(0, 602, 2)
    ]
    assert {call.query["limit"] for call in ledger.calls} == {"2"}


async def test_of_a_stream_nothing_but_the_head_is_kept(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(ledger__page_size="2", cache__ledger_ttl_s="60")
    ledger.run("GET", "/ledger/alice", Paged(rows_of(6)))
    for _ in range(2):
        assert len(await seen(client, "/ledger", ALICE)) == 6
    asked = [call.query.get("cursor") for call in ledger.calls]
    assert asked == [None, "2", "4", "2", "4"]


async def test_a_stream_goes_on_over_pages_in_which_nothing_is_shown(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(ledger__page_size="1")
    for mine in itertools.product((True, False), repeat=5):
        world = [row(number, "alice" if own else "bob") for number, own in enumerate(mine)]
        ledger.run("GET", "/ledger/alice", Paged(world))
        headers = ALICE | {"Cache-Control": "no-cache"}
        found = [one["id"] for one in await seen(client, "/ledger", headers)]
        assert found == [f"row-{number}" for number, own in enumerate(mine) if own]


async def test_an_empty_list_is_an_empty_array(client: Client, ledger: FakeLedger) -> None:
    for target, headers in (("/ledger", AS_ADMIN), ("/ledger", ALICE), ("/ledger/bob", AS_ADMIN)):
        answer = await get(client, target, headers)
        assert envelope(await answer.json()) == []


Fault = Callable[[web.Request], web.StreamResponse]


def aborted(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


FAULTS: dict[str, Fault] = {
    "connection lost": aborted,
    "500": lambda _: web.Response(status=500, text="MARKER"),
    "503": lambda _: web.Response(status=503, headers={"Retry-After": "1"}),
    "404": lambda _: web.Response(status=404),
    "401": lambda _: web.Response(status=401),
    "redirect": lambda request: web.Response(status=307, headers={"Location": request.path}),
    "HTML": lambda _: web.Response(text="<html>MARKER</html>"),
    "half": lambda _: web.Response(text="[" + row(2)),
    "bad UTF-8": lambda _: web.Response(body=b'[{"username":"alice","x":"\xff"}]'),
    "an object": lambda _: web.Response(text="{}"),
    "a circle": lambda _: web.Response(
        text="[]", headers={"Link": '</x?cursor=second>; rel="next"'}
    ),
    "a link without a cursor": lambda _: web.Response(
        text="[]", headers={"Link": '</x>; rel="next"'}
    ),
}


def dying(ledger: FakeLedger, path: str, fault: Fault) -> None:
    """A list whose first page is good, and whose second is not."""

    async def script(request: web.Request) -> web.StreamResponse:
        if "cursor" in request.query:
            return fault(request)
        link = {"Link": '</x?cursor=second>; rel="next"'}
        return web.Response(text=f"[{row(1)}]", headers=link)

    ledger.run("GET", path, script)


@pytest.mark.parametrize(("target", "headers"), [("/ledger", AS_ADMIN), ("/ledger", ALICE)])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_stream_that_the_ledger_does_not_finish_never_looks_complete(
    client: Client, ledger: FakeLedger, name: str, target: str, headers: dict[str, str]
) -> None:
    for path in LISTS:
        dying(ledger, path, FAULTS[name])
    answer = await get(client, target, headers)
    assert answer.status == 200
    with pytest.raises(ClientPayloadError):
        await answer.read()
    for version in (b"1.0", b"1.1"):
        request = [b"GET %b HTTP/%b" % (target.encode(), version), b"Host: g", *lines(headers)]
        data = await exchange(client.port, b"\r\n".join(request) + b"\r\n\r\n")
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ") or head.startswith(b"HTTP/1.0 200 ")
        assert b"row-1" in body
        assert b"MARKER" not in data
        assert not body.endswith(b"0\r\n\r\n")
        text = body if version == b"1.0" else b"".join(body.split(b"\r\n")[1::2])
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)


@pytest.mark.parametrize("name", FAULTS)
async def test_a_page_that_the_ledger_does_not_finish_is_an_error(
    client: Client, ledger: FakeLedger, name: str
) -> None:
    dying(ledger, "/ledger/alice", FAULTS[name])
    answer = await get(client, "/ledger?limit=2", ALICE)
    assert answer.status in (502, 503, 404)
    assert (await answer.json())["api_data"]["origin"] == "ledger"
    assert "row-1" not in await answer.text()
    assert "MARKER" not in await answer.text()


# Paths.

BAD_PATHS = [
    *("/ledger/..%2fadmin", "/ledger/users/bob%2f..%2falice/deposits", "/ledger/%2561lice"),
    *("/ledger/alice%0d%0aX:y", "/ledger/alice%3Fa=b", "/ledger/alice%23f", "/ledger/alice;x=1"),
    *("/ledger/alice%3Bx=1", "/ledger/alice%5c", "/ledger/..%5calice", "/ledger/alice%00"),
    *(
        "/ledger/%C0%AE",
        "/ledger/%C0%AE%C0%AE",
        "/ledger/%c0%afalice",
        "//",
        "//ledger",
        "//ledger/alice",
    ),
    *("/ledger//alice", "/ledger/alice/", "/ledger/", "/ledger//", "/ledger/.", "/ledger/.."),
    *(
        "/ledger/%2e",
        "/ledger/%2e%2e",
        "/ledger/%252e%252e",
        "/ledger/./alice",
        "/ledger/../ledger",
    ),
    *("/ledger/../ledger/alice", "/x/../ledger", "/./ledger", "/ledger/users/../deposits"),
    *("/ledger/users/%2e%2e/deposits", "/ledger/users//deposits", "/ledger/users/alice/deposits/"),
    *("/ledger/order/..", "/ledger/order/%2e%2e", "/ledger/order/", "/ledger/order/a%2fb"),
    *("/ledger/order/a%0a", "/ledger/order/1%00", "/ledger/order/%20", "/ledger/{username}"),
    *("/ledger/%7Busername%7D", "/ledger/%FF", "/ledger/%25FF", "/ledger/%EF%BD%81lice"),
    *(
        "/ledger/alice%20",
        "/ledger/%20alice",
        "/ledger/alice%E2%80%8B",
        "/ledger/alice%",
        "/ledger/%u0061",
    ),
    *("/ledger/alice,bob", "/ledger/alice&x", "/ledger/-alice", "/ledger/" + "a" * 65),
    *("/ledger/order/" + "1" * 129, "/ledger%2Falice", "/%6Cedger%2Falice", "/ledger/alice%2F"),
    *(
        RATES + "/",
        RATES + "//",
        f"{RATES}/..",
        f"{RATES}/%2e%2e",
        f"{RATES}/{RATE}/",
        f"{RATES}/1",
    ),
    *(f"{RATES}/{{{RATE}}}", f"{RATES}/%7B{RATE}%7D", f"{RATES}/urn:uuid:{RATE}"),
    *(f"{RATES}/{RATE.replace('-', '')}", f"{RATES}/{RATE}%00", f"{RATES}/{RATE}%20"),
    RATES.replace(ORGANIZATION, ".."),
    RATES.replace(LEDGER, "%2e%2e"),
    RATES.replace(LEDGER, LEDGER.replace("-", "")),
    RATES.replace("/ledgers/", "/ledgers//"),
]


@pytest.mark.parametrize("headers", [AS_ADMIN, ALICE], ids=["admin", "user"])
@pytest.mark.parametrize("path", BAD_PATHS)
async def test_a_path_that_is_not_plainly_ours_is_refused(
    client: Client, ledger: FakeLedger, path: str, headers: dict[str, str]
) -> None:
    answer = await raw(client, f"GET {path} HTTP/1.1", *lines(headers))
    assert answer.status in ((400, 404) if headers is AS_ADMIN else (400, 403, 404))
    assert ledger.calls == []


@pytest.mark.parametrize(
    "path",
    [
        b"/ledger/\xe9",
        b"/ledger/\xff",
        b"/ledger/alic\xc3\xa9",
        b"/ledger/alice\x00",
        b"/ledger/al ice",
    ],
)
async def test_a_path_of_bytes_that_no_client_library_sends_is_refused(
    client: Client, ledger: FakeLedger, path: bytes
) -> None:
    answer = await raw(client, b"GET " + path + b" HTTP/1.1", *lines(AS_ADMIN))
    assert 400 <= answer.status < 500
    assert ledger.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/ledger/bob",
        "/ledger/%62ob",
        "/ledger/users/bob/deposits",
        "/ledger/Alice",
        "/ledger/admin",
    ],
)
async def test_somebody_elses_path_is_forbidden_in_every_spelling(
    client: Client, ledger: FakeLedger, path: str
) -> None:
    answer = await raw(client, f"GET {path} HTTP/1.1", *lines(ALICE))
    assert answer.status == 403
    assert ledger.calls == []


# What changes nothing.


def told(answer: RawAnswer) -> tuple[int, dict[str, str], bytes]:
    """All of an answer but the date."""
    kept = {name: value for name, value in answer.headers.items() if name != "Date"}
    return answer.status, kept, answer.body


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/ledger", ALICE),
        ("GET", "/ledger?limit=1", ALICE),
        ("GET", "/ledger?limit=1", AS_ADMIN),
        ("GET", "/ledger/bob", ALICE),
        ("GET", "/ledger/order/1", BOB),
        ("GET", RATES, ALICE),
        ("GET", "/ledger", {}),
        ("PUT", "/ledger", ALICE),
        ("GET", "/nowhere", {}),
    ],
)
async def test_host_and_forwarding_headers_change_nothing_in_an_answer(
    client: Client, ledger: FakeLedger, method: str, target: str, headers: dict[str, str]
) -> None:
    for path in LISTS:
        ledger.run("GET", path, Paged([*rows_of(3), row(9, "bob")]))
    ledger.rows("/ledger/order/1", row(1))
    ledger.on("GET", RATES, "[]")
    fixed = [b"Connection: close", b"X-Request-Id: the-same", *lines(headers)]
    answers = []
    for form, host, more in (
        (target, b"gateway", []),
        (target, b"evil.example:99", []),
        (target, b"gateway", lines(NOISE)),
        (f"http://evil.example{target}", b"gateway", []),
        (f"https://evil.example:99{target}", b"evil.example", lines(NOISE)),
    ):
        head = [f"{method} {form} HTTP/1.1".encode(), b"Host: " + host, *fixed, *more]
        answers.append(await exchange(client.port, b"\r\n".join(head) + b"\r\n\r\n"))
    first, *others = [told(parsed(answer)) for answer in answers]
    assert all(other == first for other in others)
    assert b"evil" not in b"".join(answers)
    heads = {(call.method, call.path, heard(call)["username"]) for call in ledger.calls}
    assert len(heads) <= 1


# The cache, from outside.


async def test_a_repeated_question_is_answered_without_the_ledger(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client()
    ledger.rows("/ledger/alice", ODD)
    first = await answer_without_time(client, "/ledger", ALICE)
    assert await answer_without_time(client, "/ledger", ALICE) == first
    assert await seen(client, "/ledger/alice", ALICE) == json.loads(f"[{SHOWN}]")
    assert len(ledger.calls) == 1


async def test_one_kept_answer_shows_everybody_what_is_theirs(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(cache__ledger_ttl_s="60")
    ledger.rows("/ledger/order/1", ODD, row(2, "bob", lp_id="x"), *MIXED[5:13])
    for _ in range(2):
        assert len(await seen(client, "/ledger/order/1", AS_ADMIN)) == 10
        assert len(await seen(client, "/ledger/order/1", AS_SERVICE)) == 2
        assert [one["id"] for one in await seen(client, "/ledger/order/1", ALICE)] == ["row-1"]
        assert await seen(client, "/ledger/order/1", BOB) == [{"id": "row-2", "username": "bob"}]
        assert (await refused(client, "/ledger/order/1", caller("carol")))[0] == 403
    assert len(ledger.calls) == 1


async def test_a_large_answer_is_made_once_for_all_who_ask_at_once(
    make_client: MakeClient, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    shown = views.shown

    async def counted(*asked: Any) -> tuple[bytes, int]:
        made.append(asked[-1])
        return await shown(*asked)

    monkeypatch.setattr(views, "shown", counted)
    rows = [
        row(number, name, comment="x" * 500) for number in range(200) for name in ("alice", "bob")
    ]
    ledger.rows("/ledger/order/1", *rows)
    client = await make_client(cache__ledger_ttl_s="60")
    asking = [seen(client, "/ledger/order/1", who) for who in (ALICE, BOB, AS_ADMIN) * 5]
    answers = await asyncio.gather(*asking)
    assert [len(one) for one in answers] == [200, 200, 400] * 5
    assert answers[:3] * 5 == answers
    assert len(ledger.calls) == 1
    assert len(made) == len(set(made)) == 3


@pytest.mark.parametrize("wish", ["no-cache", "no-store", "No-Cache", "max-age=0, no-cache"])
async def test_a_caller_may_ask_for_a_fresh_answer(
    make_client: MakeClient, ledger: FakeLedger, wish: str
) -> None:
    client = await make_client(cache__ledger_ttl_s="60", cache__rates_ttl_s="60")
    ledger.on("GET", RATES, '[{"id":"1"}]')
    ledger.rows("/ledger/alice", row(1))
    for target in ("/ledger", RATES):
        await get(client, target, ALICE)
    ledger.on("GET", RATES, '[{"id":"2"}]')
    ledger.rows("/ledger/alice", row(2))
    fresh = ALICE | {"Cache-Control": wish}
    assert await (await get(client, RATES, fresh)).json() == [{"id": "2"}]
    assert [one["id"] for one in await seen(client, "/ledger", fresh)] == ["row-2"]
    assert len(ledger.calls) == 4


async def test_after_a_write_nobody_gets_the_older_answer(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(cache__ledger_ttl_s="60", cache__rates_ttl_s="60")
    ledger.on("POST", "/ledger", f'{{"api_data":{row(2)}}}', 201)
    ledger.on("DELETE", ONE_RATE, "", 204)
    ledger.on("GET", RATES, '[{"id":"1"}]')
    ledger.rows("/ledger/alice", row(1))
    for target in ("/ledger", RATES):
        await get(client, target, ALICE)
    ledger.on("GET", RATES, "[]")
    ledger.rows("/ledger/alice", row(2), row(1))
    write = AS_SERVICE | JSON | KEY
    assert (await client.post("/ledger", headers=write, data=ACTION)).status == 201
    assert (await client.delete(ONE_RATE, headers=AS_SERVICE)).status == 204
    assert [one["id"] for one in await seen(client, "/ledger", ALICE)] == ["row-2", "row-1"]
    assert await (await get(client, RATES, ALICE)).json() == []


async def test_refusals_and_faults_are_not_kept(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(cache__ledger_ttl_s="60", **NO_RETRIES)
    for status, body in ((404, "{}"), (429, "{}"), (503, "{}"), (500, "{}"), (200, "<html>")):
        ledger.on("GET", "/ledger/alice", body, status)
        assert (await get(client, "/ledger", ALICE)).status >= 400
    ledger.rows("/ledger/alice", row(1))
    assert await seen(client, "/ledger", ALICE) == [json.loads(row(1))]


@pytest.mark.parametrize("end", [b"]", b",}]", b"\xff]"], ids=["rows", "no rows", "no text"])
async def test_of_a_large_reply_nothing_is_left_behind(
    end: bytes, client: Client, ledger: FakeLedger
) -> None:
    """Whether or not it could be read; the garbage collector has no part in it."""
    row = b'{"username":"alice","note":"%b"}' % (b" " * 8000)
    ledger.on("GET", "/ledger/alice", b"[" + b",".join([row] * 1000) + end)
    tracemalloc.start()
    gc.disable()
    try:
        for _ in range(6):
            # The test client itself would keep all its responses.
            url = client.make_url("/ledger")
            async with client.session.get(url, headers=caller("alice")) as response:
                await response.read()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        gc.enable()
        tracemalloc.stop()
    assert held < 3 * 8_000_000
