"""When a read may be asked a second time. Pure: the clock and the chance are passed in."""

from collections import deque
from dataclasses import dataclass

# Between nothing and this, in seconds: callers that failed together do not come back together.
MAX_PAUSE_S = 0.1
_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class RetryRules:
    """Of the last minute's requests so many may be retries: a `ratio`, and at least `floor`."""

    ratio: float
    floor: int


class RetryBudget:
    """How many retries are left, so that they never add much load to a ledger in trouble."""

    def __init__(self, rules: RetryRules) -> None:
        self._rules = rules
        self._requests: deque[float] = deque()
        self._retries: deque[float] = deque()

    def requested(self, now: float) -> None:
        """A first try is made; `now` is monotonic, in seconds."""
        self._requests.append(now)
        _forget(self._requests, now)

    def spend(self, now: float) -> bool:
        """Whether a retry may be made; it then counts."""
        if self.left(now) <= 0:
            return False
        self._retries.append(now)
        return True

    def left(self, now: float) -> int:
        """How many more retries there could be at this moment."""
        _forget(self._requests, now)
        _forget(self._retries, now)
        allowed = max(self._rules.floor, int(self._rules.ratio * len(self._requests)))
        return allowed - len(self._retries)


def pause(chance: float) -> float:
    """Seconds to wait before the retry, for a chance between 0 and 1 (full jitter)."""
    return MAX_PAUSE_S * chance


def _forget(times: deque[float], now: float) -> None:
    while times and times[0] <= now - _WINDOW_S:
        times.popleft()
