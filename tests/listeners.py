"""Closes listeners of tests without losing whom they have just accepted."""

import asyncio

# Of the loop, until a caller's task has begun: one makes the transport, one tells the protocol.
_TURNS = 3


async def close(listener: asyncio.Server) -> None:
    """Takes no connections from here on; whoever was accepted is being served.

    A transport that asyncio makes in the turn after its listener was closed would never be closed.
    """
    for listening in listener.sockets:
        asyncio.get_running_loop().remove_reader(listening)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    listener.close()
