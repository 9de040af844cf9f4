"""Kept answers over HTTP: 304, codings, ages, what callers and the ledger may say, and failures."""

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from tests.conftest import (
    ADMIN,
    NO_RETRIES,
    RATE,
    RATES,
    SERVICE,
    MakeClient,
    caller,
)
from tests.fakes import FakeLedger
from tests.gateway.clock import Clock

Client = TestClient[Any, Any]
ROWS_TTL, RATES_TTL, MAX_STALE = 10.0, 20.0, 60.0
ALICE, BOB, ROOT = caller(), caller("bob"), caller(*ADMIN)
WRITE = caller(*SERVICE) | {"Content-Type": "application/json", "Idempotency-Key": "key-1"}
DEPOSIT = b'{"type":"deposit","username":"alice","currency":"BTC","amount":"0.5"}'
ONE_RATE = f"{RATES}/{RATE}"


def row(number: int, username: str = "alice", comment: str = "") -> str:
    return f'{{"id":"{number}","username":"{username}","comment":"{comment}"}}'


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.rule(monkeypatch)
    return clock


@pytest.fixture(params=["true", "false"], ids=["fast path", "walk"])
async def client(
    request: pytest.FixtureRequest, make_client: MakeClient, clock: Clock, ledger: FakeLedger
) -> Client:
    """A client of a gateway that keeps answers; what it does must not depend on the fast path."""
    ledger.rows("/ledger/alice", row(1), row(2))
    ledger.rows("/ledger/bob", row(3, "bob"))
    ledger.rows("/ledger/order/x", row(1), row(3, "bob"), row(2))
    ledger.on("GET", RATES, '[{"id":"1","amount":"5"}]')
    ledger.on("GET", ONE_RATE, '{"id":"1","amount":"5"}')
    ledger.on("POST", "/ledger", f'{{"api_message":"OK","api_data":{row(9)}}}', 201)
    return await make_client(
        **NO_RETRIES,
        server__fast_path=request.param,
        cache__ledger_ttl_s=str(ROWS_TTL),
        cache__rates_ttl_s=str(RATES_TTL),
        cache__max_stale_s=str(MAX_STALE),
        breaker__min_calls="1000",
    )


async def get(
    client: Client, target: str = "/ledger", who: dict[str, str] = ALICE, **headers: str
) -> ClientResponse:
    """An answer, its body read; underscores in header names become hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer: ClientResponse = await client.get(
        target, headers=who | named, skip_auto_headers=["Accept-Encoding"], auto_decompress=False
    )
    await answer.read()
    return answer


def how(answer: ClientResponse) -> str:
    """How it was come by, without the name of who says so."""
    return answer.headers["Cache-Status"].removeprefix("ledger-gateway; ")


def age(answer: ClientResponse) -> int | None:
    text = answer.headers.get("Age")
    return None if text is None else int(text)


def fails(ledger: FakeLedger, path: str, status: int = 500) -> None:
    """The ledger fails there from here on."""
    ledger.on("GET", path, "{}", status)


# What a caller has already.

TARGETS = [
    ("/ledger", ALICE),
    ("/ledger", ROOT),
    ("/ledger/alice", ALICE),
    ("/ledger?limit=5", ALICE),
    ("/ledger/order/x", ALICE),
    ("/ledger/order/x?limit=1", ALICE),
    ("/ledger/users/alice/deposits", ALICE),
    (RATES, ALICE),
    (ONE_RATE, ALICE),
]


@pytest.mark.parametrize(("target", "who"), TARGETS)
async def test_what_a_caller_has_already_is_not_sent_again(
    client: Client, ledger: FakeLedger, target: str, who: dict[str, str]
) -> None:
    ledger.on("GET", "/ledger/users/alice/deposits", '{"api_message":"OK","api_data":{}}')
    for _ in range(4):
        whole = await get(client, target, who)
        assert whole.status == 200
        again = await get(client, target, who, If_None_Match=whole.headers["ETag"])
        assert (again.status, await again.read()) == (304, b"")
        for name in ("Content-Type", "Content-Length", "Transfer-Encoding", "Content-Encoding"):
            assert name not in again.headers
        # What updates the answer that the caller has (RFC 9110 section 15.4.5).
        for name in ("ETag", "Cache-Control", "Vary", "Link"):
            assert again.headers.get(name) == whole.headers.get(name)
        assert all(name in again.headers for name in ("Date", "X-Request-Id", "Cache-Status"))


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("{}", 304),
        ("W/{}", 304),
        ('"a", {}, "b"', 304),
        ('W/"a",W/{}', 304),
        ("*", 304),
        ('"a"', 200),
        ('"a", "b"', 200),
        ("", 200),
        ("{}x", 304),
        ("nonsense", 200),
    ],
)
async def test_tags_are_compared_weakly_in_lists_and_with_a_star(
    client: Client, form: str, status: int
) -> None:
    for _ in range(3):
        tag = (await get(client)).headers["ETag"]
        answer = await get(client, If_None_Match=form.format(tag))
        assert answer.status == status
        assert (await answer.read() != b"") is (status == 200)


async def test_an_answer_of_304_is_not_given_to_who_did_not_ask_for_it(client: Client) -> None:
    """On one connection, whatever was answered on it before."""
    tag = (await get(client)).headers["ETag"]
    for _ in range(3):
        assert (await get(client, If_None_Match=tag)).status == 304
        assert (await get(client)).status == 200
        assert (await get(client, If_None_Match='"other"')).status == 200


async def test_a_connection_goes_on_after_a_304(client: Client) -> None:
    tag = (await get(client)).headers["ETag"]
    stream, writer = await asyncio.open_connection("127.0.0.1", client.port)
    head = "".join(f"{name}: {value}\r\n" for name, value in ALICE.items())
    first = f"GET /ledger HTTP/1.1\r\nHost: g\r\n{head}If-None-Match: {tag}\r\n\r\n"
    last = f"GET /ledger HTTP/1.1\r\nHost: g\r\n{head}Connection: close\r\n\r\n"
    writer.write((first * 3 + last).encode())
    async with asyncio.timeout(20):
        data = await stream.read()
    writer.close()
    statuses = [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"304", b"304", b"304", b"200"]
    assert data.count(b"\r\n\r\nHTTP/1.1 ") == 3


async def test_a_tag_is_of_what_its_caller_sees_and_changes_only_with_that(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    async def tags() -> dict[str, str]:
        clock.now += ROWS_TTL
        answers = {name: await get(client, "/ledger/order/x", caller(name)) for name in USERS}
        answers["root"] = await get(client, "/ledger/order/x", ROOT)
        return {name: answer.headers["ETag"] for name, answer in answers.items()}

    before = await tags()
    assert len(set(before.values())) == 3
    ledger.rows("/ledger/order/x", row(1), row(3, "bob", "other"), row(4, "carol"), row(2))
    after = await tags()
    assert {name for name in before if before[name] != after[name]} == {"bob", "root"}
    ledger.rows("/ledger/order/x", row(1), row(2))
    clock.now += ROWS_TTL
    assert (await get(client, "/ledger/order/x")).headers["ETag"] == before["alice"]


USERS = ("alice", "bob")


async def test_the_tag_of_another_view_is_not_a_callers_own(client: Client) -> None:
    bobs = (await get(client, "/ledger/order/x", BOB)).headers["ETag"]
    answer = await get(client, "/ledger/order/x", ALICE, If_None_Match=bobs)
    assert answer.status == 200


@pytest.mark.parametrize("given", ["*", '"x", *', '"a"'])
async def test_no_tag_opens_what_a_caller_may_not_see(client: Client, given: str) -> None:
    bobs = (await get(client, "/ledger/bob", BOB)).headers["ETag"]
    for tag in (given, bobs):
        answer = await get(client, "/ledger/bob", ALICE, If_None_Match=tag)
        assert answer.status == 403
        assert "ETag" not in answer.headers
    answer = await get(client, "/ledger/order/x", caller("dave"), If_None_Match=given)
    assert answer.status == 403


@pytest.mark.parametrize("target", ["/ledger", "/ledger/order/x"])
async def test_a_stream_has_no_tag(client: Client, ledger: FakeLedger, target: str) -> None:
    path = "/ledger/alice" if target == "/ledger" else target
    ledger.rows(path, row(1), Link='<?cursor=2>; rel="next"')
    pages = 0

    async def page(request: web.Request) -> web.Response:
        nonlocal pages
        pages += 1
        more = {} if "cursor" in request.query else {"Link": '<?cursor=2>; rel="next"'}
        rows = ",".join(row(100 * pages + number) for number in range(1100))
        return web.Response(text=f"[{rows}]", headers=more)

    ledger.run("GET", path, page)
    for _ in range(3):
        answer = await get(client, target, If_None_Match="*")
        assert answer.status == 200
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert "ETag" not in answer.headers


async def test_a_write_has_no_tag_and_looks_at_none(client: Client, ledger: FakeLedger) -> None:
    answer = await client.post("/ledger", headers=WRITE | {"If-None-Match": "*"}, data=DEPOSIT)
    assert answer.status == 201
    assert "ETag" not in answer.headers
    assert len(ledger.calls) == 1


# Codings.


async def test_a_large_answer_comes_in_the_coding_that_is_asked_for(
    client: Client, ledger: FakeLedger
) -> None:
    ledger.rows("/ledger/alice", *(row(number) for number in range(100)))
    plain = await get(client)
    assert "Content-Encoding" not in plain.headers
    for _ in range(4):
        packed = await get(client, Accept_Encoding="gzip")
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(await packed.read()) == await plain.read()
        assert int(packed.headers["Content-Length"]) == len(await packed.read())
        assert packed.headers["ETag"] != plain.headers["ETag"]
        for answer in (plain, packed):
            assert "Accept-Encoding" in answer.headers["Vary"].split(", ")
        assert await (await get(client)).read() == await plain.read()
        assert (await get(client, Accept_Encoding="gzip;q=0")).headers["ETag"] == plain.headers[
            "ETag"
        ]


async def test_a_tag_is_good_for_its_coding_only(client: Client, ledger: FakeLedger) -> None:
    ledger.rows("/ledger/alice", *(row(number) for number in range(100)))
    plain = (await get(client)).headers["ETag"]
    packed = (await get(client, Accept_Encoding="gzip")).headers["ETag"]
    for _ in range(2):
        assert (await get(client, Accept_Encoding="gzip", If_None_Match=packed)).status == 304
        assert (await get(client, If_None_Match=plain)).status == 304
        assert (await get(client, Accept_Encoding="gzip", If_None_Match=plain)).status == 200
        assert (await get(client, If_None_Match=packed)).status == 200


# Ages, and how an answer was come by.


async def test_an_answer_says_how_old_it_is_and_how_long_it_is_good_for(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    first = await get(client)
    assert (how(first), age(first)) == ("fwd=uri-miss; stored", None)
    for passed, left in [(0.0, 10), (0.5, 9), (3.0, 7), (9.0, 1), (9.99, 0)]:
        clock.now = 1000.0 + passed
        answer = await get(client)
        assert (how(answer), age(answer)) == (f"hit; ttl={left}", int(passed))
    clock.now = 1000.0 + ROWS_TTL
    last = await get(client)
    assert how(last) in ("fwd=stale; stored", "fwd=uri-miss; stored")
    assert age(last) is None
    assert len(ledger.calls) == 2


@pytest.mark.parametrize(
    "said", ["7", "7.5", "x", "-7", "", "9" * 400, "7, 9", "7,x", " 7 , ", ",7", "x, 7"]
)
async def test_an_answer_that_was_not_kept_is_as_old_as_the_ledger_says(
    client: Client, clock: Clock, ledger: FakeLedger, said: str
) -> None:
    ledger.rows("/ledger/alice", row(1), Age=said)
    # Of a list the first counts (RFC 9111 section 5.1).
    known = {"7": 7, "9" * 400: 2**31, "7, 9": 7, "7,x": 7, " 7 , ": 7}.get(said)
    for _ in range(2):
        answer = await get(client, Cache_Control="no-store")
        assert (answer.status, how(answer), age(answer)) == (200, "fwd=uri-miss", known)
    whole = await get(client, Cache_Control="no-store")
    answer = await get(client, If_None_Match=whole.headers["ETag"], Cache_Control="no-store")
    assert (answer.status, age(answer)) == (304, known)


async def test_a_list_of_several_pages_is_as_old_as_the_oldest_of_them(
    client: Client, ledger: FakeLedger
) -> None:
    async def page(request: web.Request) -> web.Response:
        cursor = request.query.get("cursor", "0")
        link = f'</ledger?cursor={int(cursor) + 1}>; rel="next"'
        headers = {"Age": {"0": "3", "1": "5"}.get(cursor, "4")}
        if cursor != "2":
            headers["Link"] = link
        return web.Response(text=f"[{row(int(cursor))}]", headers=headers)

    ledger.run("GET", "/ledger/alice", page)
    assert age(await get(client, "/ledger?limit=3")) == 5


async def test_a_304_says_its_age_too(client: Client, clock: Clock) -> None:
    tag = (await get(client)).headers["ETag"]
    clock.now += 4.0
    answer = await get(client, If_None_Match=tag)
    assert (answer.status, how(answer), age(answer)) == (304, "hit; ttl=6", 4)


async def test_an_error_says_nothing_of_a_cache(client: Client, ledger: FakeLedger) -> None:
    fails(ledger, "/ledger/alice")
    for answer in (await get(client), await get(client, "/ledger/bob")):
        assert answer.status in (502, 403)
        assert not [name for name in ("Age", "Cache-Status", "ETag") if name in answer.headers]


async def test_what_is_too_large_to_keep_is_not_said_to_be_stored(
    make_client: MakeClient, ledger: FakeLedger
) -> None:
    client = await make_client(cache__max_bytes="100")
    ledger.rows("/ledger/alice", row(1))
    for _ in range(2):
        assert how(await get(client)) == "fwd=uri-miss"


# What a caller says.


async def test_no_cache_has_the_ledger_asked_and_the_answer_kept(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    for _ in range(3):
        await get(client)
    ledger.rows("/ledger/alice", row(7))
    clock.now += 3.0
    fresh = await get(client, Cache_Control="no-cache")
    assert (how(fresh), age(fresh)) == ("fwd=request; stored", None)
    assert '"7"' in await fresh.text()
    for _ in range(3):
        after = await get(client)
        assert (how(after), await after.text()) == ("hit; ttl=10", await fresh.text())
    assert len(ledger.calls) == 2


async def test_no_store_has_the_ledger_asked_and_the_answer_not_kept(
    client: Client, ledger: FakeLedger
) -> None:
    first = await get(client, Cache_Control="no-store")
    assert how(first) == "fwd=uri-miss"
    assert how(await get(client)) == "fwd=uri-miss; stored"
    ledger.rows("/ledger/alice", row(7))
    third = await get(client, Cache_Control="no-store")
    assert (how(third), '"7"' in await third.text()) == ("fwd=request", True)
    fourth = await get(client)
    assert (how(fourth), '"7"' in await fourth.text()) == ("hit; ttl=10", False)


async def test_max_age_bounds_the_age_of_what_is_given(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    for _ in range(3):
        await get(client)
    clock.now += 4.0
    assert how(await get(client, Cache_Control="max-age=4")) == "hit; ttl=6"
    assert how(await get(client, Cache_Control="max-age=3")) == "fwd=request; stored"
    assert how(await get(client, Cache_Control="max-age=3")) == "hit; ttl=10"
    assert len(ledger.calls) == 2
    clock.now += 0.5
    assert how(await get(client, Cache_Control="max-age=0")) == "fwd=request; stored"
    clock.now += ROWS_TTL
    assert "hit" not in how(await get(client, Cache_Control="max-age=1000"))


async def test_a_bound_holds_each_time_however_often_the_same_is_asked(
    client: Client, clock: Clock
) -> None:
    for _ in range(4):
        answer = await get(client, Cache_Control="max-age=4")
        assert (age(answer) or 0) <= 4
    clock.now += 4.5
    assert how(await get(client, Cache_Control="max-age=4")) == "fwd=request; stored"


@pytest.mark.parametrize("said", ["max-age=x", "max-age", "max-age=-5", "max-age=1.5"])
async def test_a_bound_that_cannot_be_read_is_the_strictest(
    client: Client, clock: Clock, said: str
) -> None:
    await get(client)
    clock.now += 0.5
    assert "hit" not in how(await get(client, Cache_Control=said))


@pytest.mark.parametrize("said", ["max-stale=99", "only-if-cached", "min-fresh=1", "x", ""])
async def test_what_callers_may_not_decide_changes_nothing(client: Client, said: str) -> None:
    await get(client)
    assert how(await get(client, Cache_Control=said)) == "hit; ttl=10"


# What the ledger says.


@pytest.mark.parametrize(
    "said", ["no-store", "private", "no-cache", "max-age=0", "max-age=x", "s-maxage=0, max-age=9"]
)
async def test_the_ledger_may_forbid_to_keep_an_answer(
    client: Client, ledger: FakeLedger, said: str
) -> None:
    ledger.rows("/ledger/alice", row(1), Cache_Control=said)
    ledger.on("GET", RATES, "[]", Cache_Control=said)
    for target in ("/ledger", RATES):
        for _ in range(3):
            assert how(await get(client, target)) == "fwd=uri-miss"
    assert len(ledger.calls) == 6


async def test_the_ledger_may_shorten_a_lifetime_and_does_not_lengthen_it(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    ledger.rows("/ledger/alice", row(1), Cache_Control="max-age=4")
    ledger.rows("/ledger/bob", row(3, "bob"), Cache_Control="max-age=4000")
    for who in (ALICE, BOB):
        await get(client, who=who)
    clock.now += 3.5
    assert how(await get(client)) == "hit; ttl=0"
    assert how(await get(client, who=BOB)) == "hit; ttl=6"
    clock.now += 0.5
    assert "hit" not in how(await get(client))
    clock.now += 6.0
    assert "hit" not in how(await get(client, who=BOB))


@pytest.mark.parametrize("said", ["must-revalidate", "proxy-revalidate", "s-maxage=20"])
async def test_what_the_ledger_wants_revalidated_is_never_given_old(
    client: Client, clock: Clock, ledger: FakeLedger, said: str
) -> None:
    ledger.on("GET", RATES, "[]", Cache_Control=said)
    await get(client, RATES)
    clock.now += RATES_TTL - 1
    assert how(await get(client, RATES)) == "hit; ttl=1"
    fails(ledger, RATES)
    clock.now += 2
    assert (await get(client, RATES, Cache_Control="stale-if-error=60")).status == 502


# When the ledger fails.

Break = Callable[[FakeLedger, str], None]


def _disconnects(ledger: FakeLedger, path: str) -> None:
    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    ledger.run("GET", path, cut)


BREAKS: list[Break] = [
    fails,
    lambda ledger, path: fails(ledger, path, 503),
    lambda ledger, path: fails(ledger, path, 502),
    lambda ledger, path: ledger.on("GET", path, "<html>"),
    _disconnects,
]
BREAK_IDS = ["500", "503", "502", "nonsense", "cut"]


@pytest.mark.parametrize("breaks", BREAKS, ids=BREAK_IDS)
async def test_rows_are_given_old_only_to_who_says_so(
    client: Client, clock: Clock, ledger: FakeLedger, breaks: Break
) -> None:
    for _ in range(3):
        await get(client)
    breaks(ledger, "/ledger/alice")
    clock.now += ROWS_TTL + 15.5
    assert (await get(client)).status in (502, 503)
    assert (await get(client, Cache_Control="stale-if-error=15")).status in (502, 503)
    old = await get(client, Cache_Control="stale-if-error=16")
    assert (old.status, age(old)) == (200, 25)
    assert how(old) == "fwd=stale; ttl=-16; detail=stale-if-error"
    # It was for them: nobody else gets it.
    assert (await get(client)).status in (502, 503)


async def test_no_caller_gets_rows_older_than_the_operator_allows(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    await get(client)
    fails(ledger, "/ledger/alice")
    clock.now += ROWS_TTL + MAX_STALE - 0.1
    old = await get(client, Cache_Control="stale-if-error=99999999")
    assert (old.status, age(old)) == (200, 69)
    clock.now += 0.1
    assert (await get(client, Cache_Control="stale-if-error=99999999")).status == 502


async def test_who_bounds_the_age_gets_an_error_rather_than_an_older_answer(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    """Also while it is fresh: it is older than they said."""
    for target, path in (("/ledger", "/ledger/alice"), (RATES, RATES)):
        await get(client, target)
        fails(ledger, path)
        clock.now += 5.0
        for said in ("max-age=4", "max-age=0", "no-cache", "no-store"):
            assert (await get(client, target, Cache_Control=said)).status == 502
        assert (await get(client, target)).status == 200
        old = await get(client, target, Cache_Control="max-age=4, stale-if-error=30")
        assert (old.status, age(old)) == (200, 5)


@pytest.mark.parametrize("breaks", BREAKS, ids=BREAK_IDS)
@pytest.mark.parametrize("target", [RATES, ONE_RATE])
async def test_a_price_is_given_old_and_says_its_age_up_to_a_bound(
    client: Client, clock: Clock, ledger: FakeLedger, target: str, breaks: Break
) -> None:
    price = await (await get(client, target)).read()
    breaks(ledger, target)
    for passed in (RATES_TTL * 1.5, RATES_TTL + MAX_STALE - 0.1):
        clock.now = 1000.0 + passed
        old = await get(client, target)
        assert (old.status, await old.read(), age(old)) == (200, price, int(passed))
        assert how(old).endswith("; detail=stale-if-error")
    clock.now = 1000.0 + RATES_TTL + MAX_STALE
    assert (await get(client, target)).status in (502, 503)


async def test_a_refusal_is_the_ledgers_answer_and_no_failure(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    await get(client, ONE_RATE)
    ledger.on("GET", ONE_RATE, "{}", 404)
    clock.now += RATES_TTL * 1.5
    assert (await get(client, ONE_RATE)).status == 404


async def test_an_old_answer_is_not_kept_anew(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    await get(client, RATES)
    fails(ledger, RATES)
    clock.now += RATES_TTL * 1.5
    ages = []
    for _ in range(3):
        ages.append(age(await get(client, RATES)))
        clock.now += 5.0
    assert ages == [30, 35, 40]
    ledger.on("GET", RATES, '[{"id":"2"}]')
    assert '"2"' in await (await get(client, RATES)).text()


# While a price is fetched again.


async def test_a_price_is_given_for_half_its_time_longer_while_it_is_fetched_again(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    price = await (await get(client, RATES)).read()
    asked, release = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        asked.set()
        await release.wait()
        return web.Response(text='[{"id":"2"}]')

    ledger.run("GET", RATES, slow)
    clock.now += RATES_TTL + 5.0
    for _ in range(5):
        old = await get(client, RATES)
        assert (await old.read(), how(old), age(old)) == (price, "hit; ttl=-5", 25)
    await asyncio.wait_for(asked.wait(), 20)
    assert len(ledger.calls) == 2
    release.set()
    async with asyncio.timeout(20):
        while '"2"' not in await (await get(client, RATES)).text():
            pass
    assert len(ledger.calls) == 2
    after = await get(client, RATES)
    assert how(after) == "hit; ttl=20"


async def test_a_price_beyond_that_waits_for_the_ledger(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    await get(client, RATES)
    ledger.on("GET", RATES, '[{"id":"2"}]')
    clock.now += RATES_TTL * 1.5
    answer = await get(client, RATES)
    assert '"2"' in await answer.text()
    assert how(answer) == "fwd=stale; stored"


async def test_rows_are_not_given_while_they_are_fetched_again(
    client: Client, clock: Clock, ledger: FakeLedger
) -> None:
    await get(client)
    ledger.rows("/ledger/alice", row(7))
    clock.now += ROWS_TTL
    assert '"7"' in await (await get(client)).text()


# After a write.


async def _deposit(client: Client, status: int = 201) -> None:
    answer = await client.post("/ledger", headers=WRITE, data=DEPOSIT)
    assert answer.status == status


@pytest.mark.parametrize("status", [201, 500, 503, 422])
async def test_after_a_write_nobody_gets_an_old_answer_not_even_when_the_ledger_fails(
    client: Client, ledger: FakeLedger, clock: Clock, status: int
) -> None:
    targets = [("/ledger", ALICE), ("/ledger/order/x", BOB), ("/ledger?limit=1", ALICE)]
    for target, who in targets * 3:
        assert (await get(client, target, who)).status == 200
    if status != 201:
        ledger.on("POST", "/ledger", "{}", status)
    await client.post("/ledger", headers=WRITE, data=DEPOSIT)
    for path in ("/ledger/alice", "/ledger/order/x"):
        fails(ledger, path)
    for passed in (0.0, ROWS_TTL + 1):
        clock.now += passed
        for target, who in targets:
            for said in ("", "stale-if-error=60", "max-age=60, stale-if-error=60"):
                answer = await get(client, target, who, Cache_Control=said)
                assert answer.status == 502


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
async def test_after_a_change_of_a_price_nobody_gets_the_old_one(
    client: Client, ledger: FakeLedger, clock: Clock, method: str
) -> None:
    target = RATES if method == "POST" else ONE_RATE
    for path in (RATES, ONE_RATE) * 3:
        assert (await get(client, path)).status == 200
    rate = (
        '{"baseInstrumentCode":"A","counterInstrumentCode":"B","amount":1,"scale":2,"source":"x"}'
    )
    ledger.on(method, target, '{"id":"1"}', {"POST": 201, "PATCH": 200, "DELETE": 204}[method])
    written = await client.request(method, target, headers=WRITE, data=rate)
    assert written.status in (200, 201, 204)
    for path in (RATES, ONE_RATE):
        fails(ledger, path)
        for _ in range(2):
            assert (await get(client, path, Cache_Control="stale-if-error=60")).status == 502
            assert (await get(client, path)).status == 502


async def test_a_tag_from_before_a_write_is_compared_with_what_is_there_after_it(
    client: Client, ledger: FakeLedger
) -> None:
    for _ in range(3):
        tag = (await get(client)).headers["ETag"]
    ledger.rows("/ledger/alice", row(9), row(1), row(2))
    await _deposit(client)
    answer = await get(client, If_None_Match=tag)
    assert answer.status == 200
    assert '"9"' in await answer.text()


async def test_a_write_that_changed_nothing_for_a_caller_leaves_their_tag_good(
    client: Client, ledger: FakeLedger
) -> None:
    tag = (await get(client)).headers["ETag"]
    await _deposit(client)
    answer = await get(client, If_None_Match=tag)
    assert (answer.status, how(answer)) == (304, "fwd=uri-miss; stored")
    assert len(ledger.calls) == 3
