"""Prometheus metrics, labelled by route template: never by a path that a caller chose."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence

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
# How long an answer that is made in microseconds may wait to be counted.
_SETTLE_S = 0.1
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
        # What answers took that are not counted yet, in seconds, by route and what the cache knew.
        self._pending: dict[tuple[str, str], list[float]] = {}
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
        self._requests.labels(known, trace.route, str(status)).inc()
        self._duration.labels(trace.route).observe(time.monotonic() - trace.started)
        if trace.ledger_time:
            self._ledger.labels(trace.route).observe(trace.ledger_time)
        if trace.cache != "none":
            self._cache.labels(trace.cache).inc()
        if trace.rows_dropped:
            self._dropped.inc(trace.rows_dropped)

    def repeated(self, trace: Trace) -> Callable[[float], None]:
        """Counts one more answer like this one, given how many seconds it took."""
        durations = self._pending.setdefault((trace.route, trace.cache), [])
        drop, dropped = self._dropped.inc, trace.rows_dropped

        def finished(seconds: float) -> None:
            durations.append(seconds)
            if dropped:
                drop(dropped)
            if len(durations) == 1:
                asyncio.get_running_loop().call_later(_SETTLE_S, self.settle)

        return finished

    def settle(self) -> None:
        """Counts the repeated answers that were only noted."""
        for (route, cache), durations in self._pending.items():
            if durations:
                self._requests.labels("GET", route, "200").inc(len(durations))
                self._cache.labels(cache).inc(len(durations))
                _observe(self._duration.labels(route), durations)
                durations.clear()

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


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    """What `observe` does with one value, with all of these."""
    histogram._sum.inc(sum(values))
    for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True):
        more = [value for value in values if value > bound]
        bucket.inc(len(values) - len(more))
        if not more:
            break
        values = more


def forget(process: int) -> None:
    """Takes what a dead worker left in flight out of the sum over all workers."""
    multiprocess.mark_process_dead(process)  # type: ignore[no-untyped-call]
