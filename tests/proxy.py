"""A proxy between a gateway and a ledger that spoils one exchange at one byte, and keeps a record.

It takes in each message whole before it passes any of it on: so what each side gets is exact to the
byte, and closing a connection is a plain end (FIN) unless a reset was asked for.
"""

import asyncio
import re
import socket
import struct
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

from tests import listeners

PATIENCE_S = 20
ON_ACCEPT = -1

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([^\r]*)\r\n", re.IGNORECASE)
_LINGER_NOT = struct.pack("ii", 1, 0)

End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Stream(StrEnum):
    """What the gateway sends, or what the ledger sends back."""

    REQUEST = "request"
    ANSWER = "answer"


class Kind(StrEnum):
    """Both connections end, are reset, say nothing more, or say the rest when it is released."""

    CUT = "cut"
    RESET = "reset"
    HANG = "hang"
    DELAY = "delay"


@dataclass(frozen=True)
class Fault:
    """What goes wrong once so many bytes of a stream have been passed on.

    At `ON_ACCEPT` of the request it goes wrong as soon as there is a connection. `reached` is set
    when it has come so far; a delay then waits for `release`.
    """

    stream: Stream
    offset: int
    kind: Kind
    reached: asyncio.Event = field(default_factory=asyncio.Event, compare=False, repr=False)
    release: asyncio.Event = field(default_factory=asyncio.Event, compare=False, repr=False)


@dataclass
class Exchange:
    """One request that the gateway began to send, and how far it and its answer came.

    `fresh`: it is the first on its connection. `heard` is how much of it the ledger got.
    """

    fresh: bool
    request: bytes = b""
    heard: int = 0
    answer: bytes = b""

    @property
    def heard_whole(self) -> bool:
        """Whether the ledger got all of the request."""
        return 0 < len(self.request) == self.heard

    @property
    def request_id(self) -> str:
        """By which the gateway named it."""
        found = _REQUEST_ID.search(self.request)
        return found[1].decode() if found else ""


class FaultProxy:
    """Passes exchanges on; `faults` are what happens to the next ones, one each, None for good."""

    def __init__(self, host: str, port: int) -> None:
        self._ledger = host, port
        self._port = 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], End] = {}
        self._waiting: set[End] = set()
        self._delays: list[Fault] = []
        self.faults: deque[Fault | None] = deque()
        self.exchanges: list[Exchange] = []
        self.url = ""

    @asynccontextmanager
    async def run(self) -> AsyncIterator["FaultProxy"]:
        """Listens on a free port; on leaving, no connection is left open."""
        await self.listen()
        try:
            yield self
        finally:
            await self.leave()

    async def listen(self) -> None:
        """Takes connections, again on the same port if it did before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def leave(self) -> None:
        """Takes no connections, and drops those there are."""
        assert self._server is not None
        await listeners.close(self._server)
        for _, writer in self._open.values():
            writer.transport.abort()
        for fault in self._delays:
            fault.release.set()
        await self._all_gone()
        await self._server.wait_closed()

    @property
    def kept(self) -> int:
        """How many connections wait for a request."""
        return len(self._waiting)

    def by_request(self) -> dict[str, list[Exchange]]:
        """The exchanges of each request id."""
        found = defaultdict(list)
        for exchange in self.exchanges:
            found[exchange.request_id].append(exchange)
        return found

    async def disconnect(self) -> None:
        """Ends the kept connections as a ledger does; returns when the gateway has let go, too."""
        for _, writer in self._open.values():
            writer.write_eof()
        await self._all_gone()

    async def _all_gone(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self._open:
                await asyncio.wait(list(self._open))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = gateway = reader, writer
        try:
            fault = self.faults[0] if self.faults else None
            if fault is not None and fault.offset == ON_ACCEPT:
                self.faults.popleft()
                await _break(fault, gateway, gateway)
                return
            ledger = await asyncio.open_connection(*self._ledger)
            try:
                fresh = True
                while await self._exchange(gateway, ledger, fresh=fresh):
                    fresh = False
            finally:
                await _close(ledger[1])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await _close(writer)
            del self._open[task]

    async def _exchange(self, gateway: End, ledger: End, *, fresh: bool) -> bool:
        """One request and its answer; whether another may follow."""
        self._waiting.add(gateway)
        try:
            first = await gateway[0].readexactly(1)
        finally:
            self._waiting.discard(gateway)
        exchange = Exchange(fresh)
        self.exchanges.append(exchange)
        exchange.request = await message(gateway[0], first)
        fault = self.faults.popleft() if self.faults else None
        spoils_answer = fault is not None and fault.stream is Stream.ANSWER
        struck = None if spoils_answer else fault
        exchange.heard = _share(exchange.request, struck)
        if not await self._passed_on(exchange.request, struck, ledger, gateway):
            return False
        exchange.heard = len(exchange.request)
        exchange.answer = await message(ledger[0])
        struck = fault if spoils_answer else None
        return await self._passed_on(exchange.answer, struck, gateway, ledger)

    async def _passed_on(self, message: bytes, fault: Fault | None, to: End, other: End) -> bool:
        """Sends a message as far as its fault lets it; whether the connection is still good."""
        share = _share(message, fault)
        to[1].write(message[:share])
        await to[1].drain()
        if fault is None:
            return True
        if fault.kind is not Kind.DELAY:
            await _break(fault, to, other)
            return False
        self._delays.append(fault)
        fault.reached.set()
        await fault.release.wait()
        to[1].write(message[share:])
        await to[1].drain()
        return True


def _share(message: bytes, fault: Fault | None) -> int:
    """How much of a message is passed on before anything goes wrong."""
    return len(message) if fault is None else min(fault.offset, len(message))


async def _break(fault: Fault, to: End, other: End) -> None:
    fault.reached.set()
    if fault.kind is Kind.HANG:
        gateway = to if fault.stream is Stream.ANSWER else other
        # Nothing more is said; the gateway is the one that leaves.
        await gateway[0].read()
        return
    for _, writer in (to, other):
        if fault.kind is Kind.RESET:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            writer.transport.abort()
        else:
            writer.close()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def message(reader: asyncio.StreamReader, start: bytes = b"") -> bytes:
    """One request or answer, head and body, of those that say how long they are."""
    head = start + await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head + await reader.readexactly(int(length[1]) if length else 0)
