"""A list of tokens that are no longer good, in a file that is read again when it changes.

The file is one JSON object: `jti`, an array of token ids; `not_before`, an object from user name to
a time in seconds since the epoch, before which that user's tokens were issued too early.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from gateway.authz import Principal
from schemas import strict_json


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What one version of the file says."""

    token_ids: frozenset[str] = frozenset()
    not_before: dict[str, float] = field(default_factory=dict)

    def covers(self, principal: Principal) -> bool:
        """Whether the principal's token is revoked; one without `iat` counts as too old."""
        if principal.token_id is not None and principal.token_id in self.token_ids:
            return True
        earliest = self.not_before.get(principal.username)
        return earliest is not None and (principal.issued_at or 0.0) < earliest


def read_revocations(path: Path) -> RevocationList:
    """The list in a file. Raises OSError, or ValueError with what is wrong with it."""
    document = strict_json.parse(path.read_bytes())
    if not isinstance(document, dict) or document.keys() - {"jti", "not_before"}:
        raise ValueError("not an object of jti and not_before")
    token_ids, not_before = document.get("jti", []), document.get("not_before", {})
    if not isinstance(token_ids, list) or not all(isinstance(item, str) for item in token_ids):
        raise ValueError("jti is not an array of strings")
    if not isinstance(not_before, dict) or not all(map(_is_time, not_before.values())):
        raise ValueError("not_before is not an object of times")
    return RevocationList(frozenset(token_ids), not_before)


class Revocations:
    """The list in force. A version that cannot be read leaves the last good one in force."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._version = _version(path)
        self._list = RevocationList() if path is None else read_revocations(path)
        self.stale = False

    def covers(self, principal: Principal) -> bool:
        """Whether the principal's token is revoked, as the file has it at this moment."""
        if self._path is None:
            return False
        version = _version(self._path)
        if version != self._version and self._read_again(self._path):
            self._version = version
        return self._list.covers(principal)

    def _read_again(self, path: Path) -> bool:
        """Whether the file was seen, good or bad; if not it is tried again at the next request."""
        try:
            self._list = read_revocations(path)
        except (OSError, ValueError) as error:
            if not self.stale:
                structlog.get_logger().error("revocation list not read", error=type(error).__name__)
            self.stale = True
            return isinstance(error, ValueError)
        self.stale = False
        return True


def _version(path: Path | None) -> tuple[int, ...] | None:
    """What changes when the file does; None if it is not there."""
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found is not None else None


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
