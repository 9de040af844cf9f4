"""The way to Redis or Valkey. The only file with redis, which is installed if it is asked for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

# For all that it takes to begin, and for an answer to a command; in seconds.
_TIMEOUT_S = 1.0


class RedisLink:
    """Publishes on one connection and listens on another. Whatever it raises, it is over then."""

    def __init__(self, client: Redis, heard: PubSub) -> None:
        self._client = client
        self._heard = heard

    async def publish(self, channel: str, text: str) -> None:
        """Returns when Redis has taken it."""
        await self._client.publish(channel, text)

    async def receive(self) -> tuple[str, str]:
        """The next message and its channel."""
        message = await _next(self._heard, "message")
        return message["channel"], message["data"]


@asynccontextmanager
async def redis_link(url: str, *channels: str) -> AsyncIterator[RedisLink]:
    """A link that hears everything published on the channels from the moment it is there."""
    client = Redis.from_url(
        url,
        # What others publish may be anything: it is read without complaint, and judged later.
        decode_responses=True,
        encoding_errors="replace",
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=_TIMEOUT_S,
        socket_timeout=_TIMEOUT_S,
    )
    async with client, client.pubsub() as heard:
        async with asyncio.timeout(_TIMEOUT_S):
            await heard.subscribe(*channels)
            for _ in channels:
                await _next(heard, "subscribe")
        yield RedisLink(client, heard)


async def _next(heard: PubSub, kind: str) -> dict[str, Any]:
    while True:
        message: dict[str, Any] | None = await heard.get_message(timeout=None)
        if message is not None and message["type"] == kind:
            return message
