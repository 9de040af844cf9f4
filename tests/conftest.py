"""What the tests share: a fake ledger, a gateway in front of it, and tokens."""

import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any
from unittest.mock import patch

import jwt
import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, settings
from yarl import URL

from gateway import connections, listener, logs
from gateway.app import create_app, shared
from gateway.config import Config, read
from gateway.server import listening
from tests.fakes import FakeLedger
from tests.faulty import FaultyLedger

# How long an example takes is the machine's affair: what has to be quick is measured where it is.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

SECRET = "a secret of the tests, long enough for HS512, which wants 64 bytes"
CREDENTIAL = "the-gateways-own-credential"
ORGANIZATION = "5f3a4c55-8b28-4276-bed7-f7c8a4bb44e8"
LEDGER = "77b0fb8b-1bd9-4810-9c6d-7e80064fab0c"
RATE = "d0aa3885-0f9d-4856-9ca8-7da4fe6e2a95"
RATES = f"/v1/organizations/{ORGANIZATION}/ledgers/{LEDGER}/instrument-rates"

MakeClient = Callable[..., Awaitable[TestClient[Any, Any]]]


def token(username: str = "alice", role: str | None = "user", **claims: Any) -> str:
    """A token good for an hour; a claim given as None is left out."""
    now = int(time.time())
    all_claims = {"sub": username, "role": role, "exp": now + 3600, "iat": now} | claims
    present = {name: value for name, value in all_claims.items() if value is not None}
    return jwt.encode(present, SECRET, algorithm="HS256")


def caller(username: str = "alice", role: str = "user", **claims: Any) -> dict[str, str]:
    """The two identity headers of a caller."""
    return {"Authorization": f"Bearer {token(username, role, **claims)}", "username": username}


NO_RETRIES = {"ledger__retry_ratio": "0", "ledger__retry_floor": "0"}
ADMIN = ("admin", "admin")
SERVICE = ("settlement", "service")


def config_for(ledger_url: str, **settings: str) -> Config:
    """A configuration; settings are named like the environment, `ledger__page_size="2"`."""
    environ = {
        "GATEWAY_LEDGER__BASE_URL": ledger_url,
        "GATEWAY_LEDGER__TOKEN": CREDENTIAL,
        "GATEWAY_AUTH__SECRET": SECRET,
        # The tests hold with the fast path and without it.
        "GATEWAY_SERVER__FAST_PATH": os.environ.get("TEST_FAST_PATH", "true"),
    }
    environ |= {f"GATEWAY_{name.upper()}": value for name, value in settings.items()}
    return read(None, environ)


@pytest.fixture
async def ledger() -> AsyncIterator[FakeLedger]:
    """A fake ledger; `ledger.url` is where it listens."""
    fake = FakeLedger()
    server = fake.server()
    await server.start_server()
    fake.url = str(server.make_url("")).rstrip("/")
    yield fake
    await server.close()


class GatewayServer(TestServer):
    """Serves as `serve` does: with the gateway's own connections, and the fast path if it is on.

    There is nobody to wait for when it closes.
    """

    async def start_server(self, **_options: Any) -> None:
        """Begins to listen."""
        self._listening = AsyncExitStack()
        bound = listening(self.app, "127.0.0.1", 0)
        self.host, self.port = "127.0.0.1", await self._listening.enter_async_context(bound)
        self._root, self.scheme = URL(f"http://127.0.0.1:{self.port}"), "http"

    @property
    def connections(self) -> int:
        """How many are open."""
        every = [one for one in gc.get_objects() if type(one) is connections.Connection]
        return sum(one.transport is not None for one in every)

    async def close(self) -> None:
        """Stops listening."""
        if not self._closed:
            self._closed = True
            with patch.object(listener, "_HANDSHAKE_S", 0), patch.object(connections, "_PACE_S", 0):
                await self._listening.aclose()


@pytest.fixture
async def make_client(ledger: FakeLedger) -> AsyncIterator[MakeClient]:
    """Makes clients of gateways: `await make_client(ledger__page_size="2")`."""
    clients: list[TestClient[Any, Any]] = []

    async def make(url: str | None = None, **settings: str) -> TestClient[Any, Any]:
        config = config_for(url or ledger.url, **settings)
        gateway = create_app(config, shared(config))
        client: TestClient[Any, Any] = TestClient(GatewayServer(gateway.api))
        await client.start_server()
        client.gateway = gateway  # type: ignore[attr-defined]
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyLedger]:
    """A ledger that misbehaves as it is told to."""
    async with FaultyLedger().run() as ledger:
        yield ledger


@pytest.fixture
async def client(make_client: MakeClient) -> TestClient[Any, Any]:
    """A client of a gateway without a cache, and without retries: the ledger sees each call."""
    return await make_client(cache__enabled="false", **NO_RETRIES)


@pytest.fixture(autouse=True)
def logging_left_alone() -> Iterator[None]:
    """Takes back what a test does to the logging of the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logs._lines = None
    structlog.reset_defaults()
