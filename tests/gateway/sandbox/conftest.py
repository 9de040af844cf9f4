"""The sandbox as a client sees it, over HTTP."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from gateway.sandbox import create_sandbox

Client = TestClient[web.Request, web.Application]
Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
def connect(aiohttp_client: Any) -> Connect:
    """Start a sandbox with the given arguments of `create_sandbox`."""

    async def start(**options: Any) -> Client:
        client: Client = await aiohttp_client(create_sandbox(**options))
        return client

    return start


@pytest.fixture
async def client(connect: Connect) -> Client:
    """A seeded sandbox without a token."""
    return await connect()
