"""Rows as text: what passes is what was written, and what is taken out leaves the rest alone."""

import contextlib
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway.pieces
import gateway.rows
from gateway import views
from gateway.authz import View
from gateway.batches import Batch, RowIndex
from gateway.endpoints import ENDPOINTS, Reply
from gateway.members import each_without, without
from gateway.rows import (
    UnreadableBody,
    identity,
    read_rate,
    read_row,
    shown,
)
from gateway.strictness import MAX_NUMBER


class Row(NamedTuple):
    """The bytes of a row, and whose it is."""

    raw: bytes
    owner: str | None


def rows_of(index: RowIndex) -> list[Row]:
    """The rows of an index, each with its owner."""
    owners = [owner for batch in index.batches for owner in batch.owners]
    return [Row(*pair) for pair in zip(index.seen(ADMIN), owners, strict=True)]


def read_rows(body: bytes) -> list[Row]:
    """The rows of a list reply."""
    return rows_of(turns_of(body)[0])


def read_rates(body: bytes) -> bytes:
    """The rates of a reply."""
    return in_turns(gateway.rows.read_rates(body))[0]


def read_groups(body: bytes) -> list[tuple[bytes, list[Row]]]:
    """The groups of a deposits reply."""
    groups, _ = in_turns(gateway.rows.read_groups(body))
    return [(key, rows_of(index)) for key, index in groups]


HIDDEN = frozenset({"lp_id", "lp_name", "created_by_id"})
NAMES = (
    *sorted(HIDDEN),
    "username",
    "id",
    "amount",
    "comment",
    "lp_idx",
    "Username",
    "",
    "é",
    "日",
)

LIST = next(one for one in ENDPOINTS if one.reply is Reply.ROWS)
DEPOSITS = next(one for one in ENDPOINTS if one.reply is Reply.GROUPS)
T = TypeVar("T")

bounded = settings(max_examples=100, deadline=None)


# JSON text, every token of it spelled in one of the ways that the grammar allows.

SPACE = st.text(" \t\r\n", max_size=2)
ODD_NUMBERS = (
    *("0", "-0", "1e5", "1E+5", "1.10", "0.30000000000000004", "10233780.57", "-1.5e-7", "1e400"),
    "12345678901234567890123456789012345678",
    "-0.00000000000000000000000000000000000001",
)
NUMBERS = st.sampled_from(ODD_NUMBERS) | st.from_regex(
    r"-?(0|[1-9][0-9]{0,37})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)
PLAIN = st.characters(exclude_categories=["Cs"], exclude_characters='"\\', min_codepoint=32)
ESCAPES = st.sampled_from(['\\"', "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t", "\\u0000"])
TRICKS = st.sampled_from(
    ['{\\"lp_id\\":1}', '\\"username\\"', "\\\\\\\\", ",", "}", "]", ":", "lp_id", "username"]
)


def _unit(code: int, upper: bool) -> str:
    return f"\\u{code:04X}" if upper else f"\\u{code:04x}"


def _escaped(char: str, upper: bool) -> str:
    units = char.encode("utf-16-be")
    codes = (units[:2], units[2:])
    return "".join(_unit(int.from_bytes(code), upper) for code in codes if code)


ESCAPED = st.builds(_escaped, PLAIN, st.booleans())
STRINGS = st.lists(PLAIN | ESCAPES | ESCAPED | TRICKS, max_size=6).map(
    lambda parts: '"' + "".join(parts) + '"'
)


def spelled(text: str) -> st.SearchStrategy[str]:
    """A JSON string that means the text, any of its characters escaped."""
    return st.builds(_spelled, st.just(text), st.just(0) | st.integers(0), st.booleans())


def _spelled(text: str, escapes: int, upper: bool) -> str:
    chars = (_escaped(c, upper) if escapes >> i & 1 else c for i, c in enumerate(text))
    return '"' + "".join(chars) + '"'


def _member(key: str, value: str, spaces: tuple[str, str, str, str]) -> str:
    a, b, c, d = spaces
    return f"{a}{key}{b}:{c}{value}{d}"


def members(keys: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> Any:
    """One member of an object, with the space around its tokens."""
    return st.builds(_member, keys, values, st.tuples(SPACE, SPACE, SPACE, SPACE))


def _containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arrays = st.builds(
        lambda inner, space: f"[{space}{','.join(inner)}]", st.lists(values, max_size=3), SPACE
    )
    objects = st.lists(members(KEYS, values), max_size=3).map(lambda m: "{" + ",".join(m) + "}")
    return arrays | objects


KEYS = st.one_of([spelled(name) for name in NAMES]) | STRINGS
SCALARS = STRINGS | NUMBERS | st.sampled_from(["true", "false", "null"])
VALUES = st.recursive(SCALARS, _containers, max_leaves=6)
ROWS = st.lists(members(KEYS, VALUES), max_size=5)


def row_text(texts: list[str]) -> str:
    """The row made of member texts."""
    return "{" + ",".join(texts) + "}"


def meaning(text: str | bytes) -> Any:
    """What JSON text means: an object is its members in order, duplicates too; a number its text.

    It is tagged, so that no string or array can be taken for one.
    """
    return json.loads(
        text,
        object_pairs_hook=lambda pairs: ("object", pairs),
        parse_int=lambda number: ("number", number),
        parse_float=lambda number: ("number", number),
    )


def key_of(member: str) -> str:
    """The key of a member text."""
    _, pairs = meaning("{" + member + "}")
    return str(pairs[0][0])


def owner_of(text: str) -> str | None:
    """Whose row it is, by the plain rule: one member `username`, and it is a string."""
    _, pairs = meaning(text)
    owners = [value for key, value in pairs if key == "username"]
    return owners[0] if len(owners) == 1 and isinstance(owners[0], str) else None


def array_text(rows: list[str], space: str) -> str:
    """An array of rows with space around each."""
    return "[" + ",".join(f"{space}{row}{space}" for row in rows) + space + "]"


def enveloped(data: str, space: str = "") -> bytes:
    """The body of a reply."""
    return f'{space}{{{space}"api_message" : "OK",{space}"api_data":{space}{data}}}{space}'.encode()


# Taking members out.


@bounded
@given(ROWS)
def test_only_the_hidden_members_are_taken_out_and_no_other_byte(texts: list[str]) -> None:
    raw = row_text(texts).encode()
    kept = [text for text in texts if key_of(text) not in HIDDEN]
    expected = raw if len(kept) == len(texts) else row_text(kept).encode()
    assert without(raw, HIDDEN) == expected


@bounded
@given(ROWS)
def test_what_is_left_means_the_row_minus_its_hidden_members(texts: list[str]) -> None:
    raw = row_text(texts).encode()
    tag, pairs = meaning(raw)
    left = without(raw, HIDDEN)
    assert meaning(left) == (tag, [pair for pair in pairs if pair[0] not in HIDDEN])
    assert without(left, HIDDEN) == left


@bounded
@given(ROWS)
def test_where_nothing_is_hidden_a_row_stays_as_it_is(texts: list[str]) -> None:
    raw = row_text(texts).encode()
    assert shown([raw], frozenset()) == raw
    assert without(raw, frozenset()) == raw


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (rb"{}", rb"{}"),
        (rb"{ }", rb"{ }"),
        (rb'{"lp_id":1}', rb"{}"),
        (rb'{"lp_id":1,"lp_name":"x","created_by_id":null}', rb"{}"),
        (rb'{"lp_id":1,"a":2}', rb'{"a":2}'),
        (rb'{"a":2,"lp_id":1}', rb'{"a":2}'),
        (rb'{"a":2,"lp_id":1,"b":3}', rb'{"a":2,"b":3}'),
        (rb'{ "a" : 2 , "lp_id" : 1 , "b" : 3 }', rb'{ "a" : 2 , "b" : 3 }'),
        (rb'{"lp_id":1,"a":2,"lp_id":3}', rb'{"a":2}'),
        (rb'{"lp\u005fid":1,"a":2}', rb'{"a":2}'),
        (rb'{"\u006c\u0070\u005F\u0069\u0064":1,"a":2}', rb'{"a":2}'),
        (rb'{"lp_id\u0000":1}', rb'{"lp_id\u0000":1}'),
        (rb'{"lp_idx":1,"xlp_id":2,"LP_ID":3}', rb'{"lp_idx":1,"xlp_id":2,"LP_ID":3}'),
        (rb'{"a":{"lp_id":1}}', rb'{"a":{"lp_id":1}}'),
        (rb'{"a":[{"lp_id":1}],"lp_id":{"lp_id":[{},","]}}', rb'{"a":[{"lp_id":1}]}'),
        (rb'{"a":"lp_id","b":"\"lp_id\":1"}', rb'{"a":"lp_id","b":"\"lp_id\":1"}'),
        (rb'{"a":"\\","lp_id":"\\\"","b":"\\"}', rb'{"a":"\\","b":"\\"}'),
        (rb'{"a":"},{","lp_id":"]}","b":"[{"}', rb'{"a":"},{","b":"[{"}'),
        (rb'{"lp_id":"a:b","c":":"}', rb'{"c":":"}'),
    ],
)
def test_a_hidden_member_is_found_wherever_and_however_it_is_written(
    raw: bytes, left: bytes
) -> None:
    assert without(raw, HIDDEN) == left


FLAT_VALUES = st.sampled_from(
    ['"x"', '"lp_id"', '"},{"', '"["', '""', "1.10", "null", '{"lp_id":1}']
)
FLAT_ROWS = st.lists(members(st.sampled_from([f'"{name}"' for name in NAMES]), FLAT_VALUES))


@bounded
@given(st.lists(FLAT_ROWS | ROWS, max_size=5))
def test_from_many_rows_the_same_is_taken_out_as_from_each(texts: list[list[str]]) -> None:
    rows = [row_text(text).encode() for text in texts]
    assert each_without(rows, HIDDEN) == b",".join([without(row, HIDDEN) for row in rows])
    for row, left in zip(rows, meaning(b"[%b]" % each_without(rows, HIDDEN)), strict=True):
        tag, pairs = meaning(row)
        assert left == (tag, [pair for pair in pairs if pair[0] not in HIDDEN])


def test_a_hidden_name_may_be_any_text() -> None:
    assert without('{"prénom":1,"a":2}'.encode(), frozenset({"prénom"})) == b'{"a":2}'
    assert without(rb'{"pr\u00e9nom":1,"a":2}', frozenset({"prénom"})) == b'{"a":2}'
    assert without(rb'{"a\"b":1,"a":2}', frozenset({'a"b'})) == b'{"a":2}'


# Reading lists.


@bounded
@given(st.lists(ROWS.map(row_text), max_size=4), SPACE)
def test_the_rows_of_a_list_are_the_bytes_that_were_written_and_belong_to_their_one_username(
    rows: list[str], space: str
) -> None:
    expected = [Row(row.encode(), owner_of(row)) for row in rows]
    array = array_text(rows, space)
    for body in (enveloped(array, space), f"{space}{array}{space}".encode()):
        assert read_rows(body) == expected


@bounded
@given(st.lists(st.tuples(KEYS, st.lists(ROWS.map(row_text), max_size=2)), max_size=3), SPACE)
def test_the_groups_of_deposits_are_the_bytes_that_were_written(
    groups: list[tuple[str, list[str]]], space: str
) -> None:
    texts = [f"{space}{key}{space}:{space}{array_text(rows, space)}" for key, rows in groups]
    found = read_groups(enveloped(row_text(texts), space))
    assert found == [
        (key.encode(), [Row(row.encode(), owner_of(row)) for row in rows]) for key, rows in groups
    ]


@bounded
@given(ROWS.map(row_text), SPACE)
def test_the_row_of_a_registered_action_is_the_bytes_that_were_written(
    row: str, space: str
) -> None:
    array = array_text([row], space)
    assert read_row(enveloped(row, space)) == row.encode()
    assert read_row(enveloped(array, space)) == array.encode()
    assert read_row(f"{space}{array}{space}".encode()) == array.encode()


@bounded
@given(VALUES, SPACE)
def test_rates_are_the_bytes_that_were_written(value: str, space: str) -> None:
    rate = b'{"id":%b}' % value.encode()
    body = f"{space}{rate.decode()}{space}".encode()
    assert read_rate(body) == rate
    assert read_rates(b"[%b]" % body) == b"[%b]" % body
    with pytest.raises(UnreadableBody):
        read_rates(body)
    with pytest.raises(UnreadableBody):
        read_rate(b"[%b]" % body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":"0007","title":"Not found","message":"in the ledger\'s own words"}',
        b'{"message":"no such thing"}',
        b'{"error":{"reason":"a secret"}}',
        b'{"error":null}',
        b'{"username":"bob","amount":"a secret"}',
        b'{"api_message":"OK","api_data":[{"id":"1","username":"bob"}]}',
    ],
)
def test_an_error_is_no_rate(body: bytes) -> None:
    for read, text in ((read_rate, body), (read_rates, b"[%b]" % body)):
        with pytest.raises(UnreadableBody):
            read(text)


@pytest.mark.parametrize("element", [b"1", b"null", b'"rate"', b"[]"])
def test_what_is_no_object_is_no_rate(element: bytes) -> None:
    with pytest.raises(UnreadableBody):
        read_rates(b"[%b]" % element)


@pytest.mark.parametrize("rate", [b"{}", b'{"amount":1}', b'{"id":"1","code":"x","error":1}'])
def test_a_ledger_may_leave_fields_of_a_rate_out_and_add_some(rate: bytes) -> None:
    assert read_rate(rate) == rate
    assert read_rates(b"[%b,%b]" % (rate, rate)) == b"[%b,%b]" % (rate, rate)


# Whose a row is.


@pytest.mark.parametrize(
    ("raw", "owner"),
    [
        (rb'{"username":"alice"}', "alice"),
        (rb'{ "username" : "alice" }', "alice"),
        (rb'{"user\u006eame":"alice"}', "alice"),
        (rb'{"username":"\u0061lice"}', "alice"),
        (rb'{"username":"alice","comment":"\"username\""}', "alice"),
        (rb'{"username":"alice","comment":"username"}', "alice"),
        (rb'{"username":"username"}', "username"),
        (rb'{"username":"alice","more":{"username":"bob"}}', "alice"),
        (rb'{"more":{"username":"bob"},"username":"alice"}', "alice"),
        (rb'{"username":"alice","Username":"bob","user_name":"bob"}', "alice"),
        (rb'{"username":"alice","username":"alice"}', None),
        (rb'{"username":"alice","username":"bob"}', None),
        (rb'{"username":"bob","user\u006eame":"alice"}', None),
        (rb'{"\u0075sername":"bob","user\u006eame":"alice"}', None),
        (rb'{"username":1,"username":"alice"}', None),
        (rb'{"username":"alice","username":null}', None),
        (rb'{"username":"alice","username":{"username":"alice"}}', None),
        (rb'{"username":null}', None),
        (rb'{"username":1}', None),
        (rb'{"username":["alice"]}', None),
        (rb'{"username":{"username":"alice"}}', None),
        (rb'{"comment":"username"}', None),
        (rb'{"more":{"username":"alice"}}', None),
        (rb'{"Username":"alice"}', None),
        (rb"{}", None),
    ],
)
def test_the_owner_is_said_once_or_not_at_all(raw: bytes, owner: str | None) -> None:
    assert read_rows(b"[" + raw + b"]") == [Row(raw, owner)]


USER = View(owner="alice", hidden=HIDDEN, ambiguous=False)
SERVICE = View(owner=None, hidden=frozenset(), ambiguous=False)
ADMIN = View(owner=None, hidden=frozenset(), ambiguous=True)


@pytest.mark.parametrize(
    ("owner", "user", "service", "admin"),
    [
        ("alice", True, True, True),
        ("bob", False, True, True),
        ("Alice", False, True, True),
        ("alice ", False, True, True),
        ("", False, True, True),
        (None, False, False, True),
    ],
)
def test_a_row_passes_for_its_owner_and_an_ambiguous_one_for_an_admin_alone(
    owner: str | None, user: bool, service: bool, admin: bool
) -> None:
    rows = (b"{}", b'{"id":1}', b"{}")
    index = RowIndex((Batch(b",".join(rows), ("carol", owner, None)),))
    found = [rows[1] in index.seen(view) for view in (USER, SERVICE, ADMIN)]
    assert found == [user, service, admin]
    assert list(index.seen(ADMIN)) == list(rows)
    for view in (USER, SERVICE, ADMIN):
        assert len(index.seen(view)) == len(list(index.seen(view)))


def visible(row: Row, view: View) -> bool:
    """Whether a view may see a row, by the plain rule."""
    if view.owner is not None:
        return row.owner == view.owner
    return view.ambiguous or row.owner is not None


OWN = members(spelled("username"), spelled("alice") | spelled("bob"))
OWNED_ROWS = st.builds(lambda own, texts: row_text([*texts, own]), OWN, ROWS)


@bounded
@given(st.lists(OWNED_ROWS | ROWS.map(row_text), max_size=6), SPACE, st.sampled_from([1, 50, 1000]))
def test_each_view_sees_its_rows_in_their_order_whatever_stands_in_them(
    texts: list[str], space: str, size: int
) -> None:
    rows = [Row(text.encode(), owner_of(text)) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway.pieces, "PIECE", size)
        index, _ = turns_of(enveloped(array_text(texts, space), space))
    for view in (USER, SERVICE, ADMIN):
        expected = [row.raw for row in rows if visible(row, view)]
        assert list(index.seen(view)) == expected
        assert len(index.seen(view)) == len(expected)


@pytest.mark.parametrize(
    "rows",
    [
        # One name too many here and one too few there.
        ['{"username":"alice","username":"bob"}', '{"id":1}'],
        ['{"id":1}', '{"username":"alice","username":"alice"}'],
        ['{"username":"alice","username":"bob"}', '{"username":null}'],
        [r'{"username":"alice","user\u006eame":"bob"}', '{"username":7}'],
        ['{"username":"alice","username":1e400}', '{"username":"alice"}'],
        ['{"username":"alice","more":{"username":"bob"}}', '{"more":{"username":"alice"}}'],
        # As many braces as rows and more, where they mean something and where they do not.
        ['{"username":"alice","a":"{"}', '{"username":"alice"}'],
        ['{"username":"alice","a":"},{"}', '{"username":"bob","a":{}}'],
        ['{"username":"alice","a":"}, ]"}', '{"username":"alice","a":[] }'],
    ],
)
def test_one_row_does_not_change_whose_another_is(rows: list[str]) -> None:
    for texts in (rows, rows[::-1]):
        expected = [Row(text.encode(), owner_of(text)) for text in texts]
        assert read_rows(f"[{' , '.join(texts)}]".encode()) == expected


# Every way to write what stands between two rows, or seems to.
ODD_ROWS = [
    '{"username":"alice","comment":"},{"}',
    r'{"username":"bob","comment":"\"},{\""}',
    '{"username":"alice","legs":[{"a":1},{"username":"bob"}] }',
    '{"username":"carol","deep":{"a":[{},{},{"b":[{}\t,\r\n{}]}]}}',
    '{ "id":1 } ',
    "{}",
]


def in_turns(work: Coroutine[Any, Any, T]) -> tuple[T, int]:
    """What comes of some work, and how often others got their turn meanwhile."""
    turns = 0
    try:
        while True:
            work.send(None)
            turns += 1
    except StopIteration as stopped:
        return stopped.value, turns


def turns_of(body: bytes) -> tuple[RowIndex, int]:
    """What a long body is read as, and how often others got their turn meanwhile."""
    return in_turns(gateway.rows.read_rows(body))


@pytest.mark.parametrize(
    "form",
    [
        "[%s]",
        '{"api_message":"OK","api_data":[%s]}',
        ' { "api_message" : "x" ,\n"api_data":\t[ %s ] }\n',
    ],
)
@pytest.mark.parametrize("size", [1, 50, 1000])
def test_a_long_list_is_read_in_turns_with_others(
    monkeypatch: pytest.MonkeyPatch, form: str, size: int
) -> None:
    monkeypatch.setattr(gateway.pieces, "PIECE", size)
    monkeypatch.setattr(gateway.rows, "PIECE", size)
    texts = [text for _ in range(30) for text in ODD_ROWS]
    found, turns = turns_of((form % " , ".join(texts)).encode())
    assert rows_of(found) == [Row(text.strip().encode(), owner_of(text)) for text in texts]
    assert turns >= len(texts) * 30 // (size + 1000)


@pytest.mark.parametrize("view", [USER, SERVICE, ADMIN])
def test_a_long_list_is_shown_in_turns_with_others(
    monkeypatch: pytest.MonkeyPatch, view: View
) -> None:
    monkeypatch.setattr(gateway.pieces, "PIECE", 50)
    texts = [text.strip() for _ in range(30) for text in ODD_ROWS]
    index, _ = turns_of(f"[{','.join(texts)}]".encode())
    (body, dropped), turns = in_turns(views.shown(LIST, index, view))
    seen = [text for text in texts if visible(Row(text.encode(), owner_of(text)), view)]
    assert body == b'{"api_message":"%b","api_data":[%b]}' % (
        LIST.message.encode(),
        ",".join(seen).encode(),
    )
    assert dropped == len(texts) - len(seen)
    assert turns >= 20


def test_long_deposits_are_read_and_shown_in_turns_with_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway.pieces, "PIECE", 50)
    monkeypatch.setattr(gateway.rows, "PIECE", 50)
    texts = ",".join([text.strip() for text in ODD_ROWS] * 30)
    body = f'{{"api_data":{{"BTC":[{texts}],"USD":[{texts}]}}}}'.encode()
    groups, turns = in_turns(gateway.rows.read_groups(body))
    assert turns >= 40
    (shown, dropped), turns = in_turns(views.shown(DEPOSITS, groups, ADMIN))
    assert shown == body.replace(b"{", b'{"api_message":"%b",' % DEPOSITS.message.encode(), 1)
    assert dropped == 0
    assert turns >= 40


@pytest.mark.parametrize(
    "groups",
    [
        '"BTC":[{"id":1}],"BTC":[{"id":2}]',
        '"BTC":[{"id":1}],"USD":[],"BTC":[{"id":2}]',
        '"BTC":[{"id":1}],"USD":[],"BTC":[{"id":1}]',
        r'"BTC":[],"\u0042TC":[]',
        r'"a\\":[ ] , "\"" : [{"a":"}"}] ,"]":[]',
    ],
)
def test_groups_are_told_apart_by_where_they_stand(groups: str) -> None:
    pairs = json.loads(f"{{{groups}}}", object_pairs_hook=list)
    found = read_groups(b'{"api_data":{%b}}' % groups.encode())
    assert [(json.loads(key), [json.loads(row.raw) for row in rows]) for key, rows in found] == [
        (key, [dict(row) for row in rows]) for key, rows in pairs
    ]


@pytest.mark.parametrize(
    "body",
    [
        '{"api_message":"OK","api_data":[%s],"count":[2]}',
        '{"api_message":"OK","api_data":[%s],"more":{"a":[1]}}',
        '{"api_data":[%s],"api_message":"OK"}',
        r'{"api_message":"\u004fK","api_data":[%s]}',
    ],
)
def test_the_rows_of_an_unusual_envelope_are_read_in_turns_all_the_same(
    monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(gateway.pieces, "PIECE", 10)
    monkeypatch.setattr(gateway.rows, "PIECE", 10)
    texts = ['{"username":"alice"}'] * 50 + ODD_ROWS
    index, turns = turns_of((body % ",".join(texts)).encode())
    assert rows_of(index) == [Row(text.strip().encode(), owner_of(text)) for text in texts]
    assert turns >= 25


@pytest.mark.parametrize("message", [b"O\nK", b"\x00", b"\xff", b"\xc3\xa9", b"\x7f"])
def test_an_envelope_is_read_as_strictly_as_its_rows(message: bytes) -> None:
    body = b'{"api_message":"%b","api_data":[{}]}' % message
    try:
        json.loads(body.decode())
    except ValueError:
        with pytest.raises(UnreadableBody):
            read_rows(body)
    else:
        assert read_rows(body) == [Row(b"{}", None)]


@pytest.mark.parametrize(
    "end", ["", "]", "]]", "],[]", "]}", ",]", ",{]", ',{"a":1]', ",1]", ',{"a":NaN}]', ",{}]x"]
)
def test_a_list_that_goes_wrong_after_many_rows_is_not_read(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(gateway.pieces, "PIECE", 10)
    body = ("[" + ",".join(ODD_ROWS * 3) + end).encode()
    if end == "]":
        assert len(read_rows(body)) == len(ODD_ROWS) * 3
        return
    for text in (body, b'{"api_message":"OK","api_data":' + body + b"}"):
        with pytest.raises(UnreadableBody):
            read_rows(text)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (rb'{"id":"a-1","x":1}', rb'"a-1"'),
        (rb'{"x":1, "id" : 1.10 }', rb"1.10"),
        (rb'{"\u0069d":"a-1"}', rb'"a-1"'),
        (rb'{"more":{"id":"a-1"}}', rb'{"more":{"id":"a-1"}}'),
        (rb"{}", rb"{}"),
    ],
)
def test_a_row_is_known_by_its_id_or_else_by_all_of_it(raw: bytes, expected: bytes) -> None:
    assert identity(raw) == expected


# What cannot be read.

LONG = b"9" * (MAX_NUMBER + 1)
DEEP = b"[" * 100_000 + b"]" * 100_000
NOT_JSON = {
    "nothing": b"",
    "space": b"  ",
    "HTML": b"<html></html>",
    "cut": b'[{"a":1}',
    "trailing data": b"[{}] x",
    "two documents": b"[{}][{}]",
    "a trailing comma": b"[{},]",
    "a trailing comma in a row": b'[{"a":1,}]',
    "a missing comma": b'[{"a":1 "b":2}]',
    "a missing colon": b'[{"a" 1}]',
    "a key that is no string": b"[{1:2}]",
    "single quotes": b"[{'a':1}]",
    "a comment": b"[{}/**/]",
    "a vertical tab": b"[\x0b{}]",
    "a form feed": b'[{"a"\x0c:1}]',
    "a no-break space": "[\xa0{}]".encode(),
    "NaN": b'[{"a":NaN}]',
    "Infinity": b'[{"a":-Infinity}]',
    "half a word": b'[{"a":tru}]',
    "a word in capitals": b'[{"a":True}]',
    "a leading zero": b'[{"a":01}]',
    "a leading plus": b'[{"a":+1}]',
    "a leading point": b'[{"a":.5}]',
    "a trailing point": b'[{"a":1.}]',
    "an empty exponent": b'[{"a":1e}]',
    "two signs": b'[{"a":--1}]',
    "two points": b'[{"a":1.2.3}]',
    "a hexadecimal number": b'[{"a":0x1F}]',
    "an unknown escape": b'[{"a":"\\x41"}]',
    "a cut escape": b'[{"a":"\\u12"}]',
    "an escape that is no number": b'[{"a":"\\u12G4"}]',
    "an unknown escape in a key": b'[{"\\x41":1}]',
    "half a surrogate pair": b'[{"a":"\\ud83d"}]',
    "half a surrogate pair in a key": b'[{"\\ude00":1}]',
    "half a surrogate pair in the username": b'[{"username":"\\ud83d"}]',
    "a control character": b'[{"a":"\x01"}]',
    "a line break in a string": b'[{"a":"\n"}]',
    "NUL": b'[{"a":"\x00"}]',
    "NUL in a key": b'[{"\x00":1}]',
    "bad UTF-8": b'[{"a":"\xff"}]',
    "cut UTF-8": b'[{"a":"\xc3"}]',
    "overlong UTF-8": b'[{"a":"\xc0\xaf"}]',
    "a surrogate in UTF-8": b'[{"a":"\xed\xa0\x80"}]',
    "bad UTF-8 in a key": b'[{"\xff":1}]',
    "a BOM": b"\xef\xbb\xbf[{}]",
    "UTF-16": "[{}]".encode("utf-16"),
    "5000 digits": b'[{"a":' + b"1" * 5000 + b"}]",
    "one digit too many": b'[{"a":' + LONG + b"}]",
    "too many decimal places": b'[{"a":1.' + LONG + b"}]",
    "an endless exponent": b'[{"a":1e' + LONG + b"}]",
    "5000 digits, deep": b'[{"a":[{"b":-' + b"1" * 5000 + b"}]}]",
    "100 000 levels": b'[{"a":' + DEEP + b"}]",
    "100 000 levels, open": b'[{"a":' + b'[{"a":' * 100_000,
}
READERS: dict[str, Callable[[bytes], Any]] = {
    "rows": read_rows,
    "rows in an envelope": lambda body: read_rows(b'{"api_data":' + body + b"}"),
    "groups": lambda body: read_groups(b'{"api_data":{"BTC":' + body + b"}}"),
    "an action's row": read_row,
    "a rate": lambda body: read_rate(b'{"id":' + body + b"}"),
    "rates": read_rates,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_a_strict_reader_refuses_is_refused(
    body: bytes, reader: Callable[[bytes], Any]
) -> None:
    with pytest.raises(UnreadableBody):
        reader(body)


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_a_strict_reader_refuses_is_refused_where_every_row_says_whose_it_is(
    body: bytes,
) -> None:
    owned = body.replace(b"[{", b'[{"username":"alice",')
    first = body.replace(b"[", b'[{"username":"alice"},', 1)
    for text in (owned, first):
        with pytest.raises(UnreadableBody):
            read_rows(text)


@pytest.mark.parametrize("key", ["username", "x"])
def test_what_is_too_deep_by_a_little_is_refused_like_any_other(key: str) -> None:
    """A row is read by itself, too, a few calls further on than the list."""
    for depth in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit() + 10):
        body = b'[{"%b":%b}]' % (key.encode(), b"[" * depth + b"]" * depth)
        for read in (read_rows, read_row):
            with contextlib.suppress(UnreadableBody):
                read(body)


@pytest.mark.parametrize("shift", range(50))
def test_a_number_that_is_too_long_is_found_wherever_it_begins(shift: int) -> None:
    text = b'[{"username":"alice","a":"%b","b":%b}]'
    assert len(read_rows(text % (b"x" * shift, LONG[1:]))) == 1
    with pytest.raises(UnreadableBody):
        read_rows(text % (b"x" * shift, LONG))


@pytest.mark.parametrize("rows", [b"[1]", b'["a"]', b"[null]", b"[[]]", b"[{},true]", b"[[{}]]"])
def test_a_row_that_is_no_object_makes_the_list_unreadable(rows: bytes) -> None:
    for body in (rows, b'{"api_data":' + rows + b"}"):
        with pytest.raises(UnreadableBody):
            read_rows(body)
        with pytest.raises(UnreadableBody):
            read_row(body)
    with pytest.raises(UnreadableBody):
        read_groups(b'{"api_data":{"BTC":' + rows + b"}}")


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"null",
        b'"rows"',
        b'{"api_data":null}',
        b'{"api_data":"rows"}',
        b'{"api_data":{"a":1}}',
        b'{"API_DATA":[]}',
        b'{"more":{"api_data":[]}}',
    ],
)
def test_what_is_no_list_is_not_read_as_one(body: bytes) -> None:
    with pytest.raises(UnreadableBody):
        read_rows(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"BTC":[]}',
        b'{"api_data":[]}',
        b'{"api_data":null}',
        b'{"api_data":{"BTC":{}}}',
        b'{"api_data":{"BTC":null}}',
        b'{"api_data":{"BTC":[],"ETH":1}}',
    ],
)
def test_what_is_no_object_of_arrays_is_not_read_as_groups(body: bytes) -> None:
    with pytest.raises(UnreadableBody):
        read_groups(body)


@pytest.mark.parametrize(
    "body", [b"[]", b"[{},{}]", b"{}", b'{"api_data":[]}', b'{"api_data":1}', b'{"id":"a-1"}']
)
def test_what_is_not_one_row_is_no_answer_to_an_action(body: bytes) -> None:
    with pytest.raises(UnreadableBody):
        read_row(body)


def test_no_rows_and_no_groups_can_be_read() -> None:
    assert read_rows(b'{"api_data":[]}') == []
    assert read_rows(b" [ ] ") == []
    assert read_groups(b'{"api_data":{}}') == []
    assert read_groups(b'{"api_data": { } }') == []
    assert read_groups(b'{"api_data":{"BTC":[]}}') == [(b'"BTC"', [])]


def test_the_longest_number_and_longer_text_pass() -> None:
    number, text = b"9" * MAX_NUMBER, b'"' + b"9" * 5000 + b'"'
    raw = b'{"a":%b,"b":%b,"%b":1}' % (number, text, b"1" * 5000)
    assert read_rows(b"[" + raw + b"]") == [Row(raw, None)]
    assert read_rate(raw) == raw


def test_what_stands_beside_the_rows_in_the_envelope_does_not_matter() -> None:
    body = b'{"username":"bob","rows":[{}],"api_data":[{"username":"alice"}],"api_message":null}'
    assert [row.owner for row in read_rows(body)] == ["alice"]
