"""Readers of hostile text: it is refused, or means to them what it means to other readers.

Two readers that see two things in one text are how a check is passed by: what the gateway approved
must be what the ledger carries out, and what it filtered must be what the client then reads.

Broken text is whole text with a few bytes taken out or put in: it comes further than noise.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import msgspec
import pytest
from aiohttp import ClientSession, web
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yarl import URL

from gateway.app import create_app, shared
from gateway.authz import View
from gateway.batches import RowIndex
from gateway.rows import UnreadableBody, read_groups, shown
from schemas import strict_json
from schemas.queries import list_query, parse_query, rate_filters
from schemas.violations import Violations
from tests.conftest import GatewayServer, caller, config_for
from tests.fakes import FakeLedger
from tests.gateway.test_rows import (
    HIDDEN,
    SPACE,
    array_text,
    enveloped,
    in_turns,
    row_text,
    turns_of,
)

bounded = settings(max_examples=500, deadline=None, derandomize=True, database=None)

fewer = settings(bounded, max_examples=200)

FRAGMENTS = (
    *(b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\x00", b"\xff", b"\xc0\xae"),
    *(b"0", b"-", b"1e5", b"NaN,", b"-Infinity,", b'\\"', b"\\ud800", b"},{", b"/**/"),
    *(b'"username":"alice",', b'"username":"bob",', b',"lp_id":1'),
)
LENGTHS = st.sampled_from([0, 0, 0, 1, 5])
SPLICE = st.tuples(st.integers(0, 2000), LENGTHS, st.sampled_from(FRAGMENTS))
SPLICES = SPLICE.map(lambda splice: [splice]) | st.lists(SPLICE, max_size=3)
ALICE = View(owner="alice", hidden=HIDDEN, ambiguous=False)
EVERYBODY = View(owner=None, hidden=frozenset(), ambiguous=True)


def spliced(text: bytes, splices: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, put_in in splices:
        start = place % (len(text) + 1)
        text = text[:start] + put_in + text[start + length :]
    return text


# Requests.


DOCUMENTS = (
    '{"plain text":[12.50,-0,1E+5,true,null,"\\ud83d\\ude00"],"amount":"-0.10"}',
    '[[],{},"",{"a":{"b":[[1]]}},12345678901234567890123456789012345678]',
    '"text \\\\ \\" \\u00e9 é"',
    " [ 0.1 , -12.5e-3 , 9007199254740993 ] ",
)


@bounded
@given(st.sampled_from(DOCUMENTS), SPLICES)
@example(DOCUMENTS[0], [])
@example(DOCUMENTS[1], [])
def test_json_that_is_accepted_means_the_same_to_another_reader(
    whole: str, splices: list[tuple[int, int, bytes]]
) -> None:
    text = spliced(whole.encode(), splices)
    try:
        read = strict_json.parse(text)
    except strict_json.MalformedJSON:
        return
    assert msgspec.json.decode(text) == read


PIECES = (
    *("a", "B", "=", "=", "&", "&", "+", ";", ".", "é", " ", "\x00", "\x80", "%", "%4", "%zz"),
    *("%41", "%25", "%2541", "%26", "%3D", "%2B", "%3b", "%C3%A9", "%c3", "%FF", "%00", "%u0041"),
)


@bounded
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("a=%C3%A9&b&c=+%2B")
def test_a_query_that_is_accepted_means_the_same_to_another_reader(raw: str) -> None:
    try:
        pairs = parse_query(raw)
    except Violations:
        return
    assert parse_qsl(raw, keep_blank_values=True) == pairs


NAMES = st.sampled_from(["currency", "type", "source", "baseInstrumentCode", "metadata.a b&=é"])
TEXTS = st.text(st.sampled_from("aZ0 .-_&=+%#?;/\\\"'é日\U0001f600"), max_size=8)


@bounded
@given(st.dictionaries(NAMES, TEXTS, max_size=3))
@example({"source": "a&baseInstrumentCode=X", "metadata.a b&=é": "+%26"})
@example({"currency": "BTC", "type": "trade"})
def test_the_ledger_reads_the_filters_that_were_approved(asked: dict[str, str]) -> None:
    """And no other: nothing in a value opens a second parameter."""
    found = []
    for read in (lambda pairs: list_query(pairs).filters, rate_filters):
        try:
            found.append(read(list(asked.items())))
        except Violations:
            continue
    for filters in found:
        sent = str(URL("http://ledger/ledger", encoded=True).with_query(filters or None))
        assert sent.isascii()
        arrived = URL(sent).query
        assert sorted(arrived.items()) == sorted(filters) == sorted(asked.items())


# The ledger's answers.


# What rows may look like at all is the matter of `test_rows`.
ROWS = st.lists(
    st.sampled_from(
        [
            '{"id":"1","username":"alice","amount":"-0.10","lp_id":"secret"}',
            '{ "username" : "alice" , "lp_name" : {"username":"bob"} , "comment" : "é" }',
            '{"\\u0075sername":"al\\u0069ce","lp\\u005fid":[1,{"a":2}],"a":null}',
            '{"comment":"\\"username\\":\\"alice\\",","created_by_id":1,"username":"bob"}',
            '{"id":"2","username":"bob","a":["}","{"],"lp_id":1}',
            '{"username":"alice","username":"bob","lp_name":"secret"}',
            '{"username":"bob","user\\u006eame":"alice"}',
            '{"username":"alicea","a":{"lp_id":1}}',
            '{"username":["alice"],"a":1e400}',
            "{}",
        ]
    ),
    max_size=4,
)


def strictly(text: bytes) -> Any:
    """What a reader that knows nothing of the gateway reads; objects as their members in order."""

    def constant(name: str) -> Any:
        raise ValueError(name)

    return json.loads(text.decode(), object_pairs_hook=tuple, parse_constant=constant)


def assert_only_alices(body: bytes, index: RowIndex) -> None:
    """Rows are the body's own bytes, one after the other; what alice is shown of them is JSON,
    each row with one owner, who is alice, and without a hidden field.
    """
    end = 0
    for row in index.seen(EVERYBODY):
        end = body.index(row, end) + len(row)
    for row in strictly(b"[%b]" % shown(index.seen(ALICE), ALICE.hidden)):
        assert isinstance(row, tuple)
        assert [value for name, value in row if name == "username"] == ["alice"]
        assert not {name for name, _ in row} & HIDDEN


@bounded
@given(ROWS, SPACE, SPLICES)
@example(['{"username":"alice","lp_id":1}', '{"username":"bob"}'], "", [])
def test_of_a_broken_list_a_user_is_shown_their_own_rows_or_none(
    rows: list[str], space: str, splices: list[tuple[int, int, bytes]]
) -> None:
    body = spliced(enveloped(array_text(rows, space), space), splices)
    try:
        found, _ = turns_of(body)
    except UnreadableBody:
        return
    strictly(body)
    assert_only_alices(body, found)


@bounded
@given(ROWS, ROWS, SPACE, SPLICES)
@example(['{"username":"alice","lp_id":1}'], ['{"username":"bob"}'], "", [])
def test_of_broken_deposits_a_user_is_shown_their_own_rows_or_none(
    first: list[str], second: list[str], space: str, splices: list[tuple[int, int, bytes]]
) -> None:
    groups = [f'"BTC":{array_text(first, space)}', f'"USD"{space}:{array_text(second, space)}']
    body = spliced(enveloped(row_text(groups), space), splices)
    try:
        found, _ = in_turns(read_groups(body))
    except UnreadableBody:
        return
    strictly(body)
    batches = tuple(batch for _, index in found for batch in index.batches)
    assert_only_alices(body, RowIndex(batches))
    names = b",".join(name + b":0" for name, _ in found)
    assert len(strictly(b"{" + names + b"}")) == len(found)


# Cursors.


@dataclass(frozen=True)
class Question:
    """Who asks for a list, and for which."""

    username: str
    role: str
    path: str
    filters: tuple[tuple[str, str], ...]

    def target(self, **more: str) -> str:
        return f"{self.path}?{urlencode([('limit', '1'), *self.filters, *more.items()])}"


QUESTIONS = st.builds(
    Question,
    st.sampled_from(["alice", "bob", "alice.bob"]),
    st.sampled_from(["admin", "service", "user"]),
    st.sampled_from(
        ["/ledger", "/ledger/alice", "/ledger/bob", "/ledger/order/alice", "/ledger/order/bob"]
    ),
    st.dictionaries(
        st.sampled_from(["type", "currency"]), st.sampled_from(["a", "alice"]), max_size=2
    ).map(lambda filters: tuple(sorted(filters.items()))),
)


@dataclass
class Asked:
    """A gateway before a ledger whose lists have no end, and a client of it."""

    runner: asyncio.Runner
    client: ClientSession

    def status(self, question: Question, **more: str) -> tuple[int, str | None]:
        """The status of the answer, and the cursor that leads on from it."""
        return self.runner.run(self._get(question, question.target(**more)))

    async def _get(self, question: Question, target: str) -> tuple[int, str | None]:
        headers = caller(question.username, question.role)
        async with self.client.get(target, headers=headers) as answer:
            await answer.read()
            link = answer.links.get("next")
            query = parse_qs(urlsplit(str(link["url"])).query) if link is not None else {}
            return answer.status, query.get("cursor", [None])[0]


async def _endless(request: web.Request) -> web.Response:
    number = int(request.query.get("cursor", "0"))
    row = {"id": str(number), "username": request.headers["username"]}
    link = {"Link": f'<{request.path}?cursor={number + 1}>; rel="next"'}
    return web.json_response([row, {"id": f"{number}b", **row}], headers=link)


@contextlib.asynccontextmanager
async def _gateway() -> AsyncIterator[ClientSession]:
    async with contextlib.AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(FakeLedger(fallback=_endless).server())
        config = config_for(str(ledger.make_url("")).rstrip("/"), cache__enabled="false")
        gateway = GatewayServer(create_app(config, shared(config)).api)
        await stack.enter_async_context(gateway)
        yield await stack.enter_async_context(ClientSession(str(gateway.make_url(""))))


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with asyncio.Runner() as runner:
        gateway = _gateway()
        yield Asked(runner, runner.run(gateway.__aenter__()))
        runner.run(gateway.__aexit__(None, None, None))


@fewer
@given(QUESTIONS, QUESTIONS)
@example(*[Question("alice", "user", "/ledger", ())] * 2)
@example(*[Question("bob", "admin", "/ledger/order/alice", (("type", "a"),))] * 2)
def test_a_cursor_leads_on_only_where_it_was_given(
    asked: Asked, question: Question, other: Question
) -> None:
    status, cursor = asked.status(question)
    if cursor is None:
        assert status == 403
        return
    assert asked.status(question, cursor=cursor)[0] == 200
    assert (asked.status(other, cursor=cursor)[0] == 200) == (other == question)


@fewer
@given(SPLICES, st.integers(0, 200), st.sampled_from(".~=_-A") | st.characters(codec="utf-8"))
def test_a_broken_cursor_leads_nowhere(
    asked: Asked, splices: list[tuple[int, int, bytes]], place: int, char: str
) -> None:
    question = Question("alice", "user", "/ledger", ())
    _, cursor = asked.status(question)
    assert cursor is not None
    broken = spliced(cursor.encode(), splices).decode(errors="replace")
    before, after = cursor[: place % len(cursor)], cursor[place % len(cursor) :]
    for text in {broken, before + char + after, before + char + after[1:]} - {cursor}:
        assert asked.status(question, cursor=text)[0] == 400
