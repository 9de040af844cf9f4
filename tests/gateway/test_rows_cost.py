"""What it takes to read and to show what a ledger sends: time and memory in proportion to it."""

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest

import gateway.pieces
import gateway.rows
from gateway import views
from gateway.authz import Principal, Role, View
from gateway.batches import Batch, RowIndex, Rows
from gateway.calls import LedgerReply
from gateway.cursors import Position
from gateway.endpoints import Api
from gateway.members import values, without
from gateway.pages import Page, limited, mark, rebatched
from gateway.refusals import refusal
from gateway.rows import UnreadableBody, read_row, rows_in
from tests.gateway.test_rows import (
    ADMIN,
    DEPOSITS,
    HIDDEN,
    LIST,
    USER,
    in_turns,
    read_groups,
    read_rows,
)
from tests.unwatched import unwatched


@pytest.fixture(autouse=True)
def nobody_watches() -> Iterator[None]:
    """What the measurer of coverage costs is not the gateway's."""
    with unwatched():
        yield


# Two of these take long if each place in the one is tried with each in the other.
SPACE = b" " * 100_000
LONG = 2_000_000


def test_space_is_read_once() -> None:
    begun = time.process_time()
    found = read_groups(b'{"api_data":{"BTC":[]%b,"BTC":[]}}' % SPACE)
    assert found == [(b'"BTC"', [])] * 2
    for body in (SPACE * 20 + b"x", b'{"api_message"' + SPACE * 20, b'{"a":[]}' + SPACE * 20):
        with pytest.raises(UnreadableBody):
            read_rows(body)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("text", [b"1" * LONG, b"\\n" * (LONG // 2), b'\\"' * (LONG // 2)])
def test_long_text_takes_no_more_memory_than_a_few_copies(text: bytes) -> None:
    row = b'{"lp_id":1,"comment":"%b","numbers":"%b","%b":[]}' % (text, b"1" * 2000, text)
    groups = b'{"api_data":{"%b":[%b]}}' % (text, row)
    tracemalloc.start()
    try:
        assert len(read_rows(b"[%b]" % row)) == 1
        assert read_groups(groups)[0][0] == b'"%b"' % text
        assert len(without(row, HIDDEN)) == len(row) - len(b'"lp_id":1,')
        assert tracemalloc.get_traced_memory()[1] < 12 * len(row)
    finally:
        tracemalloc.stop()


def test_many_rows_in_the_place_of_one_are_not_looked_at() -> None:
    begun = time.process_time()
    for body in (b"[%b{}]", b'{"api_data":[%b{}]}'):
        with pytest.raises(UnreadableBody):
            read_row(body % (b"{}," * 2_000_000))
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("last", ["", ',"0":[]', ' ,"0" : [{}]'])
def test_many_groups_are_read_and_shown_in_turns_with_others(last: str) -> None:
    texts = ",".join([f'"{name}":[]' for name in range(20_000)]) + last
    body = f'{{"api_data":{{{texts}}}}}'.encode()
    groups, turns = in_turns(gateway.rows.read_groups(body))
    assert [key for key, _ in groups] == [b'"%d"' % name for name in range(20_000)] + (
        [b'"0"'] if last else []
    )
    assert turns >= 20
    _, turns = in_turns(views.shown(DEPOSITS, groups, ADMIN))
    assert turns >= 20


def test_rows_that_nobody_sees_are_passed_over_in_turns_with_others() -> None:
    index, _ = in_turns(gateway.rows.read_rows(b"[%b{}]" % (b"{}," * 500_000)))
    _, turns = in_turns(views.shown(LIST, index, USER))
    assert turns >= 4


# Read as one piece: what seems to be between two rows stands within one.
NESTED = b'{"username":"alice","lp_id":1,"legs":[%b{}]}' % (b"{}," * 100)


def test_rows_that_cannot_be_read_apart_are_shown_in_turns_with_others() -> None:
    index, _ = in_turns(gateway.rows.read_rows(b"[%b]" % b",".join([NESTED] * 20_000)))
    (body, _), turns = in_turns(views.shown(LIST, index, USER))
    assert body.count(b"username") == 20_000
    assert b"lp_id" not in body
    assert turns >= 15


def test_what_is_cut_apart_takes_no_more_memory_for_braces_in_it() -> None:
    row = b'{"comment":"%b"}' % (b"{" * 2_000_000)
    batch = Batch(row, ("alice",))
    tracemalloc.start()
    try:
        assert batch.rows(USER) == [row]
        assert tracemalloc.get_traced_memory()[1] < 4 * len(row)
    finally:
        tracemalloc.stop()


def test_the_rows_of_a_long_list_stay_where_they_came() -> None:
    row = b'{"username":"alice","comment":"%b"}' % (b"x" * 200)
    body = b"[%b]" % b",".join([row] * 20_000)
    tracemalloc.start()
    try:
        index, _ = in_turns(gateway.rows.read_rows(body))
        assert len(index) == 20_000
        assert tracemalloc.get_traced_memory()[1] < len(body) // 2
    finally:
        tracemalloc.stop()


def _page(rows: int) -> Page:
    array = b"[%b{}]" % (b"{}," * (rows - 1))
    index, _ = in_turns(gateway.rows.read_rows(array))
    return Page(None, index.seen(ADMIN), "more")


async def _of(*found: Page) -> AsyncIterator[Page]:
    for page in found:
        yield page


async def _gathered(pages: AsyncIterator[Page]) -> list[int]:
    return [len(page.rows) async for page in pages]


def test_a_long_page_is_cut_into_short_ones_once() -> None:
    page = _page(1_000_000)
    begun = time.process_time()
    sizes, turns = in_turns(_gathered(rebatched(_of(page, page), 100)))
    assert sizes == [100] * 20_000
    assert turns >= 8
    assert time.process_time() - begun < 5


async def _chunks(view: View, first: Rows, source: AsyncIterator[Page]) -> int:
    return len([chunk async for chunk in views.stream(LIST, view, first, source)])


def test_a_long_page_is_streamed_in_turns_with_others() -> None:
    page = _page(500_000)
    assert isinstance(page.rows, Rows)
    chunks, turns = in_turns(_chunks(ADMIN, page.rows, _of(page)))
    assert chunks >= 8
    assert turns >= 8


def test_a_row_is_looked_for_in_a_long_page_in_turns_with_others() -> None:
    position = Position(after=mark(b'{"id":1}'))
    page = _page(100_000)
    last = Page(None, [b'{"id":1}', b"{}"], None)
    found, turns = in_turns(limited(_of(page, last), 10, position, mixed=True))
    assert found == ([b"{}"], None)
    assert turns >= 10


def test_many_rates_are_read_in_turns_with_others() -> None:
    body = b" [%b{}]" % (b"{}," * 500_000)
    rates, turns = in_turns(gateway.rows.read_rates(body))
    assert rates == body.strip()
    assert turns >= 4


def test_a_refusal_of_megabytes_is_not_looked_at() -> None:
    said = b'{"message":"%b","api_data":[%b{}]}' % (b"\xc2\xad" * 500_000, b"{}," * 1_000_000)
    begun = time.process_time()
    error = refusal(LedgerReply(404, said), Api.LEDGER, Principal("root", Role.ADMIN, 0.0))
    assert str(error) == "The ledger refused this."
    assert time.process_time() - begun < 0.05


async def test_a_row_of_megabytes_is_shown_while_others_have_their_turn() -> None:
    members = b",".join([b'"%d":1' % name for name in range(300_000)])
    row = b'{"username":"alice","lp_id":"\\n",%b}' % members
    index = await gateway.rows.read_rows(b"[%b]" % row)
    waits = []

    async def others() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.001)
            waits.append(time.monotonic() - begun)

    running = asyncio.create_task(others())
    await asyncio.sleep(0)
    body, _ = await views.shown(LIST, index, USER)
    running.cancel()
    assert row.replace(b'"lp_id":"\\n",', b"") in body
    assert len(waits) > 5


@pytest.mark.parametrize("text", ['"%d":[]', '"%d":[{"a":1}]', ' "%d" : [ ] '])
def test_many_groups_are_read_in_short_pieces(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(gateway.pieces, "PIECE", 50)
    longest = 0

    def noted(piece: bytes) -> Iterator[tuple[bytes, bytes]]:
        nonlocal longest
        longest = max(longest, len(piece))
        return values(piece)

    monkeypatch.setattr(gateway.rows, "values", noted)
    texts = ",".join([text % name for name in range(1000)])
    found = read_groups(f'{{"api_data":{{{texts}}}}}'.encode())
    assert [key for key, _ in found] == [b'"%d"' % name for name in range(1000)]
    assert longest < 1000


def test_the_rows_of_many_groups_are_counted_in_a_moment() -> None:
    groups = read_groups(b'{"api_data":{"BTC":[{},{}]}}')
    assert rows_in([(key, RowIndex((Batch(b"{},{}", (None, None)),))) for key, _ in groups]) == 2
    many = [(b'"BTC"', RowIndex((Batch(b"{}", (None,)),)))] * 1_000_000
    begun = time.process_time()
    assert rows_in(many) == 1_000_000
    assert time.process_time() - begun < 0.5
