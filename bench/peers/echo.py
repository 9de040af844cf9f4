"""What a process with this loop can reach at most: it reads a request, whatever that is, and writes
the same answer each time.
"""

import asyncio
import sys
from pathlib import Path
from typing import cast

import uvloop


class Echo(asyncio.Protocol):
    """One connection, on which each request comes by itself and in one piece."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps what is written to."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, _data: bytes) -> None:
        """Answers a request."""
        self._transport.write(self._answer)


async def serve(host: str, port: int, answer: bytes) -> None:
    """Until it is ended."""
    server = await asyncio.get_running_loop().create_server(lambda: Echo(answer), host, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).read_bytes()))
