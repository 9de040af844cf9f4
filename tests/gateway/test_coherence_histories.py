"""Random histories of writes, reads and bad lines, against what the README promises of them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.cache import CachedLedger
from gateway.calls import LedgerCall, LedgerReply
from gateway.coherence import Coherence
from gateway.config import Cache
from gateway.freshness import Lifetime
from gateway.generations import Generations
from gateway.kept import Outcome
from tests.gateway.no_time import Hub, Link, Lost, in_no_time, now

TAG = "ledger"
READ = LedgerCall("GET", "/ledger", (), "alice", "r-1")
WRITE = LedgerCall("POST", "/ledger", (), "root", "r-2", b"{}", "key-1")
# Nothing becomes old by itself.
LONG = Lifetime(1e6)
LONG_S = 120.0
SLOW_S, DELAY_S, TRUST_S = 0.2, 0.02, 1.0
# Redis announces a write, and the ledger answers a read in two halves.
HEARD_S = DELAY_S + 0.001
NOTICED_S = 1.5
UNHEARD_S = max(NOTICED_S, TRUST_S) + 2 * SLOW_S + 0.001


@dataclass
class Line:
    """One gateway's way to the hub."""

    hub: Hub
    sound: asyncio.Event = field(default_factory=asyncio.Event)
    down: bool = False
    link: Link | None = None

    @asynccontextmanager
    async def connect(self, *channels: str) -> AsyncIterator[Any]:
        if self.down:
            raise OSError
        async with asyncio.timeout(1.0):
            await self.sound.wait()
        async with self.hub.connect(*channels) as self.link:
            yield self

    async def publish(self, channel: str, text: str) -> None:
        assert self.link is not None
        await self.sound.wait()
        await self.link.publish(channel, text)

    async def receive(self) -> tuple[str, str]:
        assert self.link is not None
        message = await self.link.receive()
        await self.sound.wait()
        return message

    def cut(self) -> None:
        """What is under way is lost."""
        if self.link is not None:
            while not self.link.queue.empty():
                self.link.queue.get_nowait()
            self.link.queue.put_nowait(Lost())


@dataclass
class History:
    """A ledger, a gateway that writes to it and some that read, until it is over."""

    seed: int
    bad_lines: bool
    version: int = 0
    acknowledged: list[tuple[float, int]] = field(default_factory=list)
    reads: list[tuple[float, int, Outcome]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.hub = Hub(delay_s=DELAY_S)

    async def happen(self) -> None:
        """All of it."""
        lines = [Line(self.hub) for _ in range(4)]
        for line in lines:
            line.sound.set()
        writer, *readers = [self._gateway(line) for line in lines]
        tasks = [asyncio.create_task(part.run()) for _, part in (writer, *readers)]
        await asyncio.sleep(1)
        tasks.append(asyncio.create_task(self._write(writer[0])))
        tasks += [asyncio.create_task(self._read(cached)) for cached, _ in readers * 2]
        if self.bad_lines:
            tasks += [asyncio.create_task(self._spoil(line)) for line in lines[1:]]
        await asyncio.sleep(LONG_S)
        for task in tasks:
            task.cancel()
        over = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in over), over

    def _gateway(self, line: Line) -> tuple[CachedLedger, Coherence]:
        generations, ledger = Generations(), self
        part = Coherence(generations, line.connect, TRUST_S, now)
        settings = Cache(True, 1 << 20, 1e6, 1e6, 0.0)
        return CachedLedger(ledger, settings, generations, now, part), part  # type: ignore[arg-type]

    async def send(self, call: LedgerCall) -> LedgerReply:
        """What the ledger does with a call, some time after it was sent."""
        await asyncio.sleep(self.random.uniform(0, SLOW_S))
        self.version += call.is_write
        body = str(self.version).encode()
        await asyncio.sleep(self.random.uniform(0, SLOW_S))
        return LedgerReply(200, body)

    async def _write(self, cached: CachedLedger) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(0, 3))
            reply = await cached.write(WRITE, TAG)
            self.acknowledged.append((now(), int(reply.body)))

    async def _read(self, cached: CachedLedger) -> None:
        async def parse(body: bytes) -> int:
            return int(body)

        while True:
            await asyncio.sleep(self.random.uniform(0, 0.2))
            began = now()
            found = await cached.read(READ, parse, TAG, LONG)
            assert found.reading.value is not None
            self.reads.append((began, found.reading.value, found.outcome))

    async def _spoil(self, line: Line) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(0, 6))
            fault = self.random.choice(["cut", "down", "stall", "stall and cut"])
            self.faults[fault] += 1
            line.down = fault == "down"
            if "stall" in fault:
                line.sound.clear()
                await asyncio.sleep(self.random.uniform(0, 3))
            if fault != "stall":
                line.cut()
                await asyncio.sleep(self.random.uniform(0, 3))
            line.down = False
            line.sound.set()

    def lag(self) -> list[float]:
        """Of each read, for how long there had been a later acknowledged state when it began."""
        found = []
        for began, version, _ in self.reads:
            later = [at for at, known in self.acknowledged if known > version]
            found.append(max(0.0, began - later[0]) if later else 0.0)
        return found

    def hits(self) -> int:
        return sum(outcome is Outcome.HIT for _, _, outcome in self.reads)


@pytest.mark.parametrize("seed", range(2))
@in_no_time
async def test_where_all_are_heard_nobody_gets_what_was_before_a_write_they_heard_of(
    seed: int,
) -> None:
    history = History(seed, bad_lines=False)
    await history.happen()
    assert max(history.lag()) <= HEARD_S
    # Most was known, and some of it had just been written over.
    assert history.hits() > len(history.reads) / 2
    assert len(history.acknowledged) > LONG_S / 4


@pytest.mark.parametrize("seed", range(6))
@in_no_time
async def test_behind_a_bad_line_nobody_gets_what_is_older_than_promised(seed: int) -> None:
    history = History(seed, bad_lines=True)
    await history.happen()
    lag = history.lag()
    assert max(lag) <= UNHEARD_S
    # It was bad enough to matter, and not all the time.
    assert max(lag) > HEARD_S
    assert history.hits() > len(history.reads) / 4
    assert len(history.faults) == 4
