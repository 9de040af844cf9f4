"""What comes with a write: its media type, its document, its idempotency key, and their sizes."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import RATE, RATES, SERVICE, MakeClient, caller
from tests.fakes import FakeLedger
from tests.gateway.test_edge import (
    Client,
    exchange,
    first_status,
    heard,
    lines,
    parsed,
    raw,
    served,
)

STAFF = caller(*SERVICE)
JSON = {"Content-Type": "application/json"}
WRITE = STAFF | JSON | {"Idempotency-Key": "key-1"}
ROW = '{"id":"1","username":"alice"}'
ACTION: dict[str, Any] = {"type": "deposit", "username": "bob", "currency": "BTC", "amount": "1"}
NEW_RATE: dict[str, Any] = {
    "baseInstrumentCode": "BRL",
    "counterInstrumentCode": "BTC",
    "amount": 35000000,
    "scale": 2,
    "source": "Chainlink database",
}
# The routes that take a body, and a body that each of them takes.
ROUTES = {
    ("POST", "/ledger"): ACTION,
    ("POST", RATES): NEW_RATE,
    ("PATCH", f"{RATES}/{RATE}"): {"amount": 1},
}
ROUTE_IDS = ["action", "new rate", "changed rate"]


@pytest.fixture
def willing(ledger: FakeLedger) -> FakeLedger:
    """A ledger that carries out every write."""
    ledger.on("POST", "/ledger", f'{{"api_message":"OK","api_data":{ROW}}}', 201)
    ledger.on("POST", RATES, "{}", 201)
    ledger.on("PATCH", f"{RATES}/{RATE}", "{}")
    return ledger


async def refused(client: Client, method: str, path: str, body: bytes, **headers: str) -> Any:
    """Status and code of the refusal of a body."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await client.request(method, path, headers=WRITE | names, data=body)
    document = await answer.json()
    assert len(await answer.read()) < 4000, "what is answered is bounded"
    if path == "/ledger":
        data = document["api_data"]
        return answer.status, document["api_message"], data.get("errors", {}), data["origin"]
    return answer.status, document["code"], document.get("fields", {}), document["origin"]


# The media type.


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "APPLICATION/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/json;charset=utf8",
        "application/json\t;\tcharset=utf-8",
    ],
)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_json_in_utf8_is_taken_under_each_of_its_names(
    client: Client, willing: FakeLedger, method: str, path: str, media_type: str
) -> None:
    body = json.dumps(ROUTES[method, path]).encode()
    headers = WRITE | {"Content-Type": media_type}
    answer = await client.request(method, path, headers=headers, data=body)
    assert answer.status in (200, 201)
    assert [call.body for call in willing.calls] == [body]
    assert heard(willing.calls[0])["content-type"] == "application/json"


@pytest.mark.parametrize("coding", ["identity", "Identity"])
async def test_a_body_that_says_that_it_is_not_compressed_is_taken(
    client: Client, willing: FakeLedger, coding: str
) -> None:
    (method, path), document = next(iter(ROUTES.items()))
    headers = WRITE | {"Content-Encoding": coding}
    answer = await client.request(method, path, headers=headers, data=json.dumps(document).encode())
    assert answer.status in (200, 201)
    assert len(willing.calls) == 1


@pytest.mark.parametrize(
    "media_type",
    [
        *("text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data"),
        *("application/jsonp", "application/vnd.api+json", "application/json-patch+json", "*/*"),
        *("application/json; charset=utf-16", "application/json; charset=utf-7", "json", "x", ""),
        *("application/json; charset=latin-1", "application/json, text/plain", "application/ json"),
        *("application/json; boundary=x", "application/json/x", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_other_media_types_are_refused(
    client: Client, ledger: FakeLedger, method: str, path: str, media_type: str
) -> None:
    body = json.dumps(ROUTES[method, path]).encode()
    status, code, _, _ = await refused(client, method, path, body, Content_Type=media_type)
    assert (status, code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert ledger.calls == []


@pytest.mark.parametrize(
    "header_lines",
    [
        [],
        [b"Content-Type: application/json", b"Content-Type: application/json"],
        [b"Content-Type: application/json", b"Content-Type: text/plain"],
        [b"Content-Type: application/json\xe9"],
    ],
    ids=["no type", "twice the same", "two types", "not ASCII"],
)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_there_is_exactly_one_media_type(
    client: Client, ledger: FakeLedger, method: str, path: str, header_lines: list[bytes]
) -> None:
    body = json.dumps(ROUTES[method, path]).encode()
    head = [*lines(STAFF), *header_lines, b"Idempotency-Key: 1", b"Content-Length: %d" % len(body)]
    answer = await raw(client, f"{method} {path} HTTP/1.1", *head, body=body)
    assert answer.status in (400, 415)
    assert ledger.calls == []


@pytest.fixture
async def port(ledger: FakeLedger) -> AsyncIterator[int]:
    """Where a gateway listens as `serve` lets it."""
    async with served(ledger) as bound:
        yield bound


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd", "gzip, br", "x", ""])
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_a_compressed_body_is_refused_unread(
    port: int, ledger: FakeLedger, method: str, path: str, coding: str
) -> None:
    plain = json.dumps(ROUTES[method, path]).encode()
    for body in (gzip.compress(plain), b"no gzip at all", plain):
        headers = WRITE | {"Content-Encoding": coding, "Content-Length": str(len(body))}
        head = [f"{method} {path} HTTP/1.1".encode(), b"Host: g", b"Connection: close"]
        request = b"\r\n".join([*head, *lines(headers)]) + b"\r\n\r\n" + body
        answer = parsed(await exchange(port, request))
        assert answer.status == 415
    assert ledger.calls == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("If-Match", '"one"'), ("If-Match", "*")),
        ("If-Unmodified-Since", "Sat, 21 Nov 2026 18:00:00 GMT"),
    ],
)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_a_write_on_a_condition_is_refused_and_not_sent(
    client: Client, ledger: FakeLedger, method: str, path: str, name: str, value: str
) -> None:
    headers = WRITE | {name: value}
    answer = await client.request(method, path, headers=headers, json=ROUTES[method, path])
    assert answer.status == 400
    assert "condition" in await answer.text()
    assert ledger.calls == []


# The document.

GOOD = json.dumps(ACTION | NEW_RATE).encode()[:-1]
MALFORMED = {
    "empty": b"",
    "space": b" \n",
    "no JSON": b"alice",
    "half": GOOD,
    "bad UTF-8": GOOD + b',"x":"\xff"}',
    "overlong UTF-8": GOOD + b',"x":"\xc0\xae"}',
    "surrogate in UTF-8": GOOD + b',"x":"\xed\xa0\x80"}',
    "lone surrogate": GOOD + b',"x":"\\ud800"}',
    "BOM": b"\xef\xbb\xbf" + GOOD + b"}",
    "UTF-16": (GOOD + b"}").decode().encode("utf-16"),
    "UTF-32": (GOOD + b"}").decode().encode("utf-32-be"),
    "utf-7": b"{+AGE-}",
    "NaN": GOOD + b',"x":NaN}',
    "Infinity": GOOD + b',"x":Infinity}',
    "-Infinity": GOOD + b',"x":-Infinity}',
    "1e400": GOOD + b',"x":1e400}',
    "5000 digits": GOOD + b',"x":' + b"9" * 5000 + b"}",
    "leading zero": GOOD + b',"x":01}',
    "plus": GOOD + b',"x":+1}',
    "hexadecimal": GOOD + b',"x":0x1}',
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
    "deep value": GOOD + b',"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "trailing data": GOOD + b"} x",
    "two documents": GOOD + b"}{}",
    "trailing comma": GOOD + b",}",
    "comment": GOOD + b"/* */}",
    "single quotes": b"{'type':'deposit'}",
    "control character": GOOD + b',"x":"\n"}',
    "NUL at the end": GOOD + b"}\0",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_what_is_not_one_json_document_is_malformed(
    client: Client, ledger: FakeLedger, method: str, path: str, name: str
) -> None:
    status, code, _, origin = await refused(client, method, path, MALFORMED[name])
    assert (status, origin) == (400, "gateway")
    assert code == ("MALFORMED_JSON" if path == "/ledger" else "0094")
    assert ledger.calls == []


@pytest.mark.parametrize(
    "document",
    [
        '{"amount":"1","amount":"1"}',
        '{"amount":"1","\\u0061mount":"2"}',
        '{"metadata":{"a":1,"a":2},"amount":1}',
    ],
)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_a_key_that_stands_twice_is_refused(
    client: Client, ledger: FakeLedger, method: str, path: str, document: str
) -> None:
    status, code, fields, _ = await refused(client, method, path, document.encode())
    expected = (422, "INVALID_ACTION") if path == "/ledger" else (400, "0094")
    assert (status, code) == expected
    assert set(fields) <= {"amount", "a"}
    assert fields
    assert ledger.calls == []


@pytest.mark.parametrize("document", ["[]", "null", "1", '"text"', "true", "[{}]"])
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_a_document_that_is_not_an_object_breaks_a_rule(
    client: Client, ledger: FakeLedger, method: str, path: str, document: str
) -> None:
    status, code, _, _ = await refused(client, method, path, document.encode())
    expected = (422, "INVALID_ACTION") if path == "/ledger" else (400, "0047")
    assert (status, code) == expected
    assert ledger.calls == []


# Actions: 422, and which field it is.


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"type": "gift"}, "type"),
        ({"type": None}, "type"),
        ({"type": ["deposit"]}, "type"),
        ({"username": "../alice"}, "username"),
        ({"username": "bob\n"}, "username"),
        ({"username": 7}, "username"),
        ({"currency": "BTC\n"}, "currency"),
        ({"currency": ""}, "currency"),
        ({"amount": 1}, "amount"),
        ({"amount": 1.0}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": None}, "amount"),
        ({"amount": "0"}, "amount"),
        ({"amount": "0.00"}, "amount"),
        ({"amount": "-0"}, "amount"),
        ({"amount": "-1"}, "amount"),
        ({"amount": "+1"}, "amount"),
        ({"amount": "1e3"}, "amount"),
        ({"amount": "1_000"}, "amount"),
        ({"amount": " 1"}, "amount"),
        ({"amount": "1\n"}, "amount"),
        ({"amount": "1."}, "amount"),
        ({"amount": ".1"}, "amount"),
        ({"amount": "01"}, "amount"),
        ({"amount": "NaN"}, "amount"),
        ({"amount": "Infinity"}, "amount"),
        ({"amount": "\u0661\u0662"}, "amount"),
        ({"amount": "1" * 39}, "amount"),
        ({"amount": "0." + "1" * 38}, "amount"),
        ({"type": "withdrawal", "amount": "1"}, "amount"),
        ({"status": "done"}, "status"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": 1}, "timestamp"),
        ({"order_id": "1"}, "order_id"),
        ({"lp_id": "1"}, "lp_id"),
        ({"__proto__": {}}, "__proto__"),
        ({"type": "trade", "ticker": "X"}, "order_id"),
        ({"type": "trade", "order_id": "1"}, "ticker"),
        ({"type": "trade", "order_id": "../1", "ticker": "X"}, "order_id"),
        ({"type": "transfer"}, "wallet_address"),
        ({"type": "balance_update"}, "comment"),
        ({"type": "balance_update", "comment": " "}, "comment"),
    ],
)
async def test_an_action_that_breaks_a_rule_is_422_and_names_the_field(
    client: Client, ledger: FakeLedger, changes: dict[str, Any], field: str
) -> None:
    body = json.dumps(ACTION | changes).encode()
    status, code, fields, origin = await refused(client, "POST", "/ledger", body)
    assert (status, code, origin) == (422, "INVALID_ACTION", "gateway")
    assert set(fields) == {field}
    assert ledger.calls == []


@pytest.mark.parametrize("field", ACTION)
async def test_an_action_without_a_field_that_it_needs_is_422(
    client: Client, ledger: FakeLedger, field: str
) -> None:
    body = json.dumps({name: value for name, value in ACTION.items() if name != field}).encode()
    status, code, fields, _ = await refused(client, "POST", "/ledger", body)
    assert (status, code, set(fields)) == (422, "INVALID_ACTION", {field})
    assert ledger.calls == []


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": "1" * 38},
        {"amount": "0." + "1" * 37},
        {"txid": "a", "status": "pending", "timestamp": "2024-01-28T21:12:00Z"},
        {"type": "withdrawal", "amount": "-0.00000001"},
        {"type": "trade", "amount": "-1", "order_id": "ord:1", "ticker": "BTC-USD"},
        {"type": "transfer", "amount": "1", "wallet_address": "w"},
        {"type": "transfer", "amount": "-1", "recepient_wallet_address": "w"},
        {"type": "balance_update", "amount": "-1.50", "comment": "Rounding\nagain"},
    ],
)
async def test_an_action_that_keeps_the_rules_is_registered(
    client: Client, willing: FakeLedger, changes: dict[str, Any]
) -> None:
    body = json.dumps(ACTION | changes).encode()
    answer = await client.post("/ledger", headers=WRITE, data=body)
    assert answer.status == 201
    assert [call.body for call in willing.calls] == [body]


# Rates: 400, a code for the kind of mistake, and which fields.

CODES = [
    ({"id": RATE}, "0053", {"id"}),
    ({"organizationId": RATE}, "0053", {"organizationId"}),
    ({"ledgerId": RATE}, "0053", {"ledgerId"}),
    ({"createdAt": "x"}, "0053", {"createdAt"}),
    ({"updatedAt": "x"}, "0053", {"updatedAt"}),
    ({"deletedAt": None}, "0053", {"deletedAt"}),
    ({"id": RATE, "createdAt": "x", "deletedAt": 1}, "0053", {"id", "createdAt", "deletedAt"}),
    ({"__proto__": 1, "$where": 1}, "0053", {"__proto__", "$where"}),
    ({"status": {"code": "X", "extra": 1}}, "0053", {"status.extra"}),
    ({"status": {"description": "x"}}, "0009", {"status.code"}),
    ({"amount": "12"}, "0047", {"amount"}),
    ({"amount": " 12 "}, "0047", {"amount"}),
    ({"amount": "1_000"}, "0047", {"amount"}),
    ({"amount": "\u0661\u0662"}, "0047", {"amount"}),
    ({"amount": 1.9}, "0047", {"amount"}),
    ({"amount": 1.0}, "0047", {"amount"}),
    ({"amount": True}, "0047", {"amount"}),
    ({"amount": None}, "0047", {"amount"}),
    ({"amount": 10**38}, "0047", {"amount"}),
    ({"scale": -1}, "0047", {"scale"}),
    ({"scale": 39}, "0047", {"scale"}),
    ({"baseInstrumentCode": "brl"}, "0047", {"baseInstrumentCode"}),
    ({"baseInstrumentCode": "BRL\n"}, "0047", {"baseInstrumentCode"}),
    ({"baseInstrumentCode": ""}, "0047", {"baseInstrumentCode"}),
    ({"counterInstrumentCode": "B" * 33}, "0047", {"counterInstrumentCode"}),
    ({"source": "x" * 201}, "0047", {"source"}),
    ({"source": None}, "0047", {"source"}),
    ({"status": "ACTIVE"}, "0047", {"status"}),
    ({"status": {"code": "x" * 101}}, "0047", {"status.code"}),
    ({"status": {"code": "X", "description": "x" * 257}}, "0047", {"status.description"}),
    ({"metadata": []}, "0047", {"metadata"}),
    ({"metadata": {"a": {}}}, "0047", {"metadata"}),
    ({"metadata": {"a": [1]}}, "0047", {"metadata"}),
    ({"metadata": {"": 1}}, "0047", {"metadata"}),
    ({"metadata": {"k" * 101: 1}}, "0047", {"metadata"}),
    ({"metadata": {"k" * 10_000: 1}}, "0047", {"metadata"}),
    ({"metadata": {"a": "x" * 2001}}, "0047", {"metadata"}),
    ({"metadata": {f"key-{n}": n for n in range(1001)}}, "0047", {"metadata"}),
    ({"metadata": {f"key-{n}": n for n in range(10_000)}}, "0047", {"metadata"}),
    ({"amount": "1", "scale": 99}, "0047", {"amount", "scale"}),
]


@pytest.mark.parametrize(("changes", "code", "fields"), CODES)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_rate_that_breaks_a_rule_is_400_with_the_code_of_its_kind(
    client: Client,
    ledger: FakeLedger,
    method: str,
    changes: dict[str, Any],
    code: str,
    fields: set[str],
) -> None:
    path = RATES if method == "POST" else f"{RATES}/{RATE}"
    body = json.dumps((NEW_RATE if method == "POST" else {}) | changes).encode()
    status, found, named, origin = await refused(client, method, path, body)
    assert (status, found, set(named), origin) == (400, code, fields, "gateway")
    assert ledger.calls == []


async def test_the_fields_that_a_new_rate_lacks_are_named(
    client: Client, ledger: FakeLedger
) -> None:
    status, code, fields, _ = await refused(client, "POST", RATES, b"{}")
    assert (status, code, set(fields)) == (400, "0009", set(NEW_RATE))
    assert ledger.calls == []


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 10**38 - 1, "scale": 38},
        {"amount": 0, "scale": 0},
        {"status": {"code": "My custom ACTIVE code", "description": None}},
        {"metadata": {}},
        {"metadata": {"__proto__": "x", "$where": "1==1", "constructor": None}},
        {"metadata": {"k" * 100: "x" * 2000, "a": 1, "b": 1.5, "c": True, "d": None}},
        {"metadata": {f"key-{n}": n for n in range(1000)}},
    ],
    ids=["greatest", "least", "status", "no metadata", "odd keys", "long metadata", "1000 keys"],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_rate_that_keeps_the_rules_is_passed_on(
    client: Client, willing: FakeLedger, method: str, changes: dict[str, Any]
) -> None:
    path = RATES if method == "POST" else f"{RATES}/{RATE}"
    body = json.dumps((NEW_RATE if method == "POST" else {}) | changes).encode()
    answer = await client.request(method, path, headers=WRITE, data=body)
    assert answer.status == (201 if method == "POST" else 200)
    assert [call.body for call in willing.calls] == [body]


# Sizes.


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_tens_of_thousands_of_unknown_fields_get_a_short_answer(
    client: Client, ledger: FakeLedger, method: str, path: str
) -> None:
    body = json.dumps(ROUTES[method, path])[:-1] + "," + ",".join(f'"{n}":0' for n in range(25_000))
    status, code, fields, _ = await refused(client, method, path, (body + "}").encode())
    assert (status, code) == ((422, "INVALID_ACTION") if path == "/ledger" else (400, "0053"))
    assert 1 <= len(fields) <= 20
    assert ledger.calls == []


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_a_name_or_value_as_long_as_the_body_is_not_repeated(
    client: Client, ledger: FakeLedger, method: str, path: str
) -> None:
    marker = "marker" * 20_000
    for changes in ({marker: 1}, {"amount": marker}, {"status": {"code": marker, marker: 1}}):
        body = json.dumps(ROUTES[method, path] | changes).encode()
        status, _, fields, _ = await refused(client, method, path, body)
        assert status in (400, 422)
        assert all(len(name) <= 80 and len(why) <= 200 for name, why in fields.items())
    assert ledger.calls == []


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_a_body_over_the_limit_is_413_with_a_length_or_in_chunks(
    make_client: MakeClient, ledger: FakeLedger, method: str, path: str
) -> None:
    client = await make_client(server__max_body_bytes="1024")
    body = json.dumps(ROUTES[method, path]).encode().ljust(1025)
    status, code, _, origin = await refused(client, method, path, body)
    assert (status, code, origin) == (413, "PAYLOAD_TOO_LARGE", "gateway")
    chunks = b"".join(b"401\r\n" + b" " * 1025 + b"\r\n" for _ in range(50)) + b"0\r\n\r\n"
    head = [*lines(WRITE), b"Transfer-Encoding: chunked"]
    answer = await raw(client, f"{method} {path} HTTP/1.1", *head, body=chunks)
    assert answer.status == 413
    assert ledger.calls == []


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_a_body_of_just_the_limit_is_taken(
    make_client: MakeClient, willing: FakeLedger, method: str, path: str
) -> None:
    client = await make_client(server__max_body_bytes="1024")
    body = json.dumps(ROUTES[method, path]).encode().ljust(1024)
    answer = await client.request(method, path, headers=WRITE, data=body)
    assert answer.status in (200, 201)
    assert [call.body for call in willing.calls] == [body]


@pytest.mark.parametrize("length", [b"1000000000", b"99999999999999999999"])
async def test_a_body_that_says_it_will_be_huge_is_refused_before_it_comes(
    client: Client, ledger: FakeLedger, length: bytes
) -> None:
    head = [b"POST /ledger HTTP/1.1", b"Host: g", *lines(WRITE), b"Content-Length: " + length]
    status = await first_status(client.port, b"\r\n".join(head) + b"\r\n\r\n{}")
    assert status in (400, 413)
    assert ledger.calls == []


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}x\r\n0\r\n\r\n"]
)
async def test_broken_chunks_are_a_bad_request(
    client: Client, ledger: FakeLedger, chunks: bytes
) -> None:
    head = [*lines(WRITE), b"Transfer-Encoding: chunked"]
    answer = await raw(client, "POST /ledger HTTP/1.1", *head, body=chunks)
    assert answer.status == 400
    assert ledger.calls == []


@pytest.mark.parametrize(("method", "path"), [("GET", "/ledger"), ("DELETE", f"{RATES}/{RATE}")])
async def test_a_body_where_none_is_expected_is_not_passed_on(
    client: Client, ledger: FakeLedger, method: str, path: str
) -> None:
    ledger.on("DELETE", path, b"", 204)
    answer = await client.request(method, path, headers=STAFF | JSON, data=b'{"status":"marker"}')
    assert answer.status in (200, 204)
    assert [call.body for call in ledger.calls] == [b""]
    assert "content-type" not in heard(ledger.calls[0])


# Idempotency keys.


@pytest.mark.parametrize("key", ["1", "!", "~", "a-b:c/d=e", "x" * 255, '"quoted"', "{}[]<>"])
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_an_idempotency_key_goes_on_to_the_ledger(
    client: Client, willing: FakeLedger, method: str, path: str, key: str
) -> None:
    headers = WRITE | {"Idempotency-Key": key}
    answer = await client.request(method, path, headers=headers, json=ROUTES[method, path])
    assert answer.status in (200, 201)
    assert [heard(call)["idempotency-key"] for call in willing.calls] == [key]


@pytest.mark.parametrize(
    "header_lines",
    [
        [b"Idempotency-Key:"],
        [b"Idempotency-Key: a b"],
        [b"Idempotency-Key: a\tb"],
        [b"Idempotency-Key: \xe9"],
        [b"Idempotency-Key: \xc3\xa9"],
        [b"Idempotency-Key: " + b"x" * 256],
        [b"Idempotency-Key: a", b"Idempotency-Key: a"],
        [b"Idempotency-Key: a", b"idempotency-key: b"],
    ],
    ids=["empty", "space", "tab", "latin-1", "UTF-8", "long", "twice the same", "two"],
)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=ROUTE_IDS)
async def test_a_malformed_idempotency_key_is_refused(
    client: Client, ledger: FakeLedger, method: str, path: str, header_lines: list[bytes]
) -> None:
    body = json.dumps(ROUTES[method, path]).encode()
    head = [*lines(STAFF | JSON), *header_lines, b"Content-Length: %d" % len(body)]
    answer = await raw(client, f"{method} {path} HTTP/1.1", *head, body=body)
    assert answer.status == 400
    assert ledger.calls == []


async def test_an_action_needs_an_idempotency_key_and_a_rate_does_not(
    client: Client, willing: FakeLedger
) -> None:
    headers = STAFF | JSON
    action = await client.post("/ledger", headers=headers, json=ACTION)
    assert action.status == 400
    assert (await action.json())["api_message"] == "INVALID_IDEMPOTENCY_KEY"
    assert willing.calls == []
    for (method, path), body in list(ROUTES.items())[1:]:
        answer = await client.request(method, path, headers=headers, json=body)
        assert answer.status in (200, 201)
    assert len(willing.calls) == 2
    assert not any("idempotency-key" in heard(call) for call in willing.calls)
