"""The values that cross the edge: what is asked, what is answered, and what is noted on the way.

Frozen values that every request makes anew are structs of msgspec's: as frozen as a frozen
dataclass, and made in a tenth of the time.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from multidict import CIMultiDictProxy

from gateway.authz import Principal
from gateway.kept import Found, worst
from gateway.representations import Representation


@dataclass(slots=True)
class Trace:
    """What is known of one request; logged and counted once, when it is answered.

    Times are in seconds, `started` on the monotonic clock; sizes in bytes. `headers` go on the
    answer, whatever it is. `edition` is that of the keys which the token was verified with. `found`
    and `sent` are there until the head of the answer is ready.
    """

    request_id: str
    started: float
    route: str = "unmatched"
    principal: Principal | None = None
    edition: object = None
    ledger_time: float = 0.0
    cache: str = "none"
    found: Found[Any] | None = None
    sent: Representation | None = None
    released: bool = False
    rows_dropped: int = 0
    bytes_sent: int = 0
    code: str | None = None
    aborted: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    def heed(self, found: Found[Any]) -> None:
        """Notes a reading that the answer is made of, as long as that can be told."""
        if not self.released:
            self.found = worst(self.found, found)
            self.cache = str(self.found.outcome)

    def release(self) -> None:
        """Lets go of what the ledger replied: a connection that is idle holds its last request."""
        self.released = True
        self.found = self.sent = None


class Ask(msgspec.Struct, frozen=True):
    """One request. `raw_path` and `raw_query` are still percent-encoded; `read_body` reads once;
    `gone` says whether the caller has left.
    """

    raw_path: str
    raw_query: str
    headers: CIMultiDictProxy[str]
    read_body: Callable[[], Awaitable[bytes]]
    gone: Callable[[], bool]
    trace: Trace


class Answer(msgspec.Struct, frozen=True):
    """One answer: what was written, what is there to read, or that in chunks.

    Chunks may fail on the way; the answer must then not look complete.
    """

    status: int
    body: bytes | Representation | AsyncIterator[bytes]
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
