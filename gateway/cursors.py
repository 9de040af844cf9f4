"""Opaque cursors, bound to caller, route and filter by a signature.

A ledger's own cursor may carry a filter in the clear; handed on unsigned, it would let one user ask
another's query.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import InvalidCursor

_MAC_BYTES = 32


@dataclass(frozen=True, slots=True)
class Position:
    """Where in a list to go on: the ledger's cursor of a page (None: the first), and the mark of
    the row in it after which to begin (None: with the first row).
    """

    cursor: str | None = None
    after: str | None = None


START = Position()


class CursorSigner:
    """Seals positions for one caller and one question; opens only its own."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, position: Position, bound: Sequence[str]) -> str:
        """The cursor that `open` turns back into the position for the same `bound` parts."""
        payload = json.dumps([position.cursor, position.after]).encode()
        return _encode(self._mac(payload, bound) + payload)

    def open(self, cursor: str, bound: Sequence[str]) -> Position:
        """The position in a cursor. Raises `InvalidCursor` unless it was sealed for `bound`."""
        try:
            sealed = _decode(cursor)
        except ValueError:
            sealed = b""
        mac, payload = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(payload, bound)) or _encode(sealed) != cursor:
            raise InvalidCursor("The cursor is not one of yours for this list.")
        return Position(*json.loads(payload))

    def _mac(self, payload: bytes, bound: Sequence[str]) -> bytes:
        parts = [payload, *(part.encode() for part in bound)]
        text = b"".join(len(part).to_bytes(4) + part for part in parts)
        return hmac.digest(self._key, text, "sha256")


def signing_key(*roots: str | None) -> bytes:
    """A key derived from the first configured secret, so that every gateway that shares it signs
    alike; random for this deployment of workers if there is none.
    """
    root = next((root for root in roots if root), None) or secrets.token_hex(32)
    return hmac.digest(root.encode(), b"ledger-gateway cursor", hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
