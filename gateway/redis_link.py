"""The way to Redis or Valkey. The only file with redis, which is installed if it is asked for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

# For all that it takes to begin, in seconds. Later, silence is for the caller to notice.
_TIMEOUT_S = 1.0


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
            for connection in (speaking, listening):
                await connection.connect()  # type: ignore[no-untyped-call]
            await listening.send_command("SUBSCRIBE", *channels)
            for _ in channels:
                await _next(listening, "subscribe")
        yield RedisLink(speaking, listening)
    finally:
        await speaking.disconnect(nowait=True)
        await listening.disconnect(nowait=True)


async def _next(connection: AbstractConnection, kind: str) -> list[Any]:
    while True:
        message: list[Any] = await connection.read_response()
        if message[0] == kind:
            return message
