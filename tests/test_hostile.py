"""Bad input is refused at once and briefly, in little memory, and keeps nobody else waiting.

What a request costs is processor time of the one thread that serves everybody: other programs on
the machine do not lengthen it. A request is sent up to five times and the cheapest counts, for the
least time that it takes is what it costs; in the others something else was done, too.
"""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from gateway.app import create_app, shared
from gateway.server import listening
from tests import hostile
from tests.conftest import config_for
from tests.fakes import FakeLedger
from tests.unwatched import unwatched

AT_ONCE_S = 0.05
BRIEF = 16 * 1024
PATIENCE_S = 20.0
TRIES = 5
# Of memory for each byte that a body may have. A number and its comma, two bytes, take 8 to 32.
MEMORY = 32 * hostile.MAX_BODY
KEPT = 64 * 1024

GROUPS = {
    "bodies": hostile.bodies,
    "framings": hostile.framings,
    "heads": hostile.heads,
    "targets": hostile.targets,
    "tokens": hostile.tokens,
}


@dataclass(frozen=True)
class Answered:
    """The first answer to some bytes, and what it cost."""

    answer: bytes
    cost_s: float

    @property
    def status(self) -> int:
        return int(self.answer.split(b" ", 2)[1])


async def ask(port: int, request: bytes) -> Answered:
    """Sends a request on a connection of its own; the answer is waited for to its last byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.thread_time()
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            answer = head + await reader.readexactly(int(length))
            return Answered(answer, time.thread_time() - started)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def gateway(ledger: FakeLedger) -> AsyncIterator[int]:
    """The port of a gateway that listens as `serve` lets it, with its defaults."""
    config = config_for(ledger.url)
    async with listening(create_app(config, shared(config)).api, "127.0.0.1", 0) as port:
        yield port


@pytest.fixture(autouse=True)
def nobody_watches() -> Iterator[None]:
    """What the measurer of coverage costs is not the gateway's."""
    with unwatched():
        yield


@pytest.fixture
async def port(ledger: FakeLedger) -> AsyncIterator[int]:
    async with gateway(ledger) as port:
        yield port


async def cheapest(port: int, request: bytes) -> Answered:
    """The cheapest of up to five tries; one that is cheap enough ends them."""
    best = await ask(port, request)
    for _ in range(TRIES - 1):
        if best.cost_s < AT_ONCE_S:
            break
        again = await ask(port, request)
        best = min(best, again, key=lambda answered: answered.cost_s)
    return best


def faults(answered: Answered) -> list[str]:
    """What is wrong with the answer to a bad request."""
    found = []
    if not 400 <= answered.status < 500:
        found.append(f"is answered {answered.status}")
    if len(answered.answer) > BRIEF:
        found.append(f"is answered with {len(answered.answer)} bytes")
    if answered.cost_s >= AT_ONCE_S:
        found.append(f"takes {answered.cost_s:.3f} s")
    if b"Traceback" in answered.answer or b"a" * 65 in answered.answer:
        found.append("is quoted")
    return found


@pytest.mark.parametrize("group", GROUPS)
async def test_bad_input_is_refused_at_once_and_the_next_request_served(
    port: int, ledger: FakeLedger, group: str
) -> None:
    wrong = {}
    for name, request in GROUPS[group]():
        answered = await cheapest(port, request)
        found = faults(answered)
        if ledger.calls:
            found.append("reached the ledger")
        good = await cheapest(port, hostile.good())
        if good.status != 200 or good.cost_s >= AT_ONCE_S:
            found.append(f"is followed by {good.status} in {good.cost_s:.3f} s")
        ledger.calls.clear()
        if found:
            wrong[name] = found
    assert wrong == {}


# The most that each way of taking apart can be made to do.
HEAVY = (
    "an array of arrays for an action",
    "an array of keys as metadata",
    "arrays among numbers for an action",
    "objects among texts for a change",
    "an array of zeros and a long number as metadata",
    "an array of objects for a change",
    "an array of floats as an amount",
    "nested arrays for an action",
    "escapes as metadata",
    "a long text of others as metadata",
    "metadata keys of a rate",
    "unknown fields with objects of an action",
    "one key over and over of a rate",
    "60 000 unknown fields of an action",
    "chunks of a byte",
    "a header of a megabyte",
    "the longest head",
    "parameters",
    "metadata in objects",
    "claims of many keys",
    "a token of a megabyte",
)


@pytest.fixture(scope="module")
def heavy() -> dict[str, bytes]:
    everything = {name: request for group in GROUPS.values() for name, request in group()}
    return {name: everything[name] for name in HEAVY}


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


async def test_bad_input_takes_memory_in_proportion_and_keeps_none(
    port: int, heavy: dict[str, bytes], traced: None
) -> None:
    peaks, left = {}, []
    for _ in range(2):
        for name, request in heavy.items():
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            await ask(port, request)
            peaks[name] = tracemalloc.get_traced_memory()[1] - before
        gc.collect()
        left.append(tracemalloc.get_traced_memory()[0])
    print(f"bytes at most: {peaks}; kept: {left[1] - left[0]}")
    assert {name: peak for name, peak in peaks.items() if peak >= MEMORY} == {}
    assert left[1] - left[0] < KEPT


# Others.


async def delay(port: int, request: bytes) -> float:
    """The longest that somebody else waits for an answer while a bad request is worked at.

    Counted in what it costs, too: the whole of it is spent by the thread that serves both.
    """
    working = asyncio.create_task(ask(port, request))
    longest, asked = 0.0, 0
    while not (working.done() and asked):
        answered = await ask(port, hostile.good())
        assert answered.status == 200
        longest, asked = max(longest, answered.cost_s), asked + 1
    await working
    return longest


async def test_others_are_served_while_bad_input_is_worked_at(
    ledger: FakeLedger, port: int, heavy: dict[str, bytes]
) -> None:
    delays = {}
    for name, request in heavy.items():
        delays[name] = await delay(port, request)
        for _ in range(TRIES - 1):
            if delays[name] < 2 * AT_ONCE_S:
                break
            delays[name] = min(delays[name], await delay(port, request))
    print(delays)
    assert {name: longest for name, longest in delays.items() if longest >= 2 * AT_ONCE_S} == {}
