"""An answer that is all there, as aiohttp is to send it."""

import time
from email.utils import formatdate
from functools import lru_cache

from aiohttp import web
from aiohttp.web_request import BaseRequest

_NO_CONTENT = frozenset({204, 304})


class WholeResponse(web.StreamResponse):
    """A response whose head and body go out in one write.

    aiohttp's own `Response` would find out first what kind of body it was given; this one has
    bytes, and headers that say what they are.
    """

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(status=status, headers=headers)
        self._content = body

    async def prepare(self, request: BaseRequest) -> None:
        """Completes the headers; nothing is sent before the body."""
        if self._req is None:
            self._req = request
            if self.status not in _NO_CONTENT:
                self.headers["Content-Length"] = str(len(self._content))
            self.headers["Date"] = _date(int(time.time()))
            await request._prepare_hook(self)
            self._connection(request)

    async def write_eof(self, data: bytes = b"") -> None:
        """Sends it. Raises `ConnectionError` if nobody is there."""
        request = self._req
        if request is None or self._eof_sent:
            return
        self._eof_sent, self._req = True, None
        line = f"HTTP/{'1.0' if _is_old(request) else '1.1'} {self.status} {self.reason}"
        await request.writer.write_headers(line, self.headers)
        await request.writer.write_eof(b"" if request.method == "HEAD" else self._content)

    def _connection(self, request: BaseRequest) -> None:
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if self._keep_alive == _is_old(request):
            self.headers["Connection"] = "keep-alive" if self._keep_alive else "close"


def _is_old(request: BaseRequest) -> bool:
    """Whether the answer is in HTTP/1.0; whoever speaks neither gets HTTP/1.1, and never a version
    that is not spoken here (RFC 9110 section 6.2).
    """
    return request.version == (1, 0)


@lru_cache(maxsize=1)  # there are many responses in a second
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
