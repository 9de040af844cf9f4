"""The pages for people, in a real browser: what they show, and that they keep to their policy."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, async_playwright, expect

from gateway import openapi
from gateway.endpoints import ENDPOINTS
from gateway.exchange import Trace
from gateway.metrics import Metrics
from gateway.status import add_docs, add_ops, add_probes

# One browser for all of them: to start it takes longer than any test.
pytestmark = pytest.mark.asyncio(loop_scope="module")

_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
)
_UUID = "5f3a4c55-8b28-4276-bed7-f7c8a4bb44e8"
_LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", event => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


@dataclass
class StubHealth:
    """Says what it is told to, in place of the parts it would ask."""

    ready: bool = True
    draining: bool = False
    ledger: dict[str, Any] = field(default_factory=lambda: {"reachable": True, "latency_ms": 3.218})
    cache: dict[str, int] = field(
        default_factory=lambda: {"entries": 1204, "bytes": 5_872_026, "hits": 9_310, "misses": 690}
    )
    more: dict[str, Any] = field(default_factory=dict)

    async def report(self) -> dict[str, Any]:
        return {
            "status": "ok" if self.ready else "not ready",
            "version": "0.1.0",
            "uptime_s": 93_784.5,
            "draining": self.draining,
            "keys": {"loaded": self.ready or self.draining, "age_s": 754.2},
            "ledger": self.ledger,
            "cache": self.cache,
            **self.more,
        }


def _executable() -> str:
    """A Chromium. Its absence is a failure: a page that nobody opened has not been tested."""
    own = os.environ.get("BROWSER", "")
    names = (own, *_BROWSERS) if "chrom" in own.lower() else _BROWSERS
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(f"no browser: none of {', '.join(_BROWSERS)} on PATH, and none in BROWSER")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=_executable(), args=list(_ARGUMENTS)
        )
        yield browser
        await browser.close()


@asynccontextmanager
async def _opened(
    browser: Browser, fill: Callable[[web.Application], None], path: str, **options: Any
) -> AsyncIterator[Page]:
    """A page of a served application; in the end it must have had nothing to complain about."""
    app = web.Application()
    fill(app)
    async with TestServer(app) as server, await browser.new_context(**options) as context:
        page = await context.new_page()
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: complaints.extend(_foreign(request.url, server)))
        await page.add_init_script(_LISTEN)
        answer = await page.goto(str(server.make_url(path)), wait_until="networkidle")
        assert answer is not None
        assert answer.status == 200
        yield page
        assert complaints == []
        assert await page.evaluate("window.violations") == []


def _foreign(url: str, server: TestServer) -> list[str]:
    ours = url.startswith((str(server.make_url("/")), "data:", "blob:"))
    return [] if ours else [f"foreign: {url}"]


def _status(
    health: StubHealth, metrics: Metrics | None = None
) -> Callable[[web.Application], None]:
    def fill(app: web.Application) -> None:
        add_probes(app, health)  # type: ignore[arg-type]
        add_ops(app, health, metrics or Metrics())  # type: ignore[arg-type]

    return fill


def _counted(*answers: tuple[str, int, int]) -> Metrics:
    metrics = Metrics()
    for route, status, times in answers:
        for _ in range(times):
            metrics.started()
            metrics.finished(Trace("request", 0.0, route), "GET", status)
    return metrics


async def _facts(page: Page, section: str) -> dict[str, str]:
    """What a section of the status page says, name to value."""
    rows = page.locator(f"section[aria-labelledby=section-{section}] dl > div")
    texts = [(await row.inner_text()).split("\n") for row in await rows.all()]
    return {text[0].strip(): text[-1].strip() for text in texts}


# The status page.


@pytest.mark.parametrize(
    ("health", "state", "words"),
    [
        (StubHealth(), "Ready", "the ledger can be reached"),
        (StubHealth(ready=False), "Not ready", "no keys"),
        (StubHealth(ready=False, draining=True), "Draining", "takes no new requests"),
        (
            StubHealth(ledger={"reachable": False, "error": "LEDGER_TIMEOUT"}),
            "Ready",
            "the ledger cannot be reached",
        ),
    ],
)
async def test_status_page_says_the_state_in_words(
    browser: Browser, health: StubHealth, state: str, words: str
) -> None:
    async with _opened(browser, _status(health), "/status") as page:
        await expect(page.locator("h1")).to_contain_text(state)
        await expect(page.locator("header")).to_contain_text(words)
        assert await page.title() == f"{state} – ledger gateway"


async def test_status_page_shows_numbers_for_people(browser: Browser) -> None:
    async with _opened(browser, _status(StubHealth()), "/status") as page:
        await expect(page.locator("header")).to_contain_text("0.1.0, up for 1 d 2 h")
        assert await _facts(page, "ledger") == {"reachable": "yes", "latency": "3.2 ms"}
        assert await _facts(page, "keys") == {"loaded": "yes", "age": "12 min 34 s"}
        assert await _facts(page, "cache") == {
            "entries": "1,204",
            "bytes": "5.6 MiB",
            "hits": "9,310",
            "misses": "690",
            "hit ratio": "93.1\N{NO-BREAK SPACE}%",
        }


async def test_status_page_has_no_ratio_before_the_first_read(browser: Browser) -> None:
    unused = StubHealth(cache={"entries": 0, "bytes": 0, "hits": 0, "misses": 0})
    async with _opened(browser, _status(unused), "/status") as page:
        assert (await _facts(page, "cache"))["hit ratio"] == "–"
        await expect(page.get_by_text("Nothing has been asked yet.")).to_be_visible()


async def test_status_page_shows_sections_it_has_never_heard_of(browser: Browser) -> None:
    circuit = {"state": "half open", "open_s": 4.25, "last_error": None, "by_route": {"/a": 1}}
    health = StubHealth(more={"circuit": circuit})
    async with _opened(browser, _status(health), "/status") as page:
        assert await _facts(page, "circuit") == {
            "state": "half open",
            "open": "4.2 s",
            "last error": "–",
            "by route": '{"/a": 1}',
        }


async def test_status_page_counts_answers_by_route_and_class(browser: Browser) -> None:
    metrics = _counted(
        ("/ledger", 200, 1_200), ("/ledger", 401, 3), ("/ledger", 429, 2), ("/ledger", 502, 1),
        ("/ledger/{username}", 304, 4),
    )  # fmt: skip
    async with _opened(browser, _status(StubHealth(), metrics), "/status") as page:
        rows = [await row.inner_text() for row in await page.locator("tbody tr").all()]
    assert [row.replace("\N{NO-BREAK SPACE}", " ").split("\t") for row in rows] == [
        ["/ledger", "1,200", "·", "5", "1", "1,206", "401 × 3, 429 × 2, 502 × 1"],
        ["/ledger/{username}", "·", "4", "·", "·", "4", "304 × 4"],
    ]


async def test_status_page_shows_what_it_is_given_as_text(browser: Browser) -> None:
    health = StubHealth(more={"circuit": {"state": "<b>open</b><script>1</script>"}})
    async with _opened(browser, _status(health), "/status") as page:
        shown = await _facts(page, "circuit")
        assert shown == {"state": "<b>open</b><script>1</script>"}
        assert await page.locator("script").count() == 0


async def test_status_page_refreshes_itself_without_script(browser: Browser) -> None:
    async with _opened(browser, _status(StubHealth()), "/status") as page:
        refresh = page.locator('meta[http-equiv="refresh"]')
        assert await refresh.get_attribute("content") == "5"
        assert await page.locator("script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_status_page_is_readable_on_every_screen(
    browser: Browser, scheme: str, width: int
) -> None:
    metrics = _counted(("/ledger", 200, 1), ("/ledger", 404, 1), ("/ledger", 500, 1))
    health = StubHealth(ledger={"reachable": False, "error": "LEDGER_TIMEOUT"})
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    async with _opened(browser, _status(health, metrics), "/status", **options) as page:
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await page.evaluate(_LOW_CONTRAST) == []


# WCAG 2 asks for a contrast of 4.5 between text and what is behind it.
_LOW_CONTRAST = """() => {
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = numbers(colour).map(
      part => part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    const colour = getComputedStyle(element).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  return [...document.body.querySelectorAll("*")]
    .filter(element =>
      [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
    .filter(element => {
      const pair = [light(getComputedStyle(element).color), light(behind(element))];
      return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05) < 4.5;
    })
    .map(element => element.outerHTML);
}"""


# The API's page.


async def test_docs_page_lists_every_operation(browser: Browser) -> None:
    async with _opened(browser, add_docs, "/docs") as page:
        await expect(page.locator(".opblock")).to_have_count(len(ENDPOINTS) + 2)
        shown = {
            (await block.locator(".opblock-summary-method").inner_text(), await _path_of(block))
            for block in await page.locator(".opblock").all()
        }
    probes = {("GET", "/health/live"), ("GET", "/health/ready")}
    assert shown == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS} | probes


async def _path_of(block: Any) -> str:
    # Swagger UI puts zero-width spaces into paths, for them to break at.
    path = await block.locator(".opblock-summary-path").get_attribute("data-path")
    return str(path)


async def test_docs_page_opens_every_operation(browser: Browser) -> None:
    async with _opened(browser, add_docs, "/docs") as page:
        for endpoint in ENDPOINTS:
            block = page.locator(f"#operations-{endpoint.api.value.title()}-{endpoint.name}")
            await block.locator(".opblock-summary-control").click()
            await expect(block.locator(".responses-table").first).to_contain_text("504")
            await expect(block.locator(".response-col_status").nth(1)).to_have_text(
                str(endpoint.status)
            )
        await expect(page.locator(".errors-wrapper")).to_have_count(0)


async def test_docs_page_sends_a_request_as_the_document_describes_it(browser: Browser) -> None:
    seen: list[tuple[str, str | None, str | None]] = []

    async def rates(request: web.Request) -> web.Response:
        headers = request.headers
        seen.append((request.path_qs, headers.get("Authorization"), headers.get("username")))
        return web.json_response([])

    def fill(app: web.Application) -> None:
        add_docs(app)
        app.router.add_get("/v1/organizations/{o}/ledgers/{l}/instrument-rates", rates)

    async with _opened(browser, fill, "/docs") as page:
        await page.locator(".auth-wrapper .authorize").first.click()
        await page.locator(".auth-container input").fill("a.b.c")
        await page.locator(".auth-btn-wrapper .authorize").click()
        await page.locator(".btn-done").click()
        block = page.locator("#operations-Rates-listRates")
        await block.locator(".opblock-summary-control").click()
        await block.get_by_role("button", name="Try it out").click()
        await block.get_by_role("button", name="Execute").click()
        await expect(block.locator(".live-responses-table").first).to_contain_text("200")
    organization, ledger = _UUID, "77b0fb8b-1bd9-4810-9c6d-7e80064fab0c"
    path = f"/v1/organizations/{organization}/ledgers/{ledger}/instrument-rates"
    assert seen == [(path, "Bearer a.b.c", None)]


async def test_patterns_of_the_document_are_valid_in_javascript(browser: Browser) -> None:
    patterns = sorted(_patterns(openapi.document()))
    async with _opened(browser, add_docs, "/docs") as page:
        await page.evaluate("found => found.forEach(text => new RegExp(text, 'u'))", patterns)
    assert len(patterns) > 10


def _patterns(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
        return own.union(*map(_patterns, node.values()))
    return set().union(*map(_patterns, node)) if isinstance(node, list) else set()
