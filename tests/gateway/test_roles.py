"""Who may call which route, tried on every route that there is."""

import time

import pytest
from aiohttp import web
from yarl import URL

from gateway.authz import Access, Role
from gateway.endpoints import ENDPOINTS, Api, Endpoint, Reply
from tests.conftest import ADMIN, LEDGER, ORGANIZATION, RATE, SERVICE, caller, token
from tests.fakes import FakeLedger
from tests.gateway.test_edge import OPEN, Client, heard

ALICE = caller("alice", "user")
CALLERS: dict[str, dict[str, str]] = {
    "no token": {"username": "alice"},
    "bad token": {"Authorization": f"Bearer {token()}x", "username": "alice"},
    "expired": caller("alice", "user", exp=int(time.time()) - 60),
    "no username": {"Authorization": ALICE["Authorization"]},
    "wrong username": ALICE | {"username": "bob"},
    "unknown role": caller("alice", "auditor"),
    "user, own": ALICE,
    "user, another's": ALICE,
    "service": caller(*SERVICE),
    "admin": caller(*ADMIN),
}
# The columns are `CALLERS`; `own` and `another's` tell whose name or order stands in the path.
# fmt: off
TABLE = {
    "GET /ledger":                           "401 401 401 401 403 403   200 200   200 200",
    "POST /ledger":                          "401 401 401 401 403 403   403 403   201 201",
    "GET /ledger/order/{order_id}":          "401 401 401 401 403 403   200 403   200 200",
    "GET /ledger/{username}":                "401 401 401 401 403 403   200 403   200 200",
    "GET /ledger/users/{username}/deposits": "401 401 401 401 403 403   200 403   200 200",
    "GET {rates}":                           "401 401 401 200 403 403   200 200   200 200",
    "GET {rates}/{id}":                      "401 401 401 200 403 403   200 200   200 200",
    "POST {rates}":                          "401 401 401 403 403 403   403 403   201 201",
    "PATCH {rates}/{id}":                    "401 401 401 403 403 403   403 403   200 200",
    "DELETE {rates}/{id}":                   "401 401 401 403 403 403   403 403   204 204",
}
# fmt: on
RATES = "/v1/organizations/{organization_id}/ledgers/{ledger_id}/instrument-rates"
EXPECTED = {
    (route.replace("{rates}", RATES), name): int(status)
    for route, statuses in TABLE.items()
    for name, status in zip(CALLERS, statuses.split(), strict=True)
}
# Whose order it is only the ledger knows.
ASKED_BEFORE_REFUSED = {("GET /ledger/order/{order_id}", "user, another's")}

BODIES = {
    "POST /ledger": {"type": "deposit", "username": "bob", "currency": "BTC", "amount": "1"},
    f"POST {RATES}": {
        "baseInstrumentCode": "BRL",
        "counterInstrumentCode": "BTC",
        "amount": 35000000,
        "scale": 2,
        "source": "a test",
    },
    f"PATCH {RATES}/{{id}}": {"amount": 1},
}
ROWS = {name: f'{{"id":"{name}-1","username":"{name}"}}' for name in ("alice", "bob")}


def route_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def path_of(endpoint: Endpoint, whose: str) -> str:
    return endpoint.path.format(
        username=whose,
        order_id=f"order-of-{whose}",
        organization_id=ORGANIZATION,
        ledger_id=LEDGER,
        id=RATE,
    )


async def everything(request: web.Request) -> web.StreamResponse:
    """A ledger that does all that it is asked, and sends both users' rows where it can."""
    path = request.rel_url.raw_path
    if request.method == "DELETE":
        return web.Response(status=204)
    if path.startswith("/v1/"):
        is_list = request.method == "GET" and not path.endswith(RATE)
        return web.Response(text="[]" if is_list else "{}", content_type="application/json")
    if path.startswith("/ledger/order/"):
        data = f"[{ROWS[path.rpartition('-')[2]]}]"
    elif path.endswith("/deposits"):
        data = f'{{"BTC":[{",".join(ROWS.values())}]}}'
    else:
        data = ROWS["bob"] if request.method == "POST" else f"[{','.join(ROWS.values())}]"
    text = f'{{"api_message":"OK","api_data":{data}}}'
    return web.Response(text=text, content_type="application/json")


def test_every_route_and_every_caller_has_an_expectation() -> None:
    assert {route for route, _ in EXPECTED} == {route_of(endpoint) for endpoint in ENDPOINTS}
    assert len(EXPECTED) == len(ENDPOINTS) * len(CALLERS)


@pytest.mark.parametrize("name", CALLERS)
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=route_of)
async def test_a_caller_gets_what_the_contract_says(
    client: Client, ledger: FakeLedger, endpoint: Endpoint, name: str
) -> None:
    ledger.fallback = everything
    route = route_of(endpoint)
    path = path_of(endpoint, "bob" if name in ("user, another's", "service", "admin") else "alice")
    answer = await client.request(
        endpoint.method,
        path,
        headers=CALLERS[name] | {"Idempotency-Key": "key-1"},
        json=BODIES.get(route),
    )
    assert answer.status == EXPECTED[route, name]
    assert ("WWW-Authenticate" in answer.headers) == (answer.status == 401)
    if answer.status < 400 or (route, name) in ASKED_BEFORE_REFUSED:
        assert [call.method for call in ledger.calls] == [endpoint.method]
    else:
        assert ledger.calls == []
    if name.startswith("user"):
        assert "bob" not in await answer.text()


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=route_of)
async def test_a_refusal_has_the_form_of_its_api(client: Client, endpoint: Endpoint) -> None:
    path = path_of(endpoint, "alice")
    for name, rates_code in (("no token", "0041"), ("bad token", "0042"), ("unknown role", "0043")):
        answer = await client.request(endpoint.method, path, headers=CALLERS[name])
        body = await answer.json()
        if endpoint.api is Api.LEDGER:
            assert set(body) == {"api_message", "api_data"}
            assert set(body["api_data"]) == {"detail", "origin", "request_id"}
        else:
            assert set(body) == {"code", "title", "message", "requestId", "origin"}
            assert body["code"] == rates_code


# Nothing of a request is looked at before it is known who asks, and whether they may.


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=route_of)
@pytest.mark.parametrize("mistake", ["query", "escape", "path", "body"])
async def test_what_is_wrong_with_a_request_is_not_told_to_those_who_may_not_ask(
    client: Client, ledger: FakeLedger, endpoint: Endpoint, mistake: str
) -> None:
    path = path_of(endpoint, "alice")
    if mistake == "path":
        path = path.replace("alice", "%00").replace(RATE, "%00")
    tail = {"query": "?nonsense=1&limit=x&cursor=y", "escape": "?%zz"}.get(mistake, "")
    target = URL(str(client.make_url("/")).rstrip("/") + path + tail, encoded=True)
    headers = {"Content-Type": "text/plain", "Idempotency-Key": ""} if mistake == "body" else {}
    statuses = []
    for name in ("no token", "bad token", "expired", "wrong username", "unknown role"):
        answer = await client.session.request(
            endpoint.method, target, headers=CALLERS[name] | headers, data=b"{garbage"
        )
        statuses.append(answer.status)
    assert statuses == [401, 401, 401, 403, 403]
    assert ledger.calls == []


@pytest.mark.parametrize(
    "endpoint", [one for one in ENDPOINTS if Role.USER not in one.roles], ids=route_of
)
@pytest.mark.parametrize("body", [b"", b"{garbage", b"x" * 1_000_000], ids=["no", "bad", "huge"])
async def test_a_user_hears_of_a_write_only_that_it_is_not_theirs_to_do(
    client: Client, ledger: FakeLedger, endpoint: Endpoint, body: bytes
) -> None:
    path = path_of(endpoint, "alice")
    for target in (path, path.replace(RATE, "no-id").replace(LEDGER, "no-id"), f"{path}?x=1"):
        answer = await client.request(endpoint.method, target, headers=ALICE, data=body)
        assert answer.status == 403
    assert ledger.calls == []


# The table cannot be gone around.


def test_an_endpoint_without_roles_cannot_be_declared() -> None:
    declared = {
        "name": "open",
        "method": "GET",
        "path": "/open",
        "api": Api.LEDGER,
        "reply": Reply.ROWS,
        "tag": "open",
    }
    assert Endpoint(**declared, roles={Role.ADMIN: Access.ALL}).name == "open"
    with pytest.raises(TypeError, match="roles"):
        Endpoint(**declared)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=route_of)
def test_the_roles_of_an_endpoint_cannot_be_changed(endpoint: Endpoint) -> None:
    with pytest.raises(TypeError):
        endpoint.roles[Role.USER] = Access.ALL  # type: ignore[index]
    with pytest.raises(AttributeError):
        endpoint.roles = {}  # type: ignore[misc]


async def test_nothing_is_served_but_the_table_and_the_open_routes(client: Client) -> None:
    routes = client.gateway.api.router.routes()  # type: ignore[attr-defined]
    served = {(route.method, route.resource.canonical) for route in routes}
    table = {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    files = {(method, path) for method, path in served if path.startswith("/docs/static/")}
    opened = {(method, path) for path in OPEN for method in ("GET", "HEAD")}
    assert served - files == table | opened
    assert {method for method, _ in files} == {"GET", "HEAD"}
    assert len(list(routes)) == len(served)


@pytest.mark.parametrize("path", OPEN)
async def test_open_routes_ask_nobody_and_tell_nothing_of_the_ledger(
    client: Client, ledger: FakeLedger, path: str
) -> None:
    ledger.fallback = everything
    for name in ("no token", "bad token", "admin"):
        answer = await client.get(path, headers=CALLERS[name])
        assert answer.status == 200
        assert "alice-1" not in await answer.text()
    assert ledger.calls == []


@pytest.mark.parametrize("path", ["/health", "/metrics", "/status"])
async def test_what_is_for_operators_is_not_on_the_callers_listener(
    client: Client, ledger: FakeLedger, path: str
) -> None:
    for name in ("no token", "admin"):
        assert (await client.get(path, headers=CALLERS[name])).status == 404
    assert ledger.calls == []


async def test_the_ledger_hears_who_acts_and_never_their_role(
    client: Client, ledger: FakeLedger
) -> None:
    for name in ("user, own", "service", "admin"):
        await client.get("/ledger", headers=CALLERS[name])
    assert [heard(call)["username"] for call in ledger.calls] == ["alice", SERVICE[0], ADMIN[0]]
    assert not any("role" in header for call in ledger.calls for header in heard(call))
