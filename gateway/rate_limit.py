"""A limit on what one user may ask for: a token bucket per user, in bounded memory."""

import math
from collections.abc import MutableMapping
from dataclasses import dataclass

from gateway.errors import RateLimited

# Who was not seen for longest is forgotten first, and starts again with a full bucket.
MAX_USERS = 100_000


@dataclass(slots=True)
class Bucket:
    """How many requests are left, as of a time in seconds on the monotonic clock."""

    tokens: float
    at: float


class RateLimit:
    """Allows each user `rate` requests per second on average, and a second's worth at once.

    `buckets` holds what is known of each user; 0 is no limit.
    """

    def __init__(self, rate: float, buckets: MutableMapping[str, Bucket]) -> None:
        self._rate = rate
        self._burst = max(1, math.ceil(rate))
        self._buckets = buckets

    def take(self, username: str, now: float) -> dict[str, str]:
        """The headers that tell a user of their limit, if there is one. Raises `RateLimited`."""
        if not self._rate:
            return {}
        bucket = self._refilled(username, now)
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) / self._rate)
            headers = {**self._headers(bucket), "Retry-After": str(wait)}
            raise RateLimited("This is more than one user may ask for.", headers=headers)
        bucket.tokens -= 1
        return self._headers(bucket)

    def _refilled(self, username: str, now: float) -> Bucket:
        bucket = self._buckets.get(username)
        if bucket is None:
            bucket = Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        self._buckets[username] = bucket
        return bucket

    def _headers(self, bucket: Bucket) -> dict[str, str]:
        """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers)."""
        window = math.ceil(self._burst / self._rate)
        left = int(bucket.tokens)
        until_next = 0 if left else math.ceil((1 - bucket.tokens) / self._rate)
        return {
            "RateLimit-Policy": f'"user";q={self._burst};w={window}',
            "RateLimit": f'"user";r={left};t={until_next}',
        }
