"""Cursors: good for one caller, one route and one set of filters; an altered one is refused."""

import base64
import string
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cursors import START, CursorSigner, Position, signing_key
from gateway.errors import InvalidCursor
from tests.conftest import ADMIN, SECRET, SERVICE, MakeClient, caller
from tests.fakes import FakeLedger

bounded = settings(max_examples=150, deadline=None)

KEY = b"k" * 32
BOUND = ("alice", "user", "listLedger", "status", "pending")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
POSITIONS = st.builds(Position, st.none() | TEXTS, st.none() | TEXTS)
BOUNDS = st.lists(TEXTS, max_size=5)
URL_SAFE = set(string.ascii_letters + string.digits + "-_")


@bounded
@given(POSITIONS, BOUNDS)
def test_a_position_comes_back_as_it_was(position: Position, bound: list[str]) -> None:
    cursor = CursorSigner(KEY).seal(position, bound)
    assert CursorSigner(KEY).open(cursor, bound) == position
    assert set(cursor) <= URL_SAFE


@bounded
@given(POSITIONS, BOUNDS, BOUNDS)
def test_a_cursor_is_good_only_for_what_it_was_sealed_for(
    position: Position, bound: list[str], other: list[str]
) -> None:
    signer = CursorSigner(KEY)
    cursor = signer.seal(position, bound)
    for wrong in (other, [*bound, ""], ["", *bound], bound[1:], bound[::-1], ["".join(bound)]):
        if wrong != bound:
            with pytest.raises(InvalidCursor):
                signer.open(cursor, wrong)


@pytest.mark.parametrize("index", range(len(BOUND)))
def test_a_cursor_is_bound_to_every_part(index: int) -> None:
    signer = CursorSigner(KEY)
    cursor = signer.seal(START, BOUND)
    for other in ("", "bob", BOUND[index] + " ", BOUND[index].upper()):
        with pytest.raises(InvalidCursor):
            signer.open(cursor, [*BOUND[:index], other, *BOUND[index + 1 :]])


def test_where_one_part_ends_and_the_next_begins_is_bound_too() -> None:
    signer = CursorSigner(KEY)
    for bound, other in (
        (["ab", "c"], ["a", "bc"]),
        (["a", ""], ["", "a"]),
        (["a", "b"], ["a\x00\x00\x00\x01b"]),
    ):
        with pytest.raises(InvalidCursor):
            signer.open(signer.seal(START, bound), other)


@bounded
@given(POSITIONS, st.integers(0), st.integers(1, 255))
def test_no_byte_can_be_altered(position: Position, index: int, change: int) -> None:
    signer = CursorSigner(KEY)
    cursor = signer.seal(position, BOUND)
    sealed = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    sealed[index % len(sealed)] ^= change
    altered = base64.urlsafe_b64encode(sealed).decode().rstrip("=")
    with pytest.raises(InvalidCursor):
        signer.open(altered, BOUND)


def test_no_character_can_be_altered_added_or_left_out() -> None:
    """Also not one that decodes to the same bytes: padding, white space, unused bits."""
    signer = CursorSigner(KEY)
    cursor = signer.seal(Position("c-2", "m"), BOUND)
    for index in range(len(cursor) + 1):
        before, after = cursor[:index], cursor[index:]
        altered = {before + char + after for char in "A_=!\n .é"}
        altered |= {before + char + after[1:] for char in URL_SAFE | set("+/=")}
        altered |= {before + after[1:]}
        for wrong in altered - {cursor}:
            with pytest.raises(InvalidCursor):
                signer.open(wrong, BOUND)


def test_unused_bits_at_the_end_cannot_be_set() -> None:
    signer = CursorSigner(KEY)
    cursors = [signer.seal(Position("c" * size), BOUND) for size in range(3)]
    for cursor in cursors:
        for char in URL_SAFE - {cursor[-1]}:
            with pytest.raises(InvalidCursor):
                signer.open(cursor[:-1] + char, BOUND)


@pytest.mark.parametrize("cursor", ["", "A", "AAAA", "A" * 43, "A" * 200, "é", "=", "\ud800"])
def test_what_was_never_a_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        CursorSigner(KEY).open(cursor, BOUND)


@pytest.mark.parametrize("key", [b"", b"k", b"K" * 32, b"k" * 31 + b"l"])
def test_a_cursor_of_another_key_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidCursor):
        CursorSigner(KEY).open(CursorSigner(key).seal(START, BOUND), BOUND)


def test_gateways_that_share_a_secret_sign_alike_and_others_do_not() -> None:
    assert signing_key(SECRET, None) == signing_key(SECRET, "another")
    assert signing_key(None, SECRET) == signing_key("", SECRET) == signing_key(SECRET)
    assert len({signing_key(None), signing_key(None, None), signing_key(SECRET)}) == 3
    assert SECRET.encode() not in signing_key(SECRET)


# Over HTTP.


def _two_pages(ledger: FakeLedger, path: str) -> None:
    """A list of alice's whose pages hold one row, whatever is asked for."""

    async def script(request: web.Request) -> web.Response:
        second = request.query.get("cursor") == "c-2"
        row = b'{"id":"%d","username":"alice"}' % (2 if second else 1)
        link = {} if second else {"Link": f'<{path}?cursor=c-2>; rel="next"'}
        return web.Response(body=b"[" + row + b"]", headers=link)

    ledger.run("GET", path, script)


ROUTES = ("/ledger", "/ledger/alice", "/ledger/order/o-1", "/ledger/order/o-2")


@pytest.fixture
async def two_pages(ledger: FakeLedger, client: TestClient[Any, Any]) -> TestClient[Any, Any]:
    """A gateway before a ledger with two pages on every route."""
    for path in (*ROUTES, "/ledger/bob"):
        _two_pages(ledger, path)
    return client


async def _next(client: TestClient[Any, Any], target: str, headers: dict[str, str]) -> str:
    """Where the link to the next page points, checked for its form."""
    response = await client.get(target, headers=headers)
    link = response.headers["Link"]
    assert response.status == 200
    assert link.startswith("</ledger")
    assert link.endswith('>; rel="next"')
    return link.removeprefix("<").removesuffix('>; rel="next"')


def _cursor(target: str) -> str:
    return parse_qs(urlsplit(target).query)["cursor"][0]


@pytest.mark.parametrize("route", ROUTES)
async def test_the_link_leads_to_the_second_page(
    route: str, two_pages: TestClient[Any, Any]
) -> None:
    target = await _next(two_pages, f"{route}?limit=1", caller())
    response = await two_pages.get(target, headers=caller())
    rows = (await response.json())["api_data"]
    assert [row["id"] for row in rows] == ["2"]
    assert "Link" not in response.headers


async def test_the_link_keeps_the_filters(
    two_pages: TestClient[Any, Any], ledger: FakeLedger
) -> None:
    target = await _next(two_pages, "/ledger?status=pending&limit=1&currency=BTC", caller())
    query = parse_qs(urlsplit(target).query)
    assert (query["status"], query["currency"], query["limit"]) == (["pending"], ["BTC"], ["1"])
    response = await two_pages.get(target, headers=caller())
    assert response.status == 200
    asked = {"status": "pending", "currency": "BTC", "limit": "1", "cursor": "c-2"}
    assert ledger.calls[-1].query == asked


async def test_a_page_may_go_on_with_another_limit(two_pages: TestClient[Any, Any]) -> None:
    cursor = _cursor(await _next(two_pages, "/ledger?limit=1", caller()))
    response = await two_pages.get(f"/ledger?limit=7&cursor={cursor}", headers=caller())
    assert response.status == 200


FOREIGN = [
    pytest.param("/ledger/alice?limit=1", caller(*ADMIN), id="another route"),
    pytest.param("/ledger?limit=1", caller("bob"), id="another user"),
    pytest.param("/ledger?limit=1", caller("Alice"), id="a user of almost that name"),
    pytest.param("/ledger?limit=1", caller("alice", "admin"), id="another role"),
    pytest.param("/ledger?limit=1", caller("alice", "service"), id="yet another role"),
    pytest.param("/ledger?limit=1&status=pending", caller(), id="another filter"),
    pytest.param("/ledger/alice?limit=1", caller(), id="the same rows on another route"),
    pytest.param("/ledger/order/o-1?limit=1", caller(), id="an order"),
]


@pytest.mark.parametrize(("target", "headers"), FOREIGN)
async def test_a_cursor_is_refused_elsewhere_and_the_ledger_sees_nothing(
    target: str,
    headers: dict[str, str],
    two_pages: TestClient[Any, Any],
    ledger: FakeLedger,
) -> None:
    cursor = _cursor(await _next(two_pages, "/ledger?limit=1", caller()))
    ledger.calls.clear()
    response = await two_pages.get(f"{target}&cursor={cursor}", headers=headers)
    assert (response.status, (await response.json())["api_message"]) == (400, "INVALID_CURSOR")
    assert ledger.calls == []


async def test_a_cursor_of_one_order_is_refused_on_another(
    two_pages: TestClient[Any, Any], ledger: FakeLedger
) -> None:
    cursor = _cursor(await _next(two_pages, "/ledger/order/o-1?limit=1", caller()))
    ledger.calls.clear()
    response = await two_pages.get(f"/ledger/order/o-2?limit=1&cursor={cursor}", headers=caller())
    assert (response.status, ledger.calls) == (400, [])


async def test_a_cursor_of_one_user_is_refused_on_anothers_list(
    two_pages: TestClient[Any, Any], ledger: FakeLedger
) -> None:
    cursor = _cursor(await _next(two_pages, "/ledger/alice?limit=1", caller(*SERVICE)))
    ledger.calls.clear()
    target = f"/ledger/bob?limit=1&cursor={cursor}"
    response = await two_pages.get(target, headers=caller(*SERVICE))
    assert (response.status, ledger.calls) == (400, [])


@pytest.mark.parametrize("cursor", ["c-2", "AAAA", "A" * 60, "%00", "", "a" * 5000, "%C3%A9"])
async def test_a_cursor_of_ones_own_making_is_refused(
    cursor: str, two_pages: TestClient[Any, Any], ledger: FakeLedger
) -> None:
    response = await two_pages.get(f"/ledger?limit=1&cursor={cursor}", headers=caller(*ADMIN))
    assert response.status == 400
    assert ledger.calls == []


async def test_a_cursor_without_a_limit_is_refused(
    two_pages: TestClient[Any, Any], ledger: FakeLedger
) -> None:
    cursor = _cursor(await _next(two_pages, "/ledger?limit=1", caller()))
    ledger.calls.clear()
    response = await two_pages.get(f"/ledger?cursor={cursor}", headers=caller())
    assert (response.status, (await response.json())["api_message"]) == (400, "INVALID_QUERY")
    assert ledger.calls == []


async def test_a_cursor_is_good_at_every_gateway_with_the_same_secret(
    two_pages: TestClient[Any, Any], make_client: MakeClient
) -> None:
    target = await _next(two_pages, "/ledger?limit=1", caller())
    other = await make_client()
    response = await other.get(target, headers=caller())
    assert [row["id"] for row in (await response.json())["api_data"]] == ["2"]


async def test_a_cursor_of_another_deployment_is_refused(
    two_pages: TestClient[Any, Any], ledger: FakeLedger
) -> None:
    bound = ["alice", "user", "listLedger"]
    ours = CursorSigner(signing_key(SECRET)).seal(Position("c-2"), bound)
    theirs = CursorSigner(signing_key(SECRET + "!")).seal(Position("c-2"), bound)
    response = await two_pages.get(f"/ledger?limit=1&cursor={ours}", headers=caller())
    assert response.status == 200
    ledger.calls.clear()
    response = await two_pages.get(f"/ledger?limit=1&cursor={theirs}", headers=caller())
    assert (response.status, ledger.calls) == (400, [])
