"""Lists page by page: in order, one page held, no circle followed, every visible row once."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import views
from gateway.authz import View
from gateway.batches import Rows
from gateway.cursors import START, Position
from gateway.endpoints import ENDPOINTS
from gateway.errors import InvalidCursor, LedgerBroken, LedgerTimeout
from gateway.pages import Page, Patience, limited, mark, pages, rebatched
from gateway.rows import read_rows
from tests.conftest import ADMIN, MakeClient, caller
from tests.fakes import FakeLedger

bounded = settings(max_examples=200, deadline=None)

T = TypeVar("T")

EVERYTHING = View(owner=None, hidden=frozenset(), ambiguous=True)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stopped:
        result: T = stopped.value
        return result
    raise AssertionError("it waited")


def row(number: int) -> bytes:
    """A row known by its number."""
    return b'{"id":"%d"}' % number


@dataclass
class Book:
    """A ledger's list: the visible rows of each page. `asked` are the cursors it was asked with."""

    contents: list[list[bytes]]
    asked: list[str | None]

    @classmethod
    def of(cls, *contents: list[int]) -> "Book":
        return cls([[row(number) for number in numbers] for numbers in contents], [])

    async def read(self, cursor: str | None) -> Page:
        self.asked.append(cursor)
        index = 0 if cursor is None else int(cursor)
        following = str(index + 1) if index + 1 < len(self.contents) else None
        return Page(cursor, self.contents[index], following)


async def from_cursor(
    read: Callable[[str | None], Awaitable[Page]], cursor: str | None
) -> AsyncIterator[Page]:
    """The pages of a list from a cursor on."""
    source = pages(read, await read(cursor))
    try:
        async for page in source:
            yield page
            del page
    finally:
        await source.aclose()  # type: ignore[attr-defined]


async def collected(source: AsyncIterator[Page]) -> list[Page]:
    """All pages of a source."""
    return [page async for page in source]


# One page after the other.


def test_pages_come_in_order_up_to_the_last() -> None:
    book = Book.of([1, 2], [], [3], [4, 5])
    found = run(collected(from_cursor(book.read, None)))
    assert [page.rows for page in found] == book.contents
    assert book.asked == [None, "1", "2", "3"]


def test_pages_begin_where_they_are_told_to() -> None:
    book = Book.of([1], [2], [3])
    assert [page.rows for page in run(collected(from_cursor(book.read, "1")))] == [
        [row(2)],
        [row(3)],
    ]
    assert book.asked == ["1", "2"]


def test_a_page_is_asked_for_only_when_it_is_wanted() -> None:
    book = Book.of([1], [2], [3])
    source = from_cursor(book.read, None)
    assert book.asked == []
    for count in (1, 2, 3):
        run(anext(source))
        assert len(book.asked) == count
    run(source.aclose())  # type: ignore[attr-defined]


class _Rows(list[bytes]):
    """A list that can be watched."""


def test_a_page_is_let_go_when_the_next_one_comes() -> None:
    watched: list[weakref.ref[_Rows]] = []

    async def read(cursor: str | None) -> Page:
        rows = _Rows([row(0)])
        watched.append(weakref.ref(rows))
        return Page(cursor, rows, str(len(watched)))

    async def turn() -> None:
        async for _ in from_cursor(read, None):
            gc.collect()
            assert [ref() is not None for ref in watched] == [*[False] * (len(watched) - 1), True]
            if len(watched) == 5:
                return

    asyncio.run(turn())


class _Watched(Rows):
    """Rows that can be watched."""


async def _stream(source: AsyncIterator[Page]) -> None:
    first = (await anext(source)).rows
    chunks = views.stream(ENDPOINTS[0], EVERYTHING, first, source)
    del first
    assert len([chunk async for chunk in chunks]) == 6


async def _rebatch(source: AsyncIterator[Page]) -> None:
    assert len([None async for _ in rebatched(source, 2)]) == 3


async def _limit(source: AsyncIterator[Page]) -> None:
    assert len((await limited(source, 10, START, mixed=True))[0]) == 5


@pytest.mark.parametrize("consume", [_stream, _rebatch, _limit])
async def test_nobody_holds_a_page_while_the_next_one_is_read(
    consume: Callable[[AsyncIterator[Page]], Awaitable[None]],
) -> None:
    watched: list[weakref.ref[_Watched]] = []

    async def read(cursor: str) -> Page:
        gc.collect()
        assert [ref() for ref in watched] == [None] * len(watched)
        index = await read_rows(b"[%b]" % row(len(watched)))
        rows = _Watched(index.batches, EVERYTHING)
        watched.append(weakref.ref(rows))
        return Page(cursor, rows, str(len(watched)) if len(watched) < 5 else None)

    await consume(pages(read, await read("0")))
    assert len(watched) == 5


@bounded
@given(st.integers(0, 20), st.integers(1, 20), st.booleans())
def test_a_circle_of_any_length_comes_to_an_end(tail: int, length: int, from_none: bool) -> None:
    asked: list[str | None] = []

    async def read(cursor: str | None) -> Page:
        asked.append(cursor)
        # No page is asked for over and over.
        assert len(asked) <= 4 * (tail + length) + 4
        index = 0 if cursor is None else int(cursor)
        following = index + 1 if index + 1 < tail + length else tail
        return Page(cursor, [], str(following))

    with pytest.raises(LedgerBroken):
        run(collected(from_cursor(read, None if from_none else "0")))
    assert len(set(asked)) >= tail + length


def test_a_long_list_is_no_circle() -> None:
    book = Book.of(*[[number] for number in range(500)])
    assert len(run(collected(from_cursor(book.read, None)))) == 500


def test_a_failure_on_the_way_is_passed_on() -> None:
    async def read(cursor: str | None) -> Page:
        if cursor is not None:
            raise LedgerBroken("It broke off.")
        return Page(cursor, [row(1)], "1")

    async def turn() -> None:
        source = from_cursor(read, None)
        assert (await anext(source)).rows == [row(1)]
        with pytest.raises(LedgerBroken):
            await anext(source)

    run(turn())


# A page of ours out of pages of theirs.


@st.composite
def books(draw: st.DrawFn) -> Book:
    """A list of distinct rows on pages of any size, empty ones too."""
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    numbers = iter(range(sum(sizes)))
    return Book.of(*[[next(numbers) for _ in range(size)] for size in sizes])


def followed(book: Book, limit: int, *, mixed: bool) -> list[tuple[list[bytes], Position | None]]:
    """The list read by following one position after the other."""
    answers, position = [], START
    while True:
        source = from_cursor(book.read, position.cursor)
        rows, following = run(limited(source, limit, position, mixed=mixed))
        answers.append((rows, following))
        if following is None:
            return answers
        assert len(answers) <= 100
        position = following


@bounded
@given(books(), st.integers(1, 6), st.booleans())
def test_following_the_positions_gives_every_row_once_and_in_order(
    book: Book, limit: int, mixed: bool
) -> None:
    expected = [row for rows in book.contents for row in rows]
    answers = followed(book, limit, mixed=mixed)
    assert [row for rows, _ in answers for row in rows] == expected
    assert all(len(rows) == limit for rows, _ in answers[:-1])
    assert len(answers[-1][0]) <= limit


@bounded
@given(books(), st.integers(1, 6))
def test_in_a_mixed_list_a_position_means_that_more_visible_rows_follow(
    book: Book, limit: int
) -> None:
    answers = followed(book, limit, mixed=True)
    total = sum(len(rows) for rows in book.contents)
    assert len(answers) == max(1, -(-total // limit))


@bounded
@given(books(), books(), st.integers(1, 6))
def test_in_a_mixed_list_the_ledgers_pages_do_not_show(book: Book, other: Book, limit: int) -> None:
    """The same visible rows, cut otherwise, with other people's between them or without."""
    rows = [row for page in book.contents for row in page]
    cuts = [len(page) for page in other.contents]
    again = [rows[sum(cuts[:i]) : sum(cuts[: i + 1])] for i in range(len(cuts))]
    other = Book([*again, rows[sum(cuts) :]], [])
    assert followed(book, limit, mixed=True) == followed(other, limit, mixed=True)


@bounded
@given(books(), st.integers(1, 6))
def test_in_a_list_of_ones_own_no_page_is_read_again_but_one_that_was_cut(
    book: Book, limit: int
) -> None:
    answers = followed(book, limit, mixed=False)
    cuts = sum(1 for _, position in answers if position is not None and position.after is not None)
    assert len(book.asked) == len(book.contents) + cuts


def test_no_more_pages_are_asked_for_than_the_answer_needs() -> None:
    own, mixed = Book.of([1, 2], [3, 4], [5]), Book.of([1, 2], [3, 4], [5])
    rows, position = run(limited(from_cursor(own.read, None), 2, START, mixed=False))
    assert (rows, position, own.asked) == ([row(1), row(2)], Position("1"), [None])
    # Whether more rows follow that the caller may see is told only by the next ones.
    rows, position = run(limited(from_cursor(mixed.read, None), 2, START, mixed=True))
    assert (rows, position) == ([row(1), row(2)], Position(None, mark(row(2))))
    assert mixed.asked == [None, "1"]


def test_a_page_longer_than_the_limit_is_cut_behind_a_marked_row() -> None:
    book = Book.of([1], [2, 3, 4])
    rows, position = run(limited(from_cursor(book.read, None), 2, START, mixed=False))
    assert (rows, position) == ([row(1), row(2)], Position("1", mark(row(2))))


@pytest.mark.parametrize("mixed", [False, True])
def test_rows_added_at_the_head_move_nothing(mixed: bool) -> None:
    book = Book.of([1, 2, 3])
    _, position = run(limited(from_cursor(book.read, None), 2, START, mixed=mixed))
    assert position is not None
    book = Book.of([8, 9, 1, 2, 3])
    source = from_cursor(book.read, position.cursor)
    assert run(limited(source, 2, position, mixed=mixed)) == ([row(3)], None)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_position_behind_a_row_that_is_gone_is_refused(mixed: bool) -> None:
    position = Position(None, mark(row(2)))
    with pytest.raises(InvalidCursor):
        run(limited(from_cursor(Book.of([1], [3]).read, None), 2, position, mixed=mixed))


def test_the_mark_of_a_row_is_that_of_its_id() -> None:
    changed = b'{"status":"failed","id":"1"}'
    assert mark(changed) == mark(row(1))
    assert mark(row(1)) != mark(row(2))
    assert mark(b'{"a":1}') != mark(b'{"a":2}')


# Through the gateway.


def _circling(ledger: FakeLedger, path: str, rows: bytes, length: int = 3) -> None:
    async def script(request: web.Request) -> web.Response:
        following = (int(request.query.get("cursor", "0")) + 1) % length
        link = f'<{path}?cursor={following}>; rel="next"'
        return web.Response(
            body=b'{"api_message":"OK","api_data":[' + rows + b"]}", headers={"Link": link}
        )

    ledger.run("GET", path, script)


@pytest.mark.parametrize("query", ["", "?limit=2"])
async def test_a_ledger_that_leads_in_a_circle_without_a_visible_row_is_broken(
    query: str, ledger: FakeLedger, make_client: MakeClient
) -> None:
    client = await make_client(cache__enabled="false")
    _circling(ledger, "/ledger/alice", b'{"id":"1","username":"bob"}')
    response = await client.get(f"/ledger{query}", headers=caller())
    assert (response.status, (await response.json())["api_message"]) == (502, "LEDGER_BROKEN")
    assert 3 <= len(ledger.calls) <= 16


async def test_a_stream_that_turns_into_a_circle_does_not_end_well(
    ledger: FakeLedger, make_client: MakeClient
) -> None:
    client = await make_client(cache__enabled="false")
    _circling(ledger, "/ledger", b'{"id":"1","username":"bob"}')
    response = await client.get("/ledger", headers=caller(*ADMIN))
    assert response.status == 200
    with pytest.raises(aiohttp.ClientError):
        await response.read()
    assert 3 <= len(ledger.calls) <= 16


# Lists without end.


def test_patience_ends_and_lasts_only_where_something_is_found() -> None:
    now = 0.0
    patience = Patience(10.0, lasting=True, now=lambda: now)
    for _ in range(3):
        now += 9.0
        patience.spend(found=True)
    assert now == 27.0
    now = 36.9
    patience.spend(found=False)
    now = 37.0
    with pytest.raises(LedgerTimeout):
        patience.spend(found=False)


def test_patience_with_one_page_does_not_last() -> None:
    now = 0.0
    patience = Patience(10.0, lasting=False, now=lambda: now)
    now = 9.9
    patience.spend(found=True)
    now = 10.0
    with pytest.raises(LedgerTimeout):
        patience.spend(found=True)


FOREIGN = ['{"id":"1","username":"bob"}', ""]


def endless(ledger: FakeLedger, path: str, row: str) -> None:
    """A list that always has another page, with the same row on it or none."""

    async def page(request: web.Request) -> web.Response:
        following = int(request.query.get("cursor", "0")) + 1
        headers = {"Link": f'</x?cursor={following}>; rel="next"'}
        return web.Response(text=f"[{row}]", content_type="application/json", headers=headers)

    ledger.run("GET", path, page)


@pytest.mark.parametrize("row", FOREIGN)
@pytest.mark.parametrize(
    ("target", "path", "who"),
    [
        ("/ledger/order/1", "/ledger/order/1", ("alice", "user")),
        ("/ledger/order/1?limit=5", "/ledger/order/1", ("alice", "user")),
        ("/ledger", "/ledger/alice", ("alice", "user")),
        ("/ledger?limit=5", "/ledger/alice", ("alice", "user")),
    ],
)
async def test_a_list_of_nothing_without_end_is_given_up(
    make_client: MakeClient, ledger: FakeLedger, target: str, path: str, who: Any, row: str
) -> None:
    endless(ledger, path, row)
    client = await make_client(ledger__total_timeout_s="0.3", ledger__read_timeout_s="0.3")
    async with asyncio.timeout(10):
        answer = await client.get(target, headers=caller(*who))
    assert (answer.status, (await answer.json())["api_message"]) == (504, "LEDGER_TIMEOUT")


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_leaves_ends_the_search_for_their_rows(
    make_client: MakeClient, ledger: FakeLedger, at_once: bool
) -> None:
    endless(ledger, "/ledger/order/1", FOREIGN[0])
    client = await make_client()
    headers = "".join(f"{name}: {value}\r\n" for name, value in caller().items())
    _, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(f"GET /ledger/order/1 HTTP/1.1\r\nHost: g\r\n{headers}\r\n".encode())
    async with asyncio.timeout(10):
        while len(ledger.calls) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0)
        if at_once:
            writer.transport.abort()
        else:
            writer.close()
        guarded = client.gateway.health._guarded  # type: ignore[attr-defined]
        seen, still = -1, 0
        while still < 50:
            still = still + 1 if len(ledger.calls) == seen else 0
            seen = len(ledger.calls)
            await asyncio.sleep(0.002)
    assert guarded.state()["in_flight"] == 0
