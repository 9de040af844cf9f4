"""A listener may be closed in the very turn of the loop in which it accepts somebody."""

import asyncio
import socket

import pytest

from tests import listeners


@pytest.mark.parametrize("turns", range(4))
async def test_whoever_was_accepted_is_served(turns: int) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    with socket.create_connection(listener.sockets[0].getsockname()) as caller:
        caller.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)
        await listeners.close(listener)
        try:
            async with asyncio.timeout(5):
                heard = await asyncio.get_running_loop().sock_recv(caller, 5)
        except ConnectionResetError:
            heard = b"never accepted"
    assert heard in (b"hello", b"never accepted")
