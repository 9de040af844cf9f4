"""The values that cross the edge: what is asked, what is answered, and what is noted on the way."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from multidict import CIMultiDictProxy

from gateway.authz import Principal
from gateway.kept import Found
from gateway.representations import Representation


@dataclass(slots=True)
class Trace:
    """What is known of one request; logged and counted once, when it is answered.

    Times are in seconds, `started` on the monotonic clock; sizes in bytes. `headers` go on the
    answer, whatever it is. `found` and `sent` are there until the head of the answer is.
    """

    request_id: str
    started: float
    route: str = "unmatched"
    principal: Principal | None = None
    ledger_time: float = 0.0
    cache: str = "none"
    found: Found[Any] | None = None
    sent: Representation | None = None
    rows_dropped: int = 0
    bytes_sent: int = 0
    code: str | None = None
    aborted: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    def release(self) -> None:
        """Lets go of what the ledger replied: a connection that is idle holds its last request."""
        self.found = self.sent = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `raw_path` and `raw_query` are still percent-encoded; `read_body` reads once."""

    raw_path: str
    raw_query: str
    headers: CIMultiDictProxy[str]
    read_body: Callable[[], Awaitable[bytes]]
    trace: Trace


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: what was written, what is there to read, or that in chunks.

    Chunks may fail on the way; the answer must then not look complete.
    """

    status: int
    body: bytes | Representation | AsyncIterator[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
