"""Prometheus metrics, labelled by route template: never by a path that a caller chose."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from gateway.exchange import Trace

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# How long an answer may wait to be counted.
_SETTLE_S = 0.1
# What a worker's counts of a kind have room in, in bytes: for every route with every status.
_ROOM = 1 << 19
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """What is counted. With several workers the counts of all of them are added up."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "gateway_requests", "Answers.", ["method", "route", "status"], registry=registry
        )
        self._duration = Histogram(
            "gateway_request_duration_seconds",
            "From the head of a request to its answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._ledger = Histogram(
            "gateway_ledger_duration_seconds",
            "Time that a request spent at the ledger.",
            ["route"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._dropped = Counter(
            "gateway_rows_dropped", "Rows that were not the caller's.", registry=registry
        )
        self._cache = Counter(
            "gateway_cache", "Reads by what the cache knew.", ["outcome"], registry=registry
        )
        # By labels, each of which has few values.
        self._pending: dict[tuple[str, ...], _Answers] = {}
        self._settling = False
        self._in_flight = Gauge(
            "gateway_requests_in_flight",
            "Requests not yet answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def started(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def finished(self, trace: Trace, method: str, status: int) -> None:
        """A request has been answered."""
        self._in_flight.dec()
        known = method if method in _METHODS else "other"
        answers = self._answers(known, trace.route, str(status), trace.cache)
        answers.dropped += trace.rows_dropped
        if trace.ledger_time:
            answers.at_ledger.append(trace.ledger_time)
        self._note(answers, time.monotonic() - trace.started)

    def repeated(self, trace: Trace) -> Callable[[float], None]:
        """Counts one more answer like this one, given how many seconds it took."""
        answers, dropped = self._answers("GET", trace.route, "200", trace.cache), trace.rows_dropped

        def finished(seconds: float) -> None:
            answers.dropped += dropped
            self._note(answers, seconds)

        return finished

    def settle(self) -> None:
        """Counts the answers that were only noted."""
        self._settling = False
        for answers in self._pending.values():
            answers.settle()

    def _note(self, answers: "_Answers", seconds: float) -> None:
        answers.durations.append(seconds)
        if not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_later(_SETTLE_S, self.settle)

    def _answers(self, method: str, route: str, status: str, cache: str) -> "_Answers":
        labels = method, route, status, cache
        found = self._pending.get(labels)
        if found is None:
            found = self._pending[labels] = _Answers(
                self._requests.labels(method, route, status),
                self._duration.labels(route),
                partial(self._ledger.labels, route),
                self._dropped,
                self._cache.labels(cache) if cache != "none" else None,
            )
        return found

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._collected())

    def totals(self) -> dict[str, dict[str, float]]:
        """Answers so far: route template to status to count."""
        found: dict[str, dict[str, float]] = {}
        for family in self._collected().collect():
            for sample in family.samples:
                if sample.name == "gateway_requests_total":
                    route = found.setdefault(sample.labels["route"], {})
                    status = sample.labels["status"]
                    route[status] = route.get(status, 0.0) + sample.value
        return found

    def _collected(self) -> CollectorRegistry:
        self.settle()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self._registry
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry


@dataclass(slots=True)
class _Answers:
    """Answers of one kind that are noted and not counted yet, and what counts them.

    Times in seconds: `durations` of the answers, `at_ledger` of those that took some there.
    """

    requests: Counter
    duration: Histogram
    # Made only where there is something to tell.
    ledger: Callable[[], Histogram]
    rows: Counter
    cache: Counter | None
    durations: list[float] = field(default_factory=list)
    at_ledger: list[float] = field(default_factory=list)
    dropped: int = 0

    def settle(self) -> None:
        """Counts them."""
        if not self.durations:
            return
        self.requests.inc(len(self.durations))
        if self.cache is not None:
            self.cache.inc(len(self.durations))
        if self.dropped:
            self.rows.inc(self.dropped)
        _observe(self.duration, self.durations)
        if self.at_ledger:
            _observe(self.ledger(), self.at_ledger)
        self.durations.clear()
        self.at_ledger.clear()
        self.dropped = 0


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    """What `observe` does with one value, with all of these."""
    histogram._sum.inc(sum(values))
    for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True):
        more = [value for value in values if value > bound]
        bucket.inc(len(values) - len(more))
        if not more:
            break
        values = more


def reserve(process: int) -> None:
    """Takes the room on the disk that a worker counts in. Raises `OSError` if there is not enough.

    The counts are in files that are mapped into memory: without room behind it, a write to one
    kills the process (SIGBUS) when the disk is full.
    """
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    for kind in ("counter", "histogram", "gauge_livesum"):
        with open(os.path.join(folder, f"{kind}_{process}.db"), "ab") as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, _ROOM)


def forget(process: int) -> None:
    """Takes what a dead worker left in flight out of the sum over all workers."""
    multiprocess.mark_process_dead(process)  # type: ignore[no-untyped-call]
