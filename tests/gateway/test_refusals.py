"""What a caller is told when the ledger refuses: status, code, and to an admin its words."""

import json
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.authz import Principal, Role
from gateway.endpoints import Api
from gateway.ledger import LedgerReply
from gateway.refusals import refusal
from tests.conftest import ADMIN, RATE, RATES, SERVICE, caller
from tests.fakes import FakeLedger
from tests.gateway.test_edge import Client

WORDS = "the vault of wallet 0xMARKER is empty"
SAID = json.dumps({"api_message": "VAULT_EMPTY", "api_data": {"detail": WORDS, "host": "10.0.0.7"}})
SAID_BY_RATES = json.dumps({"code": "0999", "title": "Vault", "message": WORDS, "host": "10.0.0.7"})
STATUSES = {
    400: "INVALID_REQUEST",
    404: "NOT_FOUND",
    409: "CONFLICT",
    410: "GONE",
    413: "PAYLOAD_TOO_LARGE",
    422: "REFUSED",
    429: "TOO_MANY_REQUESTS",
    503: "LEDGER_UNAVAILABLE",
}
# What no caller of ours has to do with: the gateway's own credential, its own call, its own ledger.
NOT_FOR_CALLERS = [
    *(
        401,
        402,
        403,
        405,
        406,
        407,
        408,
        411,
        412,
        414,
        415,
        416,
        418,
        421,
        423,
        424,
        425,
        426,
        428,
    ),
    *(431, 451, 499, 500, 501, 502, 504, 505, 507, 511, 599, 999, 201, 202, 203, 206, 226),
    *(300, 301, 302, 303, 304, 305, 307, 308, 399),
]
CALLERS = {
    Role.USER: caller("alice", "user"),
    Role.SERVICE: caller(*SERVICE),
    Role.ADMIN: caller(*ADMIN),
}
ACTION = {"type": "deposit", "username": "alice", "currency": "BTC", "amount": "1"}
WRITE = CALLERS[Role.SERVICE] | {"Idempotency-Key": "key-1"}


def told(
    status: int = 400,
    body: str | bytes = b"",
    role: Role = Role.ADMIN,
    api: Api = Api.LEDGER,
    retry_after: int | None = None,
) -> Any:
    """The error for a reply of the ledger."""
    data = body.encode() if isinstance(body, str) else body
    reply = LedgerReply(status, data, retry_after=retry_after)
    return refusal(reply, api, Principal("alice", role, 2e9))


# Status and code.


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("status", STATUSES)
async def test_a_refusal_keeps_its_status_and_gets_a_code_of_ours(
    client: Client, ledger: FakeLedger, status: int, role: Role
) -> None:
    ledger.on("GET", "/ledger/alice", SAID, status, Retry_After="1")
    ledger.on("GET", f"{RATES}/{RATE}", SAID_BY_RATES, status, Retry_After="1")
    answer = await client.get("/ledger/alice", headers=CALLERS[role])
    body = await answer.json()
    assert (answer.status, body["api_message"]) == (status, STATUSES[status])
    assert set(body["api_data"]) == {"detail", "origin", "request_id"}
    assert body["api_data"]["origin"] == "ledger"
    answer = await client.get(f"{RATES}/{RATE}", headers=CALLERS[role])
    body = await answer.json()
    assert answer.status == status
    assert set(body) == {"code", "title", "message", "requestId", "origin"}
    assert body["origin"] == "ledger"
    assert answer.headers["Cache-Control"] == "no-store"
    assert len(ledger.calls) == 2, "a refusal is neither repeated nor remembered"


@pytest.mark.parametrize("status", NOT_FOR_CALLERS)
async def test_any_other_status_of_a_read_is_a_broken_ledger(
    client: Client, ledger: FakeLedger, status: int
) -> None:
    headers = {"Location": f"{ledger.url}/elsewhere", "Retry-After": "7"}
    ledger.on("GET", "/ledger/alice", SAID, status, **headers)
    for role in Role:
        answer = await client.get("/ledger/alice", headers=CALLERS[role])
        body = await answer.json()
        assert (answer.status, body["api_message"]) == (502, "LEDGER_BROKEN")
        assert "WWW-Authenticate" not in answer.headers
        assert "MARKER" not in await answer.text()
    assert [call.path for call in ledger.calls] == ["/ledger/alice"] * 3


@pytest.mark.parametrize("status", [401, 402, 403, 405, 415, 418, 451, 301, 302, 303, 307, 308])
async def test_a_write_that_the_ledger_turned_away_for_the_gateways_sake_is_502(
    client: Client, ledger: FakeLedger, status: int
) -> None:
    ledger.on("POST", "/ledger", SAID, status, Location=f"{ledger.url}/elsewhere")
    answer = await client.post("/ledger", headers=WRITE, json=ACTION)
    assert answer.status == 502
    assert "MARKER" not in await answer.text()
    assert [call.path for call in ledger.calls] == ["/ledger"]


@pytest.mark.parametrize("status", [500, 501, 502, 504, 507, 599, 202, 206])
async def test_a_write_that_the_ledger_failed_at_may_have_been_carried_out(
    client: Client, ledger: FakeLedger, status: int
) -> None:
    ledger.on("POST", "/ledger", SAID, status)
    answer = await client.post("/ledger", headers=WRITE, json=ACTION)
    body = await answer.json()
    assert (answer.status, body["api_message"]) == (504, "OUTCOME_UNKNOWN")
    assert body["api_data"]["origin"] == "ledger"
    assert "MARKER" not in await answer.text()
    assert len(ledger.calls) == 1


@pytest.mark.parametrize("status", STATUSES)
async def test_a_refused_write_is_not_repeated(
    client: Client, ledger: FakeLedger, status: int
) -> None:
    ledger.on("POST", "/ledger", SAID, status)
    ledger.on("DELETE", f"{RATES}/{RATE}", SAID_BY_RATES, status)
    action = await client.post("/ledger", headers=WRITE, json=ACTION)
    rate = await client.delete(f"{RATES}/{RATE}", headers=WRITE)
    assert (action.status, rate.status) == (status, status)
    assert [call.method for call in ledger.calls] == ["POST", "DELETE"]


RATES_CODES = [
    *((400, code) for code in ("0009", "0047", "0053", "0065", "0094")),
    *((404, "0007"), (409, "0028"), (422, "0047")),
]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("status", "code"), RATES_CODES)
def test_the_codes_of_the_rates_api_are_for_everybody(status: int, code: str, role: Role) -> None:
    error = told(status, json.dumps({"code": code, "message": "x"}), role, Api.RATES)
    assert Api.RATES.error_body(error, "id")["code"] == code


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        (503, "0007", "LEDGER_UNAVAILABLE"),
        (429, "0028", "TOO_MANY_REQUESTS"),
        (404, "0028", "0007"),
        (409, "0007", "0028"),
        (400, "0007", "0047"),
    ],
)
def test_a_code_that_contradicts_its_status_is_replaced(
    status: int, code: str, wanted: str
) -> None:
    error = told(status, json.dumps({"code": code, "message": "x"}), Role.ADMIN, Api.RATES)
    assert Api.RATES.error_body(error, "id")["code"] == wanted


@pytest.mark.parametrize(
    "code", ["0999", "VAULT-7", "", "0041", "0042", "0043", 28, None, ["0028"]]
)
@pytest.mark.parametrize(
    ("status", "default"),
    [
        (400, "0047"),
        (404, "0007"),
        (409, "0028"),
        (422, "0047"),
        (429, "TOO_MANY_REQUESTS"),
        (503, "LEDGER_UNAVAILABLE"),
    ],
)
def test_any_other_code_of_a_rates_ledger_is_replaced(status: int, default: str, code: Any) -> None:
    error = told(status, json.dumps({"code": code, "message": "x"}), Role.ADMIN, Api.RATES)
    assert Api.RATES.error_body(error, "id")["code"] == default


def test_the_ledger_api_never_speaks_in_codes_of_rates() -> None:
    error = told(409, json.dumps({"code": "0028"}), api=Api.LEDGER)
    assert Api.LEDGER.error_body(error, "id")["api_message"] == "CONFLICT"


# The ledger's words.


@pytest.mark.parametrize("role", [Role.USER, Role.SERVICE])
@pytest.mark.parametrize("status", STATUSES)
async def test_the_ledgers_words_are_not_for_users_and_services(
    client: Client, ledger: FakeLedger, status: int, role: Role
) -> None:
    ledger.on("GET", "/ledger/alice", SAID, status, X_Internal="MARKER", Set_Cookie="MARKER=1")
    ledger.on("GET", RATES, SAID_BY_RATES, status, X_Internal="MARKER", Set_Cookie="MARKER=1")
    for path in ("/ledger/alice", RATES):
        with capture_logs() as logs:
            answer = await client.get(path, headers=CALLERS[role])
        assert answer.status == status
        for text in (await answer.text(), str(answer.headers), str(logs)):
            assert "MARKER" not in text
            assert "10.0.0.7" not in text
            assert "VAULT" not in text


async def test_an_admin_reads_the_ledgers_words_and_nothing_beside_them(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.on("GET", "/ledger/alice", SAID, 409)
    ledger.on("GET", RATES, SAID_BY_RATES, 409)
    on_ledger = await (await client.get("/ledger/alice", headers=CALLERS[Role.ADMIN])).json()
    on_rates = await (await client.get(RATES, headers=CALLERS[Role.ADMIN])).json()
    assert on_ledger["api_data"]["detail"] == f"The ledger refused this. {WORDS}"
    assert on_rates["message"] == f"The ledger refused this. {WORDS}"
    assert "10.0.0.7" not in f"{on_ledger}{on_rates}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"MARKER",
        b"<html>MARKER</html>",
        b'{"message":"MARKER',
        b'{"message":"MARKER\xff"}',
        b'{"message":["MARKER"]}',
        b'{"message":{"a":"MARKER"}}',
        b'{"code":1,"message":"MARKER"}',
        b'["MARKER"]',
        b'"MARKER"',
        b"null",
        b'{"api_data":["MARKER"]}',
        b'{"api_data":"MARKER"}',
        b'{"api_data":{"text":"MARKER"}}',
        b'{"api_data":' + b"[" * 100_000,
        b'{"api_data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=range(16),
)
def test_words_that_are_not_in_their_place_are_nobodys(body: bytes) -> None:
    for api in Api:
        assert told(400, body, Role.ADMIN, api).detail == "The ledger refused this."


def test_long_words_are_cut_and_unprintable_ones_left_out() -> None:
    long = told(400, json.dumps({"message": "x" * 10_000})).detail
    odd = told(400, json.dumps({"message": "a\r\nb\0c\u2028d\u202ee\x1b[31mf"})).detail
    assert len(long) < 400
    assert odd == "The ledger refused this. abcde[31mf"


# Retry-After.


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("3600", 3600),
        ("3601", 3600),
        ("1000000000000", 3600),
        ("9" * 5000, 3600),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("-1", 1),
        ("1.5", 1),
        ("junk", 1),
        ("", 1),
        ("\u0661", 1),
        ("7, 8", 1),
        ("Fri, 31 Feb 2030 23:59:59 GMT", 1),
        (None, 1),
    ],
)
async def test_the_wait_that_a_ledger_asks_for_is_passed_on_in_seconds_and_capped(
    client: Client, ledger: FakeLedger, status: int, given: str | None, seconds: int
) -> None:
    headers = {} if given is None else {"Retry-After": given}
    ledger.on("GET", "/ledger/alice", SAID, status, **headers)
    ledger.on("POST", "/ledger", SAID, status, **headers)
    read = await client.get("/ledger/alice", headers=CALLERS[Role.USER])
    write = await client.post("/ledger", headers=WRITE, json=ACTION)
    for answer in (read, write):
        assert (answer.status, answer.headers.getall("Retry-After")) == (status, [str(seconds)])
    assert [call.method for call in ledger.calls].count("POST") == 1


@pytest.mark.parametrize("status", [400, 404, 409, 410, 413, 422])
def test_other_refusals_ask_for_no_wait(status: int) -> None:
    assert told(status, retry_after=7).headers == {}


async def test_an_order_that_the_ledger_does_not_know_is_404_to_those_who_see_all(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.on("GET", "/ledger/order/none", SAID, 404)
    statuses = [
        (await client.get("/ledger/order/none", headers=CALLERS[role])).status
        for role in (Role.ADMIN, Role.SERVICE, Role.USER)
    ]
    assert statuses == [404, 404, 403]


async def test_a_refusal_in_the_middle_of_a_list_is_still_an_answer_when_nothing_was_sent(
    client: Client, ledger: FakeLedger
) -> None:
    pages = iter(range(2))

    async def script(_request: web.Request) -> web.StreamResponse:
        if next(pages) == 0:
            link = {"Link": '</ledger/alice?cursor=2>; rel="next"'}
            return web.Response(text="[]", content_type="application/json", headers=link)
        return web.Response(status=429, text=SAID, headers={"Retry-After": "5"})

    ledger.run("GET", "/ledger/alice", script)
    answer = await client.get("/ledger", headers=CALLERS[Role.USER])
    assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
    assert len(ledger.calls) == 2
