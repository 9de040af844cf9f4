"""Answers of writes by idempotency key, so that a repeated write happens once (section 3)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.errors import LedgerRefused


@dataclass(frozen=True, slots=True)
class Answer:
    """What a write answered: HTTP status and body."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a key counts: the same key elsewhere, or from somebody else, is another key."""

    key: str
    method: str
    path: str
    actor: str | None


@dataclass(frozen=True, slots=True)
class _Attempt:
    fingerprint: str
    answer: Answer | None


class Journal:
    """Remembers successful writes while the process lives; a refused one leaves its key free."""

    def __init__(self) -> None:
        self._attempts: dict[Scope, _Attempt] = {}

    def begin(self, scope: Scope, fingerprint: str) -> Answer | None:
        """The first answer if there is one, else None and the key is taken.

        Raises LedgerRefused: 422 when the key came with another body, 409 while the first is in
        flight.
        """
        earlier = self._attempts.get(scope)
        if earlier is None:
            self._attempts[scope] = _Attempt(fingerprint, None)
            return None
        if earlier.fingerprint != fingerprint:
            raise LedgerRefused(
                422, "IDEMPOTENCY_KEY_REUSED", "The idempotency key was used with another body."
            )
        if earlier.answer is None:
            raise LedgerRefused(409, "IDEMPOTENCY_IN_FLIGHT", "The first request is in flight.")
        return earlier.answer

    def finish(self, scope: Scope, answer: Answer) -> None:
        """Keep the answer of a write that `begin` let through."""
        self._attempts[scope] = _Attempt(self._attempts[scope].fingerprint, answer)

    def abandon(self, scope: Scope) -> None:
        """Free the key of a write that changed nothing."""
        del self._attempts[scope]


def fingerprint_of(document: Any) -> str:
    """A text equal for equal JSON only: 1, 1.0 and true differ, key order does not count."""
    return json.dumps(document, sort_keys=True)


def once(
    journal: Journal, scope: Scope | None, document: Any, act: Callable[[], Answer]
) -> tuple[Answer, bool]:
    """Act, or give the first answer again; the flag tells which (True: replayed)."""
    if scope is None:
        return act(), False
    earlier = journal.begin(scope, fingerprint_of(document))
    if earlier is not None:
        return earlier, True
    try:
        answer = act()
    except BaseException:
        journal.abandon(scope)
        raise
    journal.finish(scope, answer)
    return answer, False
