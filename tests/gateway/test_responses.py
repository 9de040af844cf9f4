"""Whole responses against aiohttp's own: the same head and body on the wire."""

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest
from aiohttp import ClientError, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.responses import WholeResponse

JSON = {"Content-Type": "application/json", "X-Of-Ours": "1"}
CASES = [
    (200, b'{"a":1}'),
    (200, b""),
    (201, b"[]"),
    (204, b""),
    (304, b""),
    (404, b"{}"),
    (503, b"{}"),
]


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    """A server that answers in one of two ways, as it is asked to."""

    async def answer(request: web.Request) -> web.StreamResponse:
        status, body = CASES[int(request.query["case"])]
        response: Any = WholeResponse(status, dict(JSON), body)
        if "theirs" in request.query:
            response = web.Response(status=status, headers=JSON, body=body or None)
        if "last" in request.query:
            response.force_close()
        return response

    async def stamp(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Stamp"] = "put on"
        response.headers["Server"] = "ours"

    app = web.Application()
    app.on_response_prepare.append(stamp)
    app.router.add_route("*", "/", answer)
    async with TestClient(TestServer(app)) as client:
        yield client


async def exchanged(client: TestClient[Any, Any], request: str) -> tuple[str, set[str], str]:
    """Status line, header lines but for the date, and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(request.encode() + b"Host: a\r\n\r\nGET /?case=0&last HTTP/1.1\r\nHost: a\r\n\r\n")
    head, _, rest = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    first, *lines = head.split("\r\n")
    assert sum(line.startswith("Date: ") for line in lines) == 1
    return first, {line for line in lines if not line.startswith("Date: ")}, rest


@pytest.mark.parametrize(
    ("method", "case"),
    # Of HEAD aiohttp leaves out the length of nothing.
    [pair for pair in product(["GET", "HEAD", "POST"], range(len(CASES))) if pair != ("HEAD", 1)],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("last", ["", "&last"])
@pytest.mark.parametrize("connection", ["", "Connection: close\r\n", "Connection: keep-alive\r\n"])
async def test_a_whole_response_is_what_aiohttp_would_send(
    client: TestClient[Any, Any], method: str, case: int, version: str, last: str, connection: str
) -> None:
    request = f"{method} /?case={case}{last}%s HTTP/{version}\r\n{connection}"
    ours = await exchanged(client, request % "")
    theirs = await exchanged(client, request % "&theirs")
    ours_rest, theirs_rest = (one[2].split("\r\nDate: ")[0] for one in (ours, theirs))
    assert ours[:2] == theirs[:2]
    assert ours_rest == theirs_rest


async def test_no_value_goes_on_as_a_line_of_its_own(client: TestClient[Any, Any]) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return WholeResponse(200, {"X-Told": "a\r\nSet-Cookie: b"}, b"")

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestClient(TestServer(app)) as other:
        with pytest.raises(ClientError):
            await other.get("/")
