"""The way to Redis or Valkey. The only file with redis, which is installed if it is asked for."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotConnected

# For all that it takes to begin, in seconds. Later, silence is for the caller to notice.
_TIMEOUT_S = 1.0
# A name that is not found keeps its thread for long, whoever has stopped waiting. The loop has few,
# and needs them for the ledger's name; so names are looked up here, one at a time.
_names = ThreadPoolExecutor(max_workers=1)


class RedisLink:
    """Publishes on one connection and listens on another. Whatever it raises, it is over then.

    The connections are used as they are: a client of redis-py connects again by itself, and nobody
    would know that something was missed.
    """

    def __init__(self, speaking: AbstractConnection, listening: AbstractConnection) -> None:
        self._speaking = speaking
        self._listening = listening

    async def publish(self, channel: str, text: str) -> None:
        """Returns when Redis has taken it."""
        await self._speaking.send_command("PUBLISH", channel, text)
        await self._speaking.read_response()

    async def receive(self) -> tuple[str, str]:
        """The next message and its channel."""
        _, channel, text = await _next(self._listening, "message")
        return channel, text


@asynccontextmanager
async def redis_link(url: str, *channels: str) -> AsyncIterator[RedisLink]:
    """A link that hears everything published on the channels from the moment it is there."""
    pool = ConnectionPool.from_url(
        url,
        # What others publish may be anything: it is read without complaint, and judged later.
        decode_responses=True,
        encoding_errors="replace",
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=_TIMEOUT_S,
        socket_timeout=None,
    )
    speaking, listening = (pool.connection_class(**pool.connection_kwargs) for _ in range(2))
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await _connect(speaking, listening)
            await listening.send_command("SUBSCRIBE", *channels)
            for _ in channels:
                await _next(listening, "subscribe")
        yield RedisLink(speaking, listening)
    finally:
        await _disconnect(speaking, listening)


async def _connect(*connections: AbstractConnection) -> None:
    """Connects all of them to the first address of their host's that takes connections."""
    one: Any = connections[0]
    # By way of a socket of the file system there is no host.
    *others, last = await _addresses(one.host, one.port) if hasattr(one, "host") else [None]
    for address in others:
        try:
            return await _connect_to(address, connections)
        except NotConnected:
            # What one says the other must hear: both go to the same address.
            await _disconnect(*connections)
    await _connect_to(last, connections)


async def _addresses(host: str, port: int) -> list[str]:
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_names, look_up)
    return [str(address[0]) for *_, address in found]


async def _connect_to(address: str | None, connections: Sequence[AbstractConnection]) -> None:
    for connection in connections:
        if address is not None:
            _lead(cast(Any, connection), address)
        await connection.connect()  # type: ignore[no-untyped-call]


def _lead(connection: Any, address: str) -> None:
    """Has a connection made to an address; with TLS, who is there must have the host's name."""
    arguments = type(connection)._connection_arguments(connection)
    if "ssl" in arguments:
        arguments["server_hostname"] = connection.host
    connection._connection_arguments = lambda: {**arguments, "host": address}


async def _disconnect(*connections: AbstractConnection) -> None:
    for connection in connections:
        await connection.disconnect(nowait=True)


async def _next(connection: AbstractConnection, kind: str) -> list[Any]:
    while True:
        message: list[Any] = await connection.read_response()
        if message[0] == kind:
            return message
