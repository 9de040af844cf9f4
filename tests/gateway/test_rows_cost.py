"""What it takes to read and to show what a ledger sends: time and memory in proportion to it."""

import time
import tracemalloc

import pytest

import gateway.rows
from gateway import views
from gateway.members import without
from gateway.rows import UnreadableBody, read_row
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
