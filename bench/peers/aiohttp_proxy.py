"""What aiohttp comes to that passes a reply on and does nothing else: no token is looked at, no row
read, nothing counted or logged.
"""

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web


async def serve(host: str, port: int, ledger: str) -> None:
    """Until it is ended."""
    loop, connector = asyncio.get_running_loop(), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(ledger, connector=connector) as session:

        async def passed_on(request: web.BaseRequest) -> web.StreamResponse:
            async with session.get(request.path_qs) as reply:
                return web.Response(body=await reply.read(), content_type="application/json")

        server = await loop.create_server(web.Server(passed_on, access_log=None), host, port)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
