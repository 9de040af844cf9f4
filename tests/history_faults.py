"""A proxy that loses, cuts and delays what goes through it, as chance says."""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from tests import listeners

_RESET = struct.pack("ii", 1, 0)
_PIECE = 1 << 16


class Fault(Enum):
    """What becomes of a piece of what is sent."""

    LOST = "the connection ends before any of it is passed on"
    CUT = "the connection ends when some of it was passed on"
    LAST = "the connection ends when it was passed on"
    SLOW = "it is passed on a little later"
    LATE = "it is passed on when nobody waits for it any more"


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely each fault is for a piece; `late_s` is longer than a caller's patience."""

    cut: float = 0.015
    slow: float = 0.2
    late: float = 0.005
    slow_s: float = 0.03
    late_s: float = 0.7

    def draw(self, chance: random.Random) -> Fault | None:
        """The fault of one piece, if it has one."""
        weights = {
            Fault.LOST: self.cut,
            Fault.CUT: self.cut,
            Fault.LAST: self.cut,
            Fault.SLOW: self.slow,
            Fault.LATE: self.late,
            None: 1.0 - 3 * self.cut - self.slow - self.late,
        }
        (fault,) = chance.choices(list(weights), list(weights.values()))
        return fault


class FaultyProxy:
    """Passes connections on to a port of this machine; `url` is where it listens when it does.

    `made` counts the faults that there were.
    """

    def __init__(self, target: int, chance: random.Random, odds: Odds) -> None:
        self._target, self._chance, self._odds = target, chance, odds
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.made: Counter[Fault] = Counter()
        # Bound and never listening: the port stays ours while nobody listens on it.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def run(self) -> AsyncIterator["FaultyProxy"]:
        """Listens; on leaving, all that was delayed has been passed on."""
        try:
            await self.up()
            yield self
        finally:
            await self.down(cut=False)
            self._place.close()

    async def up(self) -> None:
        """Listens."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, reuse_port=True
        )

    async def down(self, *, cut: bool = True) -> None:
        """Refuses connections from here on, and cuts those that there are, or waits for them."""
        assert self._server is not None
        await listeners.close(self._server)
        if cut:
            for writer in self._writers:
                writer.transport.abort()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(far_writer)
        try:
            await asyncio.gather(
                self._pump(reader, far_writer, writer), self._pump(far_reader, writer, writer)
            )
        finally:
            self._writers -= {writer, far_writer}
            writer.close()
            far_writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, near: asyncio.StreamWriter
    ) -> None:
        """Passes on what comes, until it ends or is ended."""
        with suppress(ConnectionError):
            while piece := await source.read(_PIECE):
                fault = self._odds.draw(self._chance)
                self.made.update([fault] if fault else [])
                if not await self._pass(piece, sink, fault):
                    self._end(near)
                    break
        # The other side ends when it has read what it was sent.
        with suppress(ConnectionError, RuntimeError, OSError):
            sink.write_eof()

    async def _pass(self, piece: bytes, sink: asyncio.StreamWriter, fault: Fault | None) -> bool:
        """Passes on a piece or what a fault leaves of it; false where the connection ends then."""
        if fault is Fault.LOST:
            return False
        if fault is Fault.CUT:
            piece = piece[: self._chance.randrange(len(piece))]
        if fault is Fault.SLOW:
            await asyncio.sleep(self._chance.uniform(0.0, self._odds.slow_s))
        if fault is Fault.LATE:
            await asyncio.sleep(self._odds.late_s)
        sink.write(piece)
        await sink.drain()
        return fault in (None, Fault.SLOW, Fault.LATE)

    def _end(self, near: asyncio.StreamWriter) -> None:
        """Ends the gateway's connection: with a reset, or in good order."""
        if self._chance.random() < 0.5:
            near.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.transport.abort()
        else:
            near.close()
