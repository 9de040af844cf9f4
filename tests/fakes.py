"""A fake ledger with scripted answers that records what it saw."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """One request as the fake ledger saw it. `path` is raw, `query` decoded."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeLedger:
    """Answers what it was told to; by default an empty list. `calls` is what it saw."""

    calls: list[Seen] = field(default_factory=list)
    scripts: dict[tuple[str, str], Script] = field(default_factory=dict)
    fallback: Script | None = None
    url: str = ""

    def on(
        self, method: str, path: str, body: bytes | str = b"", status: int = 200, **headers: str
    ) -> None:
        """Answers a raw path with a body; underscores in header names become hyphens."""
        data = body.encode() if isinstance(body, str) else body
        names = {name.replace("_", "-"): value for name, value in headers.items()}

        async def script(_request: web.Request) -> web.StreamResponse:
            names.setdefault("Content-Type", "application/json")
            return web.Response(status=status, body=data, headers=names)

        self.scripts[method, path] = script

    def rows(self, path: str, *rows: bytes | str, **headers: str) -> None:
        """Answers a GET of a raw path with an envelope around the rows."""
        data = b",".join(row.encode() if isinstance(row, str) else row for row in rows)
        self.on("GET", path, b'{"api_message":"OK","api_data":[' + data + b"]}", **headers)

    def run(self, method: str, path: str, script: Script) -> None:
        """Answers a raw path with a coroutine function of the request."""
        self.scripts[method, path] = script

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(
            Seen(
                request.method,
                request.rel_url.raw_path,
                dict(request.query),
                dict(request.headers),
                await request.read(),
            )
        )
        script = self.scripts.get((request.method, request.rel_url.raw_path), self.fallback)
        if script is not None:
            return await script(request)
        return web.json_response({"api_message": "OK", "api_data": []})

    def server(self) -> TestServer:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self.handle)
        return TestServer(app)


def envelope(body: Any) -> Any:
    """The `api_data` of a ledger answer."""
    assert set(body) == {"api_message", "api_data"}
    return body["api_data"]
