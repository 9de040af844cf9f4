"""A call to the ledger, its reply, and what a reply stands for. Pure; no I/O."""

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec

from gateway.errors import LedgerBroken, LedgerFailing, OutcomeUnknown, UnexpectedAnswer

# What the caller may see of a refusal; any other 4xx is about the gateway's own call.
REFUSALS = frozenset({400, 404, 409, 410, 413, 422, 429, 503})
# A ledger may have our callers wait so long, in seconds, and no longer.
MAX_RETRY_AFTER_S = 3600
# A target with its parameters, up to a comma that is not quoted; and one parameter of them.
_link = re.compile(r'<([^<>]*)>((?:"(?:[^"\\]|\\.)*+"|[^",])*+)')
_parameter = re.compile(r';\s*([^\s=;"]+)\s*(?:=\s*("(?:[^"\\]|\\.)*+"|' r"'[^']*'|[^\s;\"]*))?")


class LedgerCall(msgspec.Struct, frozen=True):
    """One request to the ledger. `path` is built from a template of ours and already encoded.

    `username` is the acting user; `body` is JSON that was checked.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    username: str
    request_id: str
    body: bytes | None = None
    idempotency_key: str | None = None

    @property
    def is_write(self) -> bool:
        """Whether the ledger's state may change."""
        return self.method != "GET"


class LedgerReply(msgspec.Struct, frozen=True):
    """What the ledger answered: a success, or a refusal that the caller may see.

    `retry_after`, `elapsed` and `age` are in seconds; `next_cursor` is the ledger's own;
    `cache_control` are its `Cache-Control` headers.
    """

    status: int
    body: bytes
    next_cursor: str | None = None
    replayed: bool = False
    retry_after: int | None = None
    elapsed: float = 0.0
    age: float = 0.0
    cache_control: tuple[str, ...] = ()

    @property
    def is_success(self) -> bool:
        """Whether the call did what was asked."""
        return 200 <= self.status < 300


def outcome_unknown() -> OutcomeUnknown:
    """A write that was sent, and whose answer is missing or unreadable."""
    return OutcomeUnknown(
        "The ledger may or may not have carried this out: repeat it with the same Idempotency-Key."
    )


def judged(reply: LedgerReply, is_write: bool) -> LedgerReply:
    """The reply, if it is a success or a refusal for the caller; else raises what it stands for."""
    if reply.status == 200 or (is_write and reply.status in (201, 204)):
        return reply
    if reply.status in REFUSALS:
        return reply
    if is_write and (200 <= reply.status < 300 or 500 <= reply.status < 600):
        raise outcome_unknown()
    if reply.status in (502, 504) and reply.retry_after is None:
        raise LedgerFailing("The ledger says that something behind it fails.")
    if reply.status < 500:
        raise UnexpectedAnswer("The ledger gave an answer that is not for the caller.")
    raise LedgerBroken("The ledger gave an answer that is not for the caller.")


def retry_after(value: str, now: float) -> int | None:
    """The seconds that a `Retry-After` asks for (RFC 9110 section 10.2.3), capped; None for junk.

    `now` is in seconds since the epoch.
    """
    if value.isascii() and value.isdigit():
        return int(min(float(value), MAX_RETRY_AFTER_S))
    try:
        date = parsedate_to_datetime(value)
        # All dates of HTTP are in UTC (RFC 9110 section 5.6.7); the oldest form does not say so.
        seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return int(min(max(seconds, 0.0), MAX_RETRY_AFTER_S))


def next_link(header: str) -> str | None:
    """Where a `Link` header (RFC 8288) says that the next page is, as it is written there."""
    for target, parameters in _link.findall(header):
        named = _parameter.findall(parameters)
        # Of several only the first counts (section 3.3).
        types = next((value for name, value in named if name.lower() == "rel"), "")
        if "next" in types.strip("\"'").lower().split():
            return str(target)
    return None
