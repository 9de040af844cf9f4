"""The pages for people, and the files they need: all served from here, under a strict policy."""

import asyncio
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway import __version__
from tests.conftest import ADMIN, CREDENTIAL, SECRET, MakeClient, caller
from tests.fakes import FakeLedger
from tests.gateway.processes import free_ports

Client = TestClient[Any, Any]
STATIC = resources.files("gateway") / "static"
DOCS_FILES = ["docs.js", "swagger-ui/swagger-ui.css", "swagger-ui/swagger-ui-bundle.js"]


class Page(HTMLParser):
    """What of a page a Content-Security-Policy is about, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag == "link" or "src" in found:
            self.loaded.append(found.get("href") or found.get("src") or "")
        if tag == "style" or (tag == "script" and "src" not in found):
            self.inline.append(tag)
        self.inline += [name for name in found if name == "style" or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def policy(response: Any) -> dict[str, list[str]]:
    """Directive to sources."""
    directives = response.headers["Content-Security-Policy"].split(";")
    return {words[0]: words[1:] for words in (directive.split() for directive in directives)}


async def ops_of(client: Client) -> Client:
    ops: Client = TestClient(TestServer(client.gateway.ops))  # type: ignore[attr-defined]
    await ops.start_server()
    return ops


@pytest.fixture
async def ops(client: Client) -> AsyncIterator[Client]:
    """A client of the operators' listener; `client` is one of its API."""
    ops = await ops_of(client)
    yield ops
    await ops.close()


async def page(client: Client, path: str) -> Page:
    response = await client.get(path)
    assert (response.status, response.content_type) == (200, "text/html")
    return Page(await response.text())


# /status


async def test_the_status_page_shows_what_health_says(
    ledger: FakeLedger, client: Client, ops: Client
) -> None:
    await client.get("/ledger", headers=caller(*ADMIN))
    await client.get("/ledger/alice", headers=caller("bob"))
    shown = await page(ops, "/status")
    assert "Ready" in shown.text
    assert __version__ in shown.text
    for section in ("Ledger", "Keys", "Cache"):
        assert section in shown.text
    for row in ("/ledger", "/ledger/{username}", "403 × 1"):
        assert row in shown.text
    assert [call.path for call in ledger.calls] == ["/ledger", "/health"]


async def test_the_status_page_loads_nothing_but_what_its_policy_allows(ops: Client) -> None:
    response = await ops.get("/status")
    assert policy(response) == {
        "default-src": ["'none'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    shown = Page(await response.text())
    assert shown.inline == []
    assert "script" not in shown.tags
    assert shown.loaded == ["data:,", "/status/static/status.css"]


async def test_the_status_page_tells_that_the_ledger_is_away(make_client: MakeClient) -> None:
    (port,) = free_ports(1)
    ops = await ops_of(await make_client(f"http://127.0.0.1:{port}"))
    async with ops:
        shown = await page(ops, "/status")
    assert "Ready" in shown.text
    assert "the ledger cannot be reached" in shown.text
    assert "LEDGER_UNREACHABLE" in shown.text


async def test_the_status_page_tells_that_it_drains_or_has_no_keys(
    ledger: FakeLedger, make_client: MakeClient
) -> None:
    client = await make_client(auth__algorithms="RS256", auth__jwks_url="http://127.0.0.1:1/")
    async with await ops_of(client) as ops:
        assert "Not ready" in (await page(ops, "/status")).text
        client.gateway.health.draining = True  # type: ignore[attr-defined]
        assert "Draining" in (await page(ops, "/status")).text
    assert {call.path for call in ledger.calls} == {"/health"}


async def test_the_status_page_shows_no_secret_and_nothing_that_a_caller_chose(
    client: Client, ops: Client
) -> None:
    for path in ("/<script>alert(1)</script>", "/ledger/mallory", "/ledger?type=%3Cb%3E"):
        await client.get(path, headers=caller("alice"))
    text = await (await ops.get("/status")).text()
    for hidden in (SECRET, CREDENTIAL, "alert", "mallory", "alice", "<b>"):
        assert hidden not in text
    assert "unmatched" in text


# /docs


async def test_the_docs_page_runs_no_script_but_its_own_files(client: Client) -> None:
    response = await client.get("/docs")
    directives = policy(response)
    assert directives["default-src"] == ["'none'"]
    assert directives["script-src"] == directives["connect-src"] == ["'self'"]
    assert directives["frame-ancestors"] == directives["base-uri"] == ["'none'"]
    shown = Page(await response.text())
    assert shown.inline == []
    files = [f"/docs/static/{name}" for name in DOCS_FILES]
    assert sorted(shown.loaded) == sorted(["data:,", *files])


async def test_the_description_of_the_api_needs_no_identity(
    ledger: FakeLedger, client: Client
) -> None:
    response = await client.get("/openapi.json")
    assert (response.status, response.content_type) == (200, "application/json")
    assert isinstance(await response.json(), dict)
    assert ledger.calls == []


@pytest.mark.parametrize("path", ["/docs", "/status"])
async def test_a_page_is_not_kept_framed_or_told_of(client: Client, ops: Client, path: str) -> None:
    response = await (ops if path == "/status" else client).get(path)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "'unsafe" not in response.headers["Content-Security-Policy"]
    assert "http:" not in response.headers["Content-Security-Policy"]


# The files.


@pytest.mark.parametrize("name", [*DOCS_FILES, "status.css"])
async def test_a_file_is_served_as_it_is_with_its_type(
    client: Client, ops: Client, name: str
) -> None:
    status = name == "status.css"
    listener, prefix = (ops, "/status/static") if status else (client, "/docs/static")
    response = await listener.get(f"{prefix}/{name}")
    assert response.status == 200
    assert await response.read() == STATIC.joinpath(name).read_bytes()
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert response.headers["Cache-Control"] == "public, max-age=3600"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", [*DOCS_FILES, "status.css"])
def test_a_file_of_ours_asks_no_other_host_for_anything(name: str) -> None:
    text = STATIC.joinpath(name).read_text("utf-8")
    assert "@import" not in text
    assert "url(http" not in text
    assert "url(//" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/docs/static/",
        "/docs/static",
        "/docs/static/vendor.sha256",
        "/docs/static/status.css",
        "/docs/static/swagger-ui/",
        "/docs/static/swagger-ui/LICENSE",
        "/docs/static/../docs.js",
        "/docs/static/../../app.py",
        "/docs/static/..%2f..%2fapp.py",
        "/docs/static/%2e%2e/%2e%2e/app.py",
        "/docs/static//etc/passwd",
        "/docs/static/swagger-ui/..%5c..%5cdocs.js",
        "/docs/static/docs.js%00.css",
    ],
)
async def test_no_path_leads_to_another_file(ledger: FakeLedger, client: Client, path: str) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    request = f"GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    status = int(answer.split()[1])
    assert status in (400, 404)
    assert ledger.calls == []
