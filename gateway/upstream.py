"""HTTP with the server behind the gateway: one request over a kept connection, and its answer.

What is given to `exchange` is sent once, over a connection that has said nothing unasked. aiohttp
makes and keeps the connections and parses what comes; building the request is done here.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from gateway.errors import LedgerUnreachable
from gateway.replies import LedgerConnection, read_body

# What `exchange` raises beside errors of ours, and what of it says that the connection ended.
FOREIGN = (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError, ValueError, zlib.error)
ENDED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@dataclass(slots=True)
class Progress:
    """How far a call has come: whether it has a connection, and whether an answer has begun."""

    connected: bool = False
    answered: bool = False


class Response(NamedTuple):
    """A whole answer, its body decoded."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


def request(method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """A request as it is sent. Raises `ValueError` for what does not belong in its head."""
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {headers[name]}" for name in headers]]
    if body is not None or method != "GET":
        lines.append(f"Content-Length: {len(body or b'')}")
    text = "".join(lines)
    # What can be printed has no line ends: no value goes on as a line, or a request, of its own.
    if not (text.isascii() and text.isprintable()) or " " in target:
        raise ValueError("a character that does not belong in the head of a request")
    return "\r\n".join((*lines, "", "")).encode() + (body or b"")


class Origin:
    """A server, and how many seconds to wait: for a connection to it, for a part of its answer."""

    def __init__(self, url: URL, connect_s: float, read_s: float) -> None:
        self.host = str(url.host_port_subcomponent)
        self.connect_s = connect_s
        self.read_s = read_s
        self._url = url

    @cached_property
    def address(self) -> aiohttp.ClientRequest:
        """What a connector has to know of it; made where a loop runs."""
        return _Address("GET", self._url)

    @cached_property
    def patience(self) -> aiohttp.ClientTimeout:
        """How long a connector tries, unless there is less time."""
        return aiohttp.ClientTimeout(connect=self.connect_s)


class Upstream:
    """Connections to servers, kept while `run` is."""

    def __init__(self) -> None:
        self._connector: aiohttp.TCPConnector | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Keeps connections, and closes them in the end."""
        # How many calls are in flight is bounded before they come here.
        self._connector = _Connector(limit=0, keepalive_timeout=15)
        async with self._connector:
            yield

    async def exchange(
        self, origin: Origin, request: bytes, limit: int, timeout_s: float, progress: Progress
    ) -> Response:
        """The answer to a request, its body not larger than `limit` bytes, within so many seconds.

        Raises `FOREIGN`, and `LedgerUnreachable`, `LedgerBroken` or `UnexpectedAnswer`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        connection = await self._connected(origin, timeout_s)
        progress.connected = True
        line = cast(LedgerConnection, connection.protocol)
        try:
            line.ask(request, origin.read_s, deadline)
            message, payload = await line.answer()
            progress.answered = True
            body = await read_body(line, message.headers, payload, limit)
        except BaseException:
            line.leave()
            connection.close()
            raise
        line.leave()
        connection.release()
        return Response(message.code, message.headers, body)

    async def _connected(self, origin: Origin, timeout_s: float) -> Connection:
        """A connection over which nothing came that nobody asked for."""
        if self._connector is None or self._connector.closed:
            raise LedgerUnreachable("The gateway is starting or ending.")
        patience = origin.patience
        if timeout_s < origin.connect_s:
            patience = aiohttp.ClientTimeout(connect=timeout_s)
        while True:
            connection = await self._connector.connect(origin.address, [], patience)
            line = cast(LedgerConnection, connection.protocol)
            if not line.should_close:
                return connection
            connection.close()
            if not line.asked:
                raise aiohttp.ServerDisconnectedError


class _Address(aiohttp.ClientRequest):
    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


class _Connector(aiohttp.TCPConnector):
    """Makes connections of ours."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        make: Any = partial(LedgerConnection, loop=asyncio.get_running_loop())
        self._factory = make
