"""What is measured. Each work takes a stage and notes what it finds in a result."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.figures import Result
from bench.stage import Stage
from bench.works import cached, large, latency, memory, missed, starting, workers


@dataclass(frozen=True)
class Work:
    """One thing that is measured, by itself and from scratch."""

    title: str
    method: str
    run: Callable[[Stage, Result], None]


WORKS = (
    Work(
        "Cached read, the same head again and again",
        "`wrk -t1 -c32`; the head of the request never changes.",
        cached.repeated,
    ),
    Work(
        "Cached read, traced",
        "`wrk -t1 -c32`; every request has another `traceparent`, and is otherwise the same.",
        cached.traced,
    ),
    Work(
        "Cached order of 50 users",
        "One order with two rows of each of 50 users. They ask for it, each with a token of their "
        "own, the n-th 1/n times as often as the first, and each is shown their two rows; against "
        "one of them asking alone.",
        cached.shared,
    ),
    Work(
        "Miss: forwarded and filtered",
        "The cache is off; the ledger's reply has 10 rows, all the caller's. No two requests under "
        "way are the same: of equal ones the gateway would forward one. Envoy passes the reply on "
        "unread, FastAPI decodes and filters it.",
        missed.forwarded,
    ),
    Work(
        "Filter 100 000 rows",
        "A ledger that sends a whole order of 100 000 rows at once, of which the caller may see "
        "1000; from the request to the last byte of the answer, the way from the ledger included. "
        "Against `json.loads`, a filter and `json.dumps` over the same bytes, already in memory. "
        "Meanwhile `GET /health/live` is asked for every 4 ms at fixed times on other connections.",
        large.filtering,
    ),
    Work(
        "Two workers on two cores",
        "One worker on one core against two on two, load and ledger on the same two cores each "
        "time. No third core bears the load: it takes from the two workers what it needs.",
        workers.doubled,
    ),
    Work(
        "Memory",
        "Resident memory of the one worker.",
        memory.resident,
    ),
    Work(
        "Start to ready",
        "From starting `python -m gateway serve` to the first 200 from `/health/ready`, asked for "
        "every 10 ms.",
        starting.until_ready,
    ),
    Work(
        "99th percentile at half of saturation",
        "An open loop sends at fixed times whatever the answers do, and measures from those times: "
        "half of what wrk got through just before, over 64 connections.",
        latency.at_half,
    ),
)
