"""The public HTTP cache tests, replayed against the gateway before a ledger that does as they say.

A test is a list of requests and of what the origin answers. Here each is a read of a path of its
own, and its body a row with the number of the request that it was made for. Where the gateway does
otherwise than a test says, `data/http_caching_expected.json` says why. Time is put on by hand.
"""

import hashlib
import json
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient
from multidict import CIMultiDict

from tests.conftest import ADMIN, NO_RETRIES, RATES, MakeClient, caller
from tests.fakes import FakeLedger
from tests.gateway.clock import Clock

DATA = Path(__file__).parent / "data"
SUITES: list[dict[str, Any]] = json.loads((DATA / "http_cache_tests.json").read_text())
EXPECTED = json.loads((DATA / "http_caching_expected.json").read_text())
# Of what is stored, rows are never given old unasked; prices are.
REPLAYS = [("rows", suite["id"]) for suite in SUITES] + [("rates", "stale")]
ROOT = caller(*ADMIN)
# How long a test pauses, in seconds.
PAUSE_S = 3.0
DATES = ("date", "expires", "last-modified", "if-modified-since")

Request = dict[str, Any]


def in_suite(suite: str) -> list[dict[str, Any]]:
    """The tests of a suite that are meant for a shared cache."""
    (found,) = [one for one in SUITES if one["id"] == suite]
    return [test for test in found["tests"] if not test.get("browser_only")]


class Replay:
    """One test. `path` is where the ledger and the gateway have it; `body` is around a number."""

    def __init__(self, client: TestClient[Any, Any], ledger: FakeLedger, clock: Clock) -> None:
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._number = 0
        self._seen: list[CIMultiDict[str]] = []
        self._tags: tuple[str, str] | None = None

    async def run(self, path: str, body: str, requests: list[Request]) -> list[str]:
        """In what the gateway did otherwise than the test says."""
        differences = []

        async def answer(request: web.Request) -> web.Response:
            return self._origin(request, requests[self._number], body)

        self._ledger.run("GET", path, answer)
        for self._number, request in enumerate(requests):
            asked = len(self._seen)
            response = await self._send(path, request)
            differences += self._judged(request, response, self._seen[asked:])
            self._clock.now += PAUSE_S if request.get("pause_after") else 0.0
        return differences

    def _origin(self, seen: web.Request, request: Request, body: str) -> web.Response:
        self._seen.append(CIMultiDict(seen.headers))
        if request.get("disconnect"):
            assert seen.transport is not None
            seen.transport.abort()
        status, reason = request.get("response_status", [200, "OK"])
        headers = CIMultiDict({"Content-Type": "application/json"})
        for name, value, *_ in request.get("response_headers", []):
            headers.add(name, _text(name, value))
        text = None if status == 204 else body.replace("NUMBER", str(self._number))
        return web.Response(status=status, reason=reason, text=text, headers=headers)

    async def _send(self, path: str, request: Request) -> ClientResponse:
        headers = CIMultiDict(ROOT)
        for name, value in request.get("request_headers", []):
            headers.add(name, self._translated(_text(name, value)))
        response: ClientResponse = await self._client.get(path, headers=headers)
        await response.read()
        told = {name.lower(): value for name, value, *_ in request.get("response_headers", [])}
        if "etag" in told and "ETag" in response.headers:
            self._tags = (_bare(told["etag"]), _bare(response.headers["ETag"]))
        return response

    def _translated(self, value: str) -> str:
        """The origin's entity tag becomes the gateway's own, in the same spelling."""
        return value.replace(*self._tags) if self._tags else value

    def _judged(
        self, request: Request, response: ClientResponse, seen: list[CIMultiDict[str]]
    ) -> list[str]:
        differences = []
        kind, status = request.get("expected_type"), request.get("expected_status")
        if kind == "cached" and (seen and not self._gave_older(response)):
            differences.append("not from the cache")
        if kind == "not_cached" and (not seen or self._gave_older(response)):
            differences.append("from the cache")
        if kind in ("etag_validated", "lm_validated"):
            name = "If-None-Match" if kind == "etag_validated" else "If-Modified-Since"
            if not any(name in headers for headers in seen):
                differences.append("not validated")
        if status is not None and response.status != status:
            differences.append(f"status {response.status}, not {status}")
        differences += self._of_headers(request, response, seen)
        return differences

    def _of_headers(
        self, request: Request, response: ClientResponse, seen: list[CIMultiDict[str]]
    ) -> list[str]:
        differences = []
        for header in request.get("expected_request_headers", []):
            name, value = (header, None) if isinstance(header, str) else header
            if not any(name in one and value in (None, one[name]) for one in seen):
                differences.append(f"the origin did not see {name}")
        for header in request.get("expected_response_headers", []):
            name, *values = [header] if isinstance(header, str) else header
            found = response.headers.get(name)
            if found is None or (values and found != self._translated(values[-1])):
                differences.append(f"{name} is {'missing' if found is None else 'other'}")
        for name in request.get("expected_response_headers_missing", []):
            if name in response.headers:
                differences.append(f"{name} is there")
        return differences

    def _gave_older(self, response: ClientResponse) -> bool:
        """Whether a 200 holds what was said to an earlier request."""
        text = (response._body or b"").decode()
        return response.status == 200 and f"number{self._number}." not in text


def _text(name: str, value: str | int) -> str:
    """A header's value; of dates the tests say how far they are from now, in seconds."""
    if isinstance(value, int) and name.lower() in DATES:
        return formatdate(Clock().now + value, usegmt=True)
    return str(value)


def _bare(tag: str) -> str:
    """What stands between the quotes, if there are any."""
    return tag.split('"')[1] if '"' in tag else tag


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.rule(monkeypatch)
    return clock


async def replayed(
    kind: str, suite: str, client: TestClient[Any, Any], ledger: FakeLedger, clock: Clock
) -> dict[str, list[str]]:
    """The tests of a suite that came out otherwise, and in what."""
    found = {}
    for index, test in enumerate(in_suite(suite)):
        path, body = f"/ledger/u{index}", f'[{{"username":"u{index}","id":"numberNUMBER."}}]'
        if kind == "rates":
            path, body = (
                f"{RATES}/{index:08d}-0000-4000-8000-000000000000",
                '{"id":"numberNUMBER."}',
            )
        differences = await Replay(client, ledger, clock).run(path, body, test["requests"])
        if differences:
            found[test["id"]] = differences
    return found


@pytest.mark.parametrize("fast_path", ["true", "false"], ids=["fast path", "walk"])
@pytest.mark.parametrize(("kind", "suite"), REPLAYS)
async def test_the_gateway_does_as_the_public_tests_say_but_for_what_is_explained(
    make_client: MakeClient,
    ledger: FakeLedger,
    clock: Clock,
    kind: str,
    suite: str,
    fast_path: str,
) -> None:
    client = await make_client(
        **NO_RETRIES,
        breaker__min_calls="1000",
        cache__ledger_ttl_s="3600",
        # Prices may be given old for half as long: not for as long as a test pauses.
        cache__rates_ttl_s="2",
        server__fast_path=fast_path,
    )
    found = await replayed(kind, suite, client, ledger, clock)
    explained = {name for group in EXPECTED[kind][suite] for name in group["tests"]}
    assert {name: found.get(name, "as the test says") for name in found.keys() ^ explained} == {}


def test_every_deviation_is_explained_once_and_is_of_a_test_that_there_is() -> None:
    assert [(kind, suite) for kind in EXPECTED for suite in EXPECTED[kind]] == REPLAYS
    for kind, suite in REPLAYS:
        groups = EXPECTED[kind][suite]
        names = [name for group in groups for name in group["tests"]]
        assert len(names) == len(set(names))
        assert set(names) <= {test["id"] for test in in_suite(suite)}
        for group in groups:
            assert len(group["why"].split()) >= 8
            assert group["why"].endswith(".")


def test_the_data_are_those_that_were_published() -> None:
    lines = [line.split() for line in (DATA / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} == {"http_cache_tests.json", "http_cache_tests.LICENSE"}
    for digest, name in lines:
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest
