"""The circuit breaker: whether the ledger may be called, decided from what calls came to.

Pure: the clock is passed in, nothing is awaited.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

import msgspec


class Circuit(StrEnum):
    """Closed: calls pass. Open: none do. Half open: one does, to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class Outcome(StrEnum):
    """What a call came to; abandoned: it ended before the ledger's state showed."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"


class Admission(msgspec.Struct, frozen=True):
    """Leave to make one call; a probe is the one that an open circuit lets through.

    `openings` is how often the circuit had opened by then: what a call from before the last time
    came to says nothing about the ledger of today.
    """

    probe: bool
    openings: int


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When to open, and for how long. Times in seconds."""

    window_s: float
    min_calls: int
    failure_ratio: float
    open_s: float
    max_open_s: float


class Breaker:
    """The state of one ledger's circuit. `now` is on one monotonic clock, in seconds."""

    def __init__(self, rules: BreakerRules) -> None:
        self._rules = rules
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._failures = 0
        self._open_until: float | None = None
        self._open_s = rules.open_s
        self._probing = False
        self._hastened = False
        self._openings = 0

    def state(self, now: float) -> Circuit:
        """What the circuit is."""
        if self._open_until is None:
            return Circuit.CLOSED
        return Circuit.OPEN if now < self._open_until else Circuit.HALF_OPEN

    def admit(self, now: float) -> Admission | None:
        """Leave to make one call, to be followed by one `report`; None if there is none."""
        match self.state(now):
            case Circuit.CLOSED:
                return Admission(probe=False, openings=self._openings)
            case Circuit.HALF_OPEN if not self._probing:
                self._probing = True
                return Admission(probe=True, openings=self._openings)
            case _:
                return None

    def wait(self, now: float) -> float:
        """Seconds until it makes sense to ask again."""
        return max((self._open_until or now) - now, 1.0)

    def hasten(self, now: float) -> None:
        """Lets the probe of an open circuit through at once: the ledger says that it is well.

        It is believed once: if the probe fails, it is not before the circuit has closed again.
        """
        if self._open_until is not None and not self._hastened:
            self._hastened = True
            self._open_until = min(self._open_until, now)

    def report(self, admission: Admission, outcome: Outcome, now: float) -> None:
        """What an admitted call came to."""
        if admission.probe:
            self._probed(outcome, now)
        elif outcome is not Outcome.ABANDONED and admission.openings == self._openings:
            self._note(now, failed=outcome is Outcome.FAILED)
            if self._fails_too_often():
                self._open(now)

    def _probed(self, outcome: Outcome, now: float) -> None:
        self._probing = False
        if outcome is Outcome.SUCCEEDED:
            self._open_until = None
            self._open_s = self._rules.open_s
            self._hastened = False
        elif outcome is Outcome.FAILED:
            self._open_s = min(self._open_s * 2, self._rules.max_open_s)
            self._open(now)

    def _fails_too_often(self) -> bool:
        calls = len(self._outcomes)
        enough = calls >= self._rules.min_calls
        return enough and self._failures >= self._rules.failure_ratio * calls

    def _note(self, now: float, *, failed: bool) -> None:
        self._outcomes.append((now, failed))
        self._failures += failed
        while self._outcomes[0][0] <= now - self._rules.window_s:
            self._failures -= self._outcomes.popleft()[1]

    def _open(self, now: float) -> None:
        self._open_until = now + self._open_s
        self._openings += 1
        self._outcomes.clear()
        self._failures = 0
