"""A ledger that misbehaves on the wire: a raw TCP server that plays a script, one act a request."""

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests import listeners

GOOD = b'{"api_message":"OK","api_data":[]}'
_PACE_S = 0.02

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes = GOOD, status: str = "200 OK", headers: bytes = b"") -> bytes:
    """A well-formed answer; `headers` are whole lines. Give it a length of your own or none."""
    framing = b"" if _is_framed(headers) else b"Content-Length: %d\r\n" % len(body)
    kind = b"Content-Type: application/json\r\n"
    return b"HTTP/1.1 %b\r\n%b%b%b\r\n%b" % (status.encode(), kind, framing, headers, body)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """An answer in chunks, each given as it goes over the wire."""
    return reply(b"".join(chunks) + end, headers=b"Transfer-Encoding: chunked\r\n")


def chunk(data: bytes) -> bytes:
    """One well-formed chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sends(data: bytes) -> Act:
    """Sends the bytes and goes on with the next request."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return act


def sends_apart(*pieces: bytes) -> Act:
    """Sends the pieces so that a caller on the same loop gets them one by one."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            for _ in range(5):
                await asyncio.sleep(0)

    return act


def closes(data: bytes = b"") -> Act:
    """Sends the bytes and closes the connection."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return act


def resets(data: bytes = b"") -> Act:
    """Sends the bytes and resets the connection."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return act


def hangs(data: bytes = b"") -> Act:
    """Sends the bytes and then nothing, until the caller leaves."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await reader.read()

    return act


def drips(data: bytes, drop: bytes) -> Act:
    """Sends the bytes, and then a drop again and again, until the caller leaves."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        leaving = asyncio.ensure_future(reader.read())
        while not leaving.done():
            writer.write(drop)
            await asyncio.wait((leaving,), timeout=_PACE_S)
        await leaving

    return act


def floods(data: bytes, more: bytes) -> Act:
    """Sends the bytes, and then more as fast as they are taken, until the caller leaves."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        while True:
            writer.write(more)
            await writer.drain()

    return act


class FaultyLedger:
    """Plays `acts` in turn, one for each request, and a good answer when there are none left.

    `hits` are the requests as they came, head and body; `connections` counts those ever accepted.
    """

    def __init__(self) -> None:
        self.acts: deque[Act] = deque()
        self.hits: list[bytes] = []
        self.connections = 0
        self.url = ""
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def plays(self, *acts: Act) -> None:
        """Adds to the script."""
        self.acts.extend(acts)

    @asynccontextmanager
    async def run(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["FaultyLedger"]:
        """Listens on a free port; on leaving, no connection is left open."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        try:
            yield self
        finally:
            await listeners.close(server)
            for writer in self._open.values():
                writer.transport.abort()
            await self.down_to(0)
            await server.wait_closed()

    async def down_to(self, count: int) -> None:
        """Returns when at most so many connections are open; fails if that does not happen."""
        async with asyncio.timeout(5):
            while len(self._open) > count:
                await asyncio.wait(list(self._open), return_when=asyncio.FIRST_COMPLETED)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            while True:
                request = await _request(reader)
                self.hits.append(request)
                await (self.acts.popleft() if self.acts else sends(reply()))(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            del self._open[task]


def _is_framed(headers: bytes) -> bool:
    return b"Content-Length" in headers or b"Transfer-Encoding" in headers


async def _request(reader: asyncio.StreamReader) -> bytes:
    """One request, head and body. `IncompleteReadError` when the caller has left."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = dict(line.lower().partition(b": ")[::2] for line in head.split(b"\r\n")[1:-2])
    return head + await reader.readexactly(int(lines.get(b"content-length", b"0")))
