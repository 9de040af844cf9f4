"""A listener that loses nobody when it closes: who has connected is served, whoever came last."""

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable

# How long the last handshakes may take: the longest round trip to a caller, in seconds.
_HANDSHAKE_S = 0.05
# Linux' number for SO_ATTACH_FILTER, which Python has no name for (asm-generic/socket.h).
_ATTACH_FILTER = 26
# Classic BPF over a TCP header: drop a SYN, pass everything else (linux/filter.h).
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load byte 13, the flags
    (0x54, 0, 0, 0x12),  # of these SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # then nothing of it
    (0x06, 0, 0, 0xFFFFFFFF),  # else all of it
)

Factory = Callable[[], asyncio.BaseProtocol]


async def close(listener: asyncio.Server, factory: Factory) -> None:
    """Closes a listener; callers who have connected by then get their protocol from `factory`.

    The kernel completes handshakes by itself, and resets what is still in its queue when a socket
    is closed. So new handshakes are turned away first: a caller tries again after a second, and
    meets whoever else listens on the port. Then the queue is emptied.
    """
    queues: list[socket.socket] = []
    for one in listener.sockets:
        # Without a file descriptor left, or without the filter, a caller or two may be lost; that
        # is no reason not to close.
        with contextlib.suppress(OSError):
            # The same socket under another number: it outlives the listener.
            queues.append(socket.socket(fileno=os.dup(one.fileno())))
            _turn_away(queues[-1])
    await asyncio.sleep(_HANDSHAKE_S)
    listener.close()
    for queue in queues:
        with queue:
            await _empty(queue, factory)


def _turn_away(listening: socket.socket) -> None:
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in _DROP_SYN))
    described = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)


async def _empty(queue: socket.socket, factory: Factory) -> None:
    queue.setblocking(False)
    while True:
        try:
            connection, _ = queue.accept()
        except BlockingIOError:
            return
        except ConnectionError:
            continue  # a caller who has left again
        except OSError:
            return  # nothing more can be taken, as when there are no file descriptors left
        connection.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(factory, connection)
