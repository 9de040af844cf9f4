"""What wraps a request on both sides: the form of every error, and the one event in the log."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.cache import CachedLedger
from gateway.endpoints import ENDPOINTS
from tests.conftest import (
    ADMIN,
    CREDENTIAL,
    LEDGER,
    ORGANIZATION,
    RATE,
    RATES,
    SECRET,
    SERVICE,
    MakeClient,
    caller,
)
from tests.fakes import FakeLedger
from tests.gateway.test_edge import OPEN, Client, exchange, heard, lines, raw

ALICE = caller("alice", "user")
ALICES_ROW = '{"id":"1","username":"alice"}'
BOBS_ROW = '{"id":"2","username":"bob"}'
EVENT = {
    *("event", "log_level", "request_id", "method", "route", "username", "role", "status", "code"),
    *("duration_ms", "ledger_ms", "cache", "bytes", "rows_dropped", "aborted"),
}


def ledger_error(body: Mapping[str, Any]) -> tuple[str, str]:
    """Code and origin of an error in the form of the ledger API."""
    assert set(body) == {"api_message", "api_data"}
    assert (
        {"detail", "origin", "request_id"}
        <= set(body["api_data"])
        <= {
            *("detail", "origin", "request_id", "errors"),
        }
    )
    return body["api_message"], body["api_data"]["origin"]


def rates_error(body: Mapping[str, Any]) -> tuple[str, str]:
    """Code and origin of an error in the form of the rates API."""
    assert (
        {"code", "title", "message", "requestId", "origin"}
        <= set(body)
        <= {
            *("code", "title", "message", "requestId", "origin", "fields"),
        }
    )
    return body["code"], body["origin"]


def filled(path: str) -> str:
    return path.format(
        username="alice", order_id="1", organization_id=ORGANIZATION, ledger_id=LEDGER, id=RATE
    )


# What there is no route for.


@pytest.mark.parametrize("headers", [{}, ALICE, caller(*ADMIN)], ids=["nobody", "user", "admin"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nowhere",
        "/ledgers",
        "/ledger/a/b/c",
        "/ledger/users/alice",
        "/v1",
        "/docs/",
        "/health",
    ],
)
async def test_an_unknown_path_is_404_in_the_form_of_the_ledger_api(
    client: Client, ledger: FakeLedger, path: str, headers: dict[str, str]
) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS", "TRACE"):
        answer = await client.request(method, path, headers=headers)
        assert answer.status == 404
        assert ledger_error(await answer.json()) == ("NOT_FOUND", "gateway")
    assert ledger.calls == []


@pytest.mark.parametrize("path", ["/v1/", "/v1/organizations", f"{RATES}/", f"{RATES}/{RATE}/x"])
async def test_an_unknown_path_under_v1_is_404_in_the_form_of_the_rates_api(
    client: Client, ledger: FakeLedger, path: str
) -> None:
    answer = await client.get(path, headers=ALICE)
    assert answer.status == 404
    assert rates_error(await answer.json()) == ("0007", "gateway")
    assert ledger.calls == []


PATHS = sorted({endpoint.path for endpoint in ENDPOINTS})


@pytest.mark.parametrize("path", PATHS)
async def test_another_method_is_405_and_allow_names_the_right_ones(
    client: Client, ledger: FakeLedger, path: str
) -> None:
    allowed = {endpoint.method for endpoint in ENDPOINTS if endpoint.path == path}
    others = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - allowed
    for method in sorted(others):
        answer = await client.request(method, filled(path), headers=caller(*ADMIN))
        assert answer.status == 405
        assert answer.headers["Allow"] == ", ".join(sorted(allowed))
        body = await answer.json()
        if path.startswith("/v1/"):
            assert rates_error(body) == ("METHOD_NOT_ALLOWED", "gateway")
        else:
            assert ledger_error(body) == ("METHOD_NOT_ALLOWED", "gateway")
    head = await client.head(filled(path), headers=caller(*ADMIN))
    assert (head.status, await head.read()) == (405, b"")
    assert ledger.calls == []


@pytest.mark.parametrize("path", OPEN)
async def test_open_routes_have_no_other_methods(client: Client, path: str) -> None:
    answer = await client.post(path)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


async def test_a_method_in_a_header_or_a_query_is_not_one(
    client: Client, ledger: FakeLedger
) -> None:
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        answer = await client.get("/ledger", headers=caller(*ADMIN) | {name: "DELETE"})
        assert answer.status == 200
    assert (await client.get("/ledger?_method=DELETE", headers=caller(*ADMIN))).status == 400
    assert [call.method for call in ledger.calls] == ["GET"] * 3


async def test_a_path_in_another_case_is_another_path(client: Client, ledger: FakeLedger) -> None:
    for path in ("/LEDGER", "/Ledger/alice", RATES.replace("/v1", "/V1")):
        assert (await client.get(path, headers=ALICE)).status == 404
    assert ledger.calls == []


# An exception that nobody expected.


class Vault(Exception):
    """What only we know."""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read and write fails, with secrets in the exception."""

    async def fail(*_args: object, **_kwargs: object) -> None:
        raise Vault(f"{SECRET} {CREDENTIAL} {ALICE['Authorization']} {BOBS_ROW}")

    monkeypatch.setattr(CachedLedger, "read", fail)
    monkeypatch.setattr(CachedLedger, "write", fail)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/ledger"),
        ("GET", "/ledger/alice?limit=1"),
        ("GET", RATES),
        ("DELETE", RATES + "/" + RATE),
    ],
)
async def test_an_unexpected_exception_tells_nothing_in_the_answer_or_the_log(
    client: Client,
    ledger: FakeLedger,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
) -> None:
    who = caller(*SERVICE) if method == "DELETE" else ALICE
    with capture_logs() as logs, caplog.at_level(logging.DEBUG):
        answer = await client.request(method, path, headers=who | {"X-Request-Id": "mine"})
    assert answer.status == 500
    body = await answer.json()
    if path.startswith("/v1/"):
        assert rates_error(body) == ("INTERNAL_ERROR", "gateway")
    else:
        assert ledger_error(body) == ("INTERNAL_ERROR", "gateway")
    unexpected, request = logs
    assert unexpected["event"] == "unexpected"
    assert unexpected["log_level"] == "error"
    assert unexpected["error"] == "Vault"
    assert unexpected["request_id"] == request["request_id"] == "mine"
    assert any(place.startswith("walk.py:") for place in unexpected["frames"])
    assert (request["status"], request["code"]) == (500, "INTERNAL_ERROR")
    token = who["Authorization"].removeprefix("Bearer ")
    for told in (await answer.text(), str(answer.headers), str(logs), caplog.text):
        assert "Traceback" not in told
        for secret in (SECRET, CREDENTIAL, token, BOBS_ROW):
            assert secret not in told
    assert ledger.calls == []


@pytest.mark.usefixtures("broken")
async def test_the_gateway_serves_on_after_an_unexpected_exception(client: Client) -> None:
    for _ in range(3):
        assert (await client.get("/ledger", headers=ALICE)).status == 500
    assert (await client.get("/health/live")).status == 200
    assert (await client.get("/nowhere")).status == 404


# One event per request.


def scripted(ledger: FakeLedger) -> None:
    ledger.rows("/ledger/alice", ALICES_ROW, BOBS_ROW, BOBS_ROW)
    ledger.rows("/ledger/order/others", BOBS_ROW)
    ledger.on("GET", "/ledger/users/alice/deposits", "MARKER")
    ledger.on("GET", f"{RATES}/{RATE}", '{"code":"0007","message":"MARKER"}', 404)
    ledger.on("POST", RATES, "{}", 201)


SHAPE = "/v1/organizations/{organization_id}/ledgers/{ledger_id}/instrument-rates"
REQUESTS: list[tuple[str, str, dict[str, str], dict[str, Any]]] = [
    (
        "GET",
        "/ledger",
        ALICE,
        {"status": 200, "route": "/ledger", "code": None, "rows_dropped": 2, "cache": "miss"},
    ),
    ("GET", "/ledger/alice?limit=1", ALICE, {"status": 200, "route": "/ledger/{username}"}),
    (
        "GET",
        "/ledger/order/others",
        ALICE,
        {
            "status": 403,
            "route": "/ledger/order/{order_id}",
            "code": "FORBIDDEN",
            "rows_dropped": 1,
        },
    ),
    ("GET", "/ledger/bob", ALICE, {"status": 403, "code": "FORBIDDEN", "cache": "none"}),
    ("GET", "/ledger?MARKER=1", ALICE, {"status": 400, "code": "INVALID_QUERY"}),
    ("GET", "/ledger/users/alice/deposits", ALICE, {"status": 502, "code": "LEDGER_BROKEN"}),
    (
        "GET",
        f"{RATES}/{RATE}",
        ALICE,
        {"status": 404, "route": SHAPE + "/{id}", "code": "NOT_FOUND"},
    ),
    ("POST", RATES, caller(*SERVICE), {"status": 201, "role": "service", "username": "settlement"}),
    ("GET", "/MARKER", ALICE, {"status": 404, "route": "unmatched", "username": None}),
    ("PUT", "/ledger", ALICE, {"status": 405, "route": "unmatched", "username": None}),
    ("GET", "/ledger", {"username": "MARKER"}, {"status": 401, "code": "TOKEN_MISSING"}),
    (
        "GET",
        "/ledger",
        {"Authorization": "Bearer MARKER.MARKER.MARKER", "username": "alice"},
        {"status": 401, "code": "TOKEN_INVALID", "username": None, "role": None},
    ),
    (
        "GET",
        "/ledger",
        ALICE | {"username": "MARKER"},
        {"status": 403, "code": "FORBIDDEN", "username": None, "role": None},
    ),
    ("GET", "/health/live", {}, {"status": 200, "route": "/health/live", "username": None}),
]
BODY = {
    "baseInstrumentCode": "BRL",
    "counterInstrumentCode": "BTC",
    "amount": 1,
    "scale": 1,
    "source": "MARKER",
}


@pytest.mark.parametrize(("method", "target", "headers", "expected"), REQUESTS)
async def test_a_request_is_one_event_that_says_what_and_who_and_nothing_secret(
    client: Client,
    ledger: FakeLedger,
    caplog: pytest.LogCaptureFixture,
    method: str,
    target: str,
    headers: dict[str, str],
    expected: dict[str, Any],
) -> None:
    scripted(ledger)
    extra = {"X-Request-Id": "mine", "Cookie": "MARKER=1", "X-Custom": "MARKER"}
    with capture_logs() as logs, caplog.at_level(logging.INFO):
        answer = await client.request(method, target, headers=headers | extra, json=BODY)
        body = await answer.read()
    (event,) = logs
    assert set(event) == EVENT
    assert event["event"] == "request"
    assert event["log_level"] == "info"
    assert (event["request_id"], event["method"]) == ("mine", method)
    assert event["status"] == answer.status
    assert {name: event[name] for name in expected} == expected
    assert event["aborted"] is False
    assert event["duration_ms"] >= event["ledger_ms"] >= 0
    if answer.status < 500:
        assert (event["ledger_ms"] > 0) == bool(ledger.calls)
    if not target.startswith("/health"):
        assert event["bytes"] == len(body)
    text = str(logs)
    assert "MARKER" not in text
    assert ALICES_ROW not in text
    secrets = [SECRET, CREDENTIAL]
    if "Authorization" in headers:
        secrets.append(headers["Authorization"].removeprefix("Bearer "))
    for secret in secrets:
        assert secret not in text
        assert secret not in caplog.text


async def test_an_answer_from_the_cache_is_a_hit_that_took_no_time_at_the_ledger(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    scripted(ledger)
    client = await make_client()
    with capture_logs() as logs:
        for _ in range(2):
            assert (await client.get("/ledger", headers=ALICE)).status == 200
    assert [event["cache"] for event in logs] == ["miss", "hit"]
    assert [event["rows_dropped"] for event in logs] == [2, 2]
    assert logs[0]["ledger_ms"] > 0 == logs[1]["ledger_ms"]
    assert len(ledger.calls) == 1


async def test_a_request_id_that_may_not_be_logged_is_not(client: Client) -> None:
    with capture_logs() as logs:
        await client.get("/nowhere", headers={"X-Request-Id": "MARKER evil"})
    (event,) = logs
    assert "MARKER" not in str(event)
    assert event["request_id"]


def streamed(ledger: FakeLedger, *, complete: bool) -> None:
    """Two pages, of which the second may never come whole."""
    pages = iter(range(2))

    async def script(request: web.Request) -> web.StreamResponse:
        if next(pages) == 0:
            link = {"Link": '</ledger/alice?cursor=2>; rel="next"'}
            text = f"[{ALICES_ROW},{BOBS_ROW}]"
            return web.Response(text=text, content_type="application/json", headers=link)
        if not complete:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(text=f"[{BOBS_ROW},{ALICES_ROW}]", content_type="application/json")

    ledger.run("GET", "/ledger/alice", script)


async def test_a_stream_is_one_event_that_counts_what_was_sent(
    client: Client, ledger: FakeLedger
) -> None:
    streamed(ledger, complete=True)
    with capture_logs() as logs:
        answer = await client.get("/ledger", headers=ALICE)
        body = await answer.read()
    (event,) = logs
    assert (event["status"], event["code"], event["aborted"]) == (200, None, False)
    assert (event["bytes"], event["rows_dropped"]) == (len(body), 2)
    assert len(json.loads(body)["api_data"]) == 2


async def test_a_stream_that_breaks_off_is_an_event_that_says_so(
    client: Client, ledger: FakeLedger
) -> None:
    streamed(ledger, complete=False)
    with capture_logs() as logs:
        head = b"\r\n".join([b"GET /ledger HTTP/1.1", b"Host: g", *lines(ALICE)])
        data = await exchange(client.port, head + b"\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 ")
    assert not data.endswith(b"0\r\n\r\n")
    (event,) = logs
    assert (event["aborted"], event["code"]) == (True, "LEDGER_BROKEN")
    assert event["bytes"] > 0
    assert event["rows_dropped"] == 1


async def test_the_id_in_the_log_is_the_id_in_the_answer_and_at_the_ledger(
    client: Client, ledger: FakeLedger
) -> None:
    with capture_logs() as logs:
        answer = await client.get("/ledger", headers=ALICE)
    made = answer.headers["X-Request-Id"]
    assert [event["request_id"] for event in logs] == [made]
    assert [heard(call)["x-request-id"] for call in ledger.calls] == [made]


async def test_a_method_that_nobody_knows_is_refused_in_good_order(
    client: Client, ledger: FakeLedger
) -> None:
    answer = await raw(client, "BREW /ledger HTTP/1.1", *lines(ALICE))
    assert 400 <= answer.status < 500
    assert ledger.calls == []
