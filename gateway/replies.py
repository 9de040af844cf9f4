"""A connection to the ledger: what is asked over it, how the answer comes in, and in what time."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from gateway.errors import LedgerBroken, UnexpectedAnswer

# More answers than this before the answer (RFC 9110 section 15.2) are nonsense.
_MAX_INTERIM = 10
# How much of a compressed answer is unpacked at a time, in bytes.
_INFLATE = 1 << 16
# So many bytes that are still to come of a body are received where they are to stay. That costs the
# connection, so it has to be worth more than making another.
_LARGE = 1 << 20


class LedgerConnection(ResponseHandler):
    """A connection: takes one request after the other, and waits so long for what follows.

    Waiting ends with an answer or an exception of aiohttp's. `asked` says whether there was a
    request.
    """

    asked = False
    _heard = _deadline = _read_s = 0.0
    _watch: asyncio.TimerHandle | None = None
    _awaited: "StreamReader | _LargeBody | None" = None

    def ask(self, request: bytes, read_s: float, deadline: float) -> None:
        """Sends a request. Its answer has to be whole by the deadline, in the loop's time, and may
        not pause for so many seconds.
        """
        self.asked = True
        self._read_s, self._deadline = read_s, deadline
        self.set_response_params(read_until_eof=True, auto_decompress=False)
        cast(asyncio.Transport, self.transport).write(request)
        self.hear()
        if self._watch is None or self._watch.when() > min(deadline, self._heard + read_s):
            self._look()

    async def answer(self) -> tuple[RawResponseMessage, StreamReader]:
        """The head of the answer and its body to come, after a few that only announce it."""
        for _ in range(_MAX_INTERIM):
            message, payload = await self.read()
            if message.code == 101:
                # What follows is no HTTP.
                raise UnexpectedAnswer("The ledger speaks something else.")
            if not 100 <= message.code <= 199:
                return message, payload
        raise LedgerBroken("The ledger announces an answer and does not give it.")

    async def whole(self, payload: StreamReader, length: int) -> bytes:
        """A body of so many bytes, of which the payload has the first.

        What the server says behind it stays unread: the connection cannot be used again.
        """
        begun = b"".join(iter(payload.read_nowait, b""))
        if payload.is_eof():
            return begun
        if self.transport is None:
            raise aiohttp.ServerDisconnectedError
        self._awaited = rest = _LargeBody(self, self.transport, begun, length)
        self.transport.set_protocol(rest)
        return await rest.body()

    def hear(self) -> None:
        """Takes note of a sign of life."""
        self._heard = self._loop.time()

    def leave(self) -> None:
        """Waits no longer: what comes from here on was not asked for."""
        if self._parser is not None and self._has_more():
            self.force_close()
        # Without a parser whatever comes is kept, and the connection is not used again.
        self._parser = self._awaited = None

    def _has_more(self) -> bool:
        """Whether the parser is in the middle of something."""
        try:
            return cast(Any, self._parser).feed_eof() is not None
        except Exception:  # whatever it makes of that, it is no end
            return True

    def _look(self) -> None:
        """Ends a wait that is too long; else comes back when it would be.

        One that is still to come is not called off by the answer: it serves the next request.
        """
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._parser is None:
            return
        now = self._loop.time()
        # Who has not taken the request yet has nothing to say.
        silent_since = now if self.writing_paused else self._heard
        end = min(self._deadline, silent_since + self._read_s)
        if now < end:
            self._watch = self._loop.call_at(end, self._look)
        else:
            self.set_exception(aiohttp.SocketTimeoutError())

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._look()

    def data_received(self, data: bytes) -> None:
        if data:
            self.hear()
        super().data_received(data)

    def resume_writing(self) -> None:
        self.hear()
        super().resume_writing()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # A payload asks for it with every piece that is taken out of it.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        self._awaited = data[1]
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        # Who has the head waits for the body.
        if self._awaited is not None and not self._awaited.is_eof():
            self._awaited.set_exception(exc)


class _LargeBody(asyncio.BufferedProtocol):
    """What is still to come of a body, received where it is to stay."""

    def __init__(
        self, line: LedgerConnection, transport: asyncio.Transport, begun: bytes, length: int
    ) -> None:
        self._line = line
        self._transport = transport
        self._all: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Memory that nobody has written to is not there: a ledger has to send what it announces.
        self._block = BytesIO(bytes(length))
        self._room = self._block.getbuffer()
        self._room[: len(begun)] = begun
        self._at = len(begun)

    async def body(self) -> bytes:
        """The whole body, when all of it has come."""
        try:
            await self._all
            # The block itself, and not a copy, if nobody has a view of it any more.
            self._room.release()
            return self._block.getvalue()
        finally:
            # An error's traceback holds this object for a while.
            self._room, self._block = memoryview(b""), BytesIO()

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._room[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._line.hear()
        self._at += nbytes
        if self._at == len(self._room) and not self._all.done():
            self._transport.pause_reading()
            self._all.set_result(None)

    def pause_writing(self) -> None:
        self._line.pause_writing()

    def resume_writing(self) -> None:
        self._line.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._line.connection_lost(exc)

    def set_exception(self, exc: BaseException) -> None:
        """The connection ended, or there was nothing to hear for too long."""
        if not self._all.done():
            self._all.set_exception(exc)

    def is_eof(self) -> bool:
        """Whether the end was read, as of a payload."""
        return False


async def read_body(
    line: LedgerConnection, headers: CIMultiDictProxy[str], payload: StreamReader, limit: int
) -> bytes:
    """The whole decoded body. Raises `UnexpectedAnswer` if it is larger than `limit` bytes, and
    `ValueError` or `zlib.error` if its coding is not known or not kept to.
    """
    coding = headers.get("Content-Encoding", "identity").lower()
    if coding != "identity":
        return await _collected(_inflated(payload.iter_any(), coding), limit)
    length = payload.total_bytes if payload.is_eof() else int(headers.get("Content-Length", 0))
    if length > limit:
        raise _too_large()
    if length - payload.total_bytes >= _LARGE:
        return await line.whole(payload, length)
    if payload.is_eof():
        return payload.read_nowait()
    return await _collected(payload.iter_any(), limit)


async def _collected(pieces: AsyncIterator[bytes], limit: int) -> bytes:
    found, size = [], 0
    try:
        async for piece in pieces:
            found.append(piece)
            size += len(piece)
            if size > limit:
                raise _too_large()
        return b"".join(found)
    finally:
        found.clear()  # an error's traceback holds it for a while


async def _inflated(chunks: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """The chunks with gzip or deflate undone, a bounded piece at a time."""
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError("unknown content coding")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    async for chunk in chunks:
        piece = b""
        while not inflate.eof and (chunk or len(piece) == _INFLATE):
            yield (piece := inflate.decompress(chunk, _INFLATE))
            chunk = inflate.unconsumed_tail
        if chunk or inflate.unused_data:
            raise ValueError("something follows the compressed body")
    if not inflate.eof:
        raise ValueError("the compressed body breaks off")


def _too_large() -> UnexpectedAnswer:
    return UnexpectedAnswer("The ledger's answer is too large.")
