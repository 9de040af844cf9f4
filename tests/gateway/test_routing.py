"""Routes that are found at once are those that aiohttp's router finds."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from gateway.endpoints import ENDPOINTS
from gateway.routing import Routing
from tests.conftest import FakeLedger, caller

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT")
PARTS = [part for one in ENDPOINTS for part in one.path.split("/") if not part.startswith("{")]
SEGMENTS = st.one_of(
    st.sampled_from(["", ".", "..", "%2F", "%", "a:b", "{x}", "{", "a;b=c", *PARTS]),
    st.text("abcXYZ019._~-!$&'()*+,;=:@%", max_size=6),
)
PATHS = st.lists(SEGMENTS, max_size=9).map(lambda parts: "/" + "/".join(parts))


async def _answer(_request: web.Request) -> web.StreamResponse:
    raise AssertionError("nothing is called here")


async def _expect(_request: web.Request) -> None:
    raise AssertionError("nothing is called here")


def _application() -> tuple[web.Application, Routing]:
    app = web.Application()
    routing = Routing(app)
    for endpoint in ENDPOINTS:
        routing.add(endpoint.method, endpoint.path, _answer, _expect)
    app.freeze()
    return app, routing


APP, ROUTING = _application()


def filled(path: str, segments: list[str]) -> str:
    """A path of the table with its parameters replaced."""
    given = iter(segments)
    return "/".join(next(given) if part.startswith("{") else part for part in path.split("/"))


FILLED = st.builds(
    filled,
    st.sampled_from([one.path for one in ENDPOINTS]),
    st.lists(SEGMENTS, min_size=3, max_size=3),
)


@given(st.sampled_from(METHODS), PATHS | FILLED)
async def test_what_is_found_is_what_the_router_finds(method: str, path: str) -> None:
    request = make_mocked_request(method, "/", app=APP)
    # As aiohttp's parser makes it, also of what begins with two slashes.
    request._rel_url = URL.build(path=path, encoded=True)
    resolved = await APP.router.resolve(request)
    expected = resolved.route if resolved.http_exception is None else None
    found = ROUTING.find(request)
    assert (found[0].route if found is not None else None) is expected


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_every_route_of_the_table_is_found(endpoint: Any) -> None:
    request = make_mocked_request(endpoint.method, endpoint.path, app=APP)
    found = ROUTING.find(request)
    assert found is not None
    resource = found[0].route.resource
    assert resource is not None
    assert resource.canonical == endpoint.path


@pytest.mark.parametrize("path", ["/ledger?a=1", "/ledger"])
def test_a_query_does_not_matter(path: str) -> None:
    assert ROUTING.find(make_mocked_request("GET", path, app=APP)) is not None


async def test_a_handler_is_called_within_the_middlewares_as_the_router_would() -> None:
    """For many requests at once, which share what is known of their route."""
    seen: list[tuple[str, web.Application, str]] = []

    def noting(name: str) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
            resource = request.match_info.route.resource
            seen.append((name, request.app, resource.canonical if resource is not None else ""))
            await asyncio.sleep(0)
            return await handler(request)  # type: ignore[no-any-return]

        return middleware

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request.path)

    app = web.Application(middlewares=[noting("outer"), noting("inner")])
    routing = Routing(app)
    routing.add("GET", "/a.b/{name}", answer, _expect)
    app.freeze()
    handle = routing(app._handle)
    requests = [make_mocked_request("GET", f"/a.b/{number}", app=app) for number in range(3)]
    answers: list[Any] = await asyncio.gather(*(handle(request) for request in requests))
    assert [answer.text for answer in answers] == ["/a.b/0", "/a.b/1", "/a.b/2"]
    here = app, "/a.b/{name}"
    assert seen == [("outer", *here)] * 3 + [("inner", *here)] * 3
    assert routing.find(make_mocked_request("GET", "/aXb/1", app=app)) is None


async def test_who_expects_something_is_asked_for_the_body(
    ledger: FakeLedger, client: TestClient[Any, Any]
) -> None:
    ledger.rows("/ledger/alice", '{"id":"1","username":"alice"}')
    headers = {**caller("alice"), "Expect": "100-continue"}
    async with client.get("/ledger", headers=headers) as response:
        assert response.status == 200
