"""The rows that the ledger of the measurements holds, and the tokens of those who ask for them."""

import base64
import hashlib
import hmac
import json
import random
import time
from collections.abc import Sequence

SECRET = "s" * 32
_LIFETIME_S = 6 * 3600


def token(username: str, role: str = "user") -> str:
    """Signed with HS256; made here, so that no peer's library is favoured."""
    claims = {"sub": username, "exp": int(time.time()) + _LIFETIME_S, "role": role}
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    signed = b".".join(_base64(json.dumps(part).encode()) for part in parts)
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + _base64(digest)).decode()


def identity(username: str) -> dict[str, str]:
    """The headers of a user."""
    return {"Authorization": f"Bearer {token(username)}", "username": username}


def secret_base64() -> str:
    """The key as a key set holds it."""
    return _base64(SECRET.encode()).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def user(number: int) -> str:
    """The name of the n-th user."""
    return f"user-{number}"


def row(number: int, username: str, *, long: bool = False) -> dict[str, str]:
    """One of the ledger's rows, with what it must have, or with more."""
    required = {
        "id": f"row-{number:06}",
        "username": username,
        "type": "trade",
        "status": "completed",
        "amount": f"-{number % 9973}.10000000",
        "currency": "USD",
        "timestamp": "2024-01-29T19:01:00Z",
    }
    more = {
        "ticker": "BTC-USD",
        "fee": "0.00000000",
        "balance": "100000.00000000",
        "order_id": "o-1",
    }
    return {**required, **more} if long else required


def envelope(owners: Sequence[str], *, long: bool = False) -> bytes:
    """A reply of the ledger with one row for each."""
    rows = [row(number, owner, long=long) for number, owner in enumerate(owners)]
    message = {"api_message": "LEDGER_GET_LIST_SUCCESS", "api_data": rows}
    return json.dumps(message, separators=(",", ":")).encode()


def zipf_order(count: int, length: int, seed: int = 7) -> list[int]:
    """Who asks when, of so many: the n-th 1/n times as often as the first."""
    weights = [1 / rank for rank in range(1, count + 1)]
    return random.Random(seed).choices(range(count), weights, k=length)
