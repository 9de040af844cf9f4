"""The pages: health, metrics, `/status` for people, and the description of the API."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import aiohttp_jinja2
import jinja2
from aiohttp import web

from gateway import openapi
from gateway.health import Health
from gateway.metrics import Metrics

_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_DOCS_POLICY = f"{_PAGE_POLICY}; script-src 'self'; connect-src 'self'"
_STATIC = resources.files("gateway") / "static"


def add_probes(app: web.Application, health: Health) -> None:
    """`/health/live` and `/health/ready`, for both listeners."""

    async def live(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(_request: web.Request) -> web.Response:
        body = {"status": "ok" if health.ready else "not ready"}
        if health.ready:
            return web.json_response(body)
        return web.json_response(body, status=503, headers={"Retry-After": "1"})

    app.router.add_get("/health/live", live)
    app.router.add_get("/health/ready", ready)


def add_ops(app: web.Application, health: Health, metrics: Metrics) -> None:
    """`/health`, `/metrics` and `/status`, for the operators' listener."""

    async def report(_request: web.Request) -> web.Response:
        return web.json_response(await health.report())

    async def exposition(_request: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=metrics.exposition(), headers=headers)

    async def status(request: web.Request) -> web.Response:
        context = {"health": await health.report(), "routes": sorted(metrics.totals().items())}
        return _page(request, "status.html", context, _PAGE_POLICY)

    _add_templates(app)
    app.router.add_get("/health", report)
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/status", status)
    _add_static(app, "/status/static", "status.css")


def add_docs(app: web.Application) -> None:
    """`/openapi.json` and Swagger UI at `/docs`, vendored: they work with no network."""
    document = openapi.document_bytes()

    async def description(_request: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    async def docs(request: web.Request) -> web.Response:
        return _page(request, "docs.html", {}, _DOCS_POLICY)

    _add_templates(app)
    app.router.add_get("/openapi.json", description)
    app.router.add_get("/docs", docs)
    for name in ("docs.js", "swagger-ui/swagger-ui.css", "swagger-ui/swagger-ui-bundle.js"):
        _add_static(app, "/docs/static", name)


def _add_templates(app: web.Application) -> None:
    loader = jinja2.PackageLoader("gateway")
    aiohttp_jinja2.setup(app, loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)


def _page(
    request: web.Request, template: str, context: Mapping[str, Any], policy: str
) -> web.Response:
    response = aiohttp_jinja2.render_template(template, request, context)
    response.headers["Content-Security-Policy"] = policy
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


def _add_static(app: web.Application, prefix: str, name: str) -> None:
    """One file of ours under one name: no folder is served, so no path can climb out of it."""
    body = _STATIC.joinpath(name).read_bytes()
    media_type = "text/css" if name.endswith(".css") else "text/javascript"

    async def serve(_request: web.Request) -> web.Response:
        headers = {"Cache-Control": "public, max-age=3600"}
        return web.Response(body=body, content_type=media_type, charset="utf-8", headers=headers)

    app.router.add_get(f"{prefix}/{name}", serve)
