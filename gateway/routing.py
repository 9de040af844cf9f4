"""The routes of the table, found at once.

aiohttp's router tries one route after the other and makes all that it knows of a route anew for
each request. It still decides about everything else: pages, expectations, and what is refused.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]
Found = tuple[web.UrlMappingMatchInfo, Handle]


@dataclass(slots=True)
class _Method:
    """The routes of one method: one pattern for all, a group for each, in the order of handlers."""

    pattern: re.Pattern[str] = re.compile(r"(?!)")
    paths: list[str] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)


class Routing:
    """Routes of an application whose middlewares are complete."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._methods: dict[str, _Method] = {}

    def add(self, method: str, path: str, handler: Handler, expect: Any) -> None:
        """Adds a route; where the path has a `{name}`, any segment matches, braces too."""
        named = path.replace("}", ":[^/]+}")
        route = self._app.router.add_route(method, named, handler, expect_handler=expect)
        info = web.UrlMappingMatchInfo({}, route)
        info.add_app(self._app)
        info.freeze()
        known = self._methods.setdefault(method, _Method())
        known.found.append((info, self._wrapped(handler)))
        known.paths.append("({})".format(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))))
        known.pattern = re.compile("|".join(known.paths))

    def __call__(self, others: Handle) -> Handle:
        """The handler of all requests: `others` is for those which are not for these routes."""

        async def handle(request: web.Request) -> web.StreamResponse:
            found = self.find(request)
            if found is None or "Expect" in request.headers:
                return await others(request)
            request._match_info, handler = found
            return await handler(request)

        return handle

    def find(self, request: web.Request) -> Found | None:
        """The route that the router would find, with its handler in all middlewares."""
        known = self._methods.get(request.method)
        match = known.pattern.fullmatch(request.rel_url.raw_path) if known is not None else None
        if known is None or match is None or match.lastindex is None:
            return None
        return known.found[match.lastindex - 1]

    def _wrapped(self, handler: Handler) -> Handle:
        for middleware in reversed(self._app.middlewares):
            handler = partial(middleware, handler=handler)
        return handler


ROUTING = web.AppKey("routing", Routing)
