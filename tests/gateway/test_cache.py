"""The cache: what is kept, for how long, and that no reader gets what a write has made old."""

import asyncio
import base64
import gc
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway import views
from gateway.authz import View
from gateway.cache import CachedLedger, bounded_memo
from gateway.calls import LedgerCall, LedgerReply
from gateway.config import Cache
from gateway.endpoints import ENDPOINTS, Reply
from gateway.errors import LedgerBroken, LedgerTimeout, OutcomeUnknown
from gateway.freshness import Lifetime, Wishes
from gateway.generations import Generations
from gateway.kept import Found, Outcome
from gateway.representations import Representation, represent
from gateway.rows import UnreadableBody, read_rows

TAG = "ledger"
TTL = 10.0
READ = LedgerCall("GET", "/ledger", (), "alice", "r-1")
WRITE = LedgerCall("POST", "/ledger", (), "root", "r-2", b"{}", "key-1")

Read = asyncio.Task[Found[bytes]]


@dataclass
class StubClient:
    """A ledger client whose replies are released by hand.

    `calls` are what was sent; `sending` is called at that moment.
    """

    calls: list[LedgerCall] = field(default_factory=list)
    replies: list[asyncio.Future[LedgerReply]] = field(default_factory=list)
    sending: Callable[[], None] = lambda: None

    async def send(self, call: LedgerCall) -> LedgerReply:
        self.sending()
        self.calls.append(call)
        self.replies.append(asyncio.get_running_loop().create_future())
        return await self.replies[-1]

    def answer(self, index: int, body: bytes = b"", status: int = 200) -> None:
        """Releases the reply to the call with that index."""
        self.replies[index].set_result(LedgerReply(status, body))

    def fail(self, index: int, error: Exception) -> None:
        """Lets the call with that index fail."""
        self.replies[index].set_exception(error)


@dataclass
class World:
    """A cache before a stub, with a clock driven by hand."""

    client: StubClient
    cached: CachedLedger
    generations: Generations
    now: float = 0.0

    async def begin_read(
        self,
        call: LedgerCall = READ,
        *,
        parse: Callable[[bytes], bytes] = bytes,
        tag: str = TAG,
        ttl: float = TTL,
        fresh: bool = False,
    ) -> Read:
        """A read that has gone as far as it can without the ledger."""
        lifetime, wish = Lifetime(ttl), Wishes(no_cache=fresh)

        async def parse_in_turn(body: bytes) -> bytes:
            return parse(body)

        reading = self.cached.read(call, parse_in_turn, tag, lifetime, wish)
        read = asyncio.create_task(reading)
        await settle()
        return read

    async def begin_write(self, *, tag: str = TAG) -> asyncio.Task[LedgerReply]:
        """A write that has been sent."""
        write = asyncio.create_task(self.cached.write(WRITE, tag))
        await settle()
        return write

    async def read(self, body: bytes, **options: Any) -> bytes:
        """What a read gets if the ledger, should it be asked, says `body`."""
        asked = len(self.client.calls)
        read = await self.begin_read(**options)
        if len(self.client.calls) > asked:
            self.client.answer(-1, body)
        known = len(self.client.calls) == asked
        assert (await read).outcome is (Outcome.HIT if known else Outcome.MISS)
        return await got(read)


async def got(read: Read) -> bytes:
    """The body that a read was given."""
    value = (await read).reading.value
    assert value is not None
    return value


async def settle() -> None:
    """Lets every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def build(*, enabled: bool = True, max_bytes: int = 1 << 20) -> World:
    client, generations = StubClient(), Generations()
    settings = Cache(enabled, max_bytes, rates_ttl_s=TTL, ledger_ttl_s=TTL, max_stale_s=0.0)
    cached = CachedLedger(client, settings, generations, now=lambda: world.now)  # type: ignore[arg-type]
    world = World(client, cached, generations)
    return world


@pytest.fixture
def world() -> World:
    return build()


def other(path: str = "/ledger/bob", *query: tuple[str, str]) -> LedgerCall:
    return LedgerCall("GET", path, query, "alice", "r-1")


# How long, and how much.


async def test_a_reply_is_known_until_its_time_is_up(world: World) -> None:
    assert await world.read(b"old") == b"old"
    world.now = TTL - 0.001
    assert await world.read(b"new") == b"old"
    world.now = TTL
    assert await world.read(b"new") == b"new"
    assert len(world.client.calls) == 2


async def test_its_time_begins_when_the_ledger_was_asked(world: World) -> None:
    read = await world.begin_read()
    world.now = 5.0
    world.client.answer(0, b"old")
    await read
    world.now = TTL - 0.001
    assert await world.read(b"new") == b"old"
    world.now = TTL
    assert await world.read(b"new") == b"new"


async def test_a_read_without_a_time_is_not_kept(world: World) -> None:
    assert await world.read(b"1", ttl=0.0) == b"1"
    assert await world.read(b"2", ttl=0.0) == b"2"
    assert world.cached.statistics()["entries"] == 0


async def test_being_read_does_not_make_a_reply_last_longer(world: World) -> None:
    await world.read(b"old")
    for second in range(1, 10):
        world.now = float(second)
        assert await world.read(b"new") == b"old"
    world.now = TTL
    assert await world.read(b"new") == b"new"


async def test_the_bytes_kept_stay_within_the_bound() -> None:
    world = build(max_bytes=10_000)
    for number in range(50):
        await world.read(b"x" * 1000, call=other(f"/ledger/user{number}"))
        assert world.cached.statistics()["bytes"] <= 10_000
    assert 2 <= world.cached.statistics()["entries"] <= 10


async def test_many_small_replies_count_for_more_than_their_bodies() -> None:
    world = build(max_bytes=100_000)
    for number in range(500):
        await world.read(b"", call=other(f"/ledger/user{number}"))
    assert world.cached.statistics()["entries"] < 200


async def test_a_long_query_counts_as_much_as_a_body() -> None:
    world = build(max_bytes=100_000)
    for number in range(50):
        query = ("source", f"{number}" + "\U0001f600" * 2000)
        await world.read(b"", call=other("/ledger/bob", query))
    assert 5 <= world.cached.statistics()["entries"] <= 12


async def test_many_filters_count_for_what_it_takes_to_keep_them() -> None:
    world = build(max_bytes=1 << 30)
    tracemalloc.start()
    try:
        for number in range(200):
            query = [(f"metadata.{number:05}{key:02}", f"{number:06}{key}") for key in range(32)]
            await world.read(b"[]", call=other(f"/{number}", *query))
            world.client.calls.clear()
            world.client.replies.clear()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= world.cached.statistics()["bytes"]


def list_of(users: int, more: str) -> bytes:
    """A reply with a row for each of so many users."""
    rows = ",".join(f'{{"username":"user-{number}"{more}}}' for number in range(users))
    return b"[%b]" % rows.encode()


LIST = next(one for one in ENDPOINTS if one.reply is Reply.ROWS)


async def keep(world: World, number: int, body: bytes) -> Found[Any]:
    """Reads a list of its own."""
    call = other(f"/ledger/order/{number:040}", ("limit", str(1000)))
    reading = asyncio.create_task(world.cached.read(call, read_rows, TAG, Lifetime(TTL)))
    await settle()
    world.client.answer(-1, bytes(bytearray(body)))
    world.client.calls.clear()
    world.client.replies.clear()
    return await reading


async def keep_for(world: World, number: int, body: bytes, users: int) -> None:
    """Reads a list of its own, and shows it to so many users."""
    found = await keep(world, number, body)
    for user in range(users):
        await show(found, View(f"user-{user}", frozenset({"lp_id"}), ambiguous=False))


async def show(found: Found[Any], view: View) -> Representation:
    """Shows a list to who may see that of it."""
    assert found.kept is not None
    representation = await represent(*await views.shown(LIST, found.reading.value, view))
    found.kept.remember((LIST.name, view), representation)
    return representation


# What makes the parts of an entry; a dataclass is made in `<string>`. The rest of pytest goes on.
MADE_BY = [
    tracemalloc.Filter(True, place)
    for place in ("*/gateway/*", "*/cachetools/*", "*/dataclasses.py", "<string>")
]


@pytest.mark.parametrize(
    ("users", "more"), [(0, ""), (1, ""), (6, ""), (50, ""), (6, f',"a":"{"x" * 100}"'), (500, "")]
)
@pytest.mark.parametrize("shown_to", [0, 1, 100])
async def test_what_is_kept_takes_no_more_memory_than_it_counts_for(
    users: int, more: str, shown_to: int
) -> None:
    world, body = build(max_bytes=1 << 30), list_of(users, more)
    await keep_for(world, 0, body, shown_to)
    counted = world.cached.statistics()["bytes"]

    async def work() -> None:
        for number in range(1, 101):
            await keep_for(world, number, body, shown_to)

    taken = await taken_by(work())
    counted = world.cached.statistics()["bytes"] - counted
    assert counted / 4 < taken <= counted


async def taken_by(work: Awaitable[object]) -> int:
    """Bytes that are still there of what was made of an entry."""
    tracemalloc.start()
    try:
        await work
        gc.collect()
        taken = tracemalloc.take_snapshot().filter_traces(MADE_BY)
    finally:
        tracemalloc.stop()
    return sum(trace.size for trace in taken.traces)


async def test_codings_of_views_take_no_more_memory_than_is_counted_for() -> None:
    """However little shorter they are."""
    world, rng = build(max_bytes=1 << 30), random.Random(1)
    noise = [base64.b64encode(rng.randbytes(1000)).decode() for _ in range(30)]
    rows = [f'{{"username":"user-{n % 3}","a":"{text}"}}' for n, text in enumerate(noise)]
    body = b"[%b]" % ",".join(rows).encode()
    shown_to = [View(None, frozenset(), ambiguous) for ambiguous in (True, False)]
    shown_to += [View(f"user-{n}", frozenset({"lp_id"}), ambiguous=False) for n in range(3)]
    coded = []

    async def work() -> None:
        for number in range(1, 21):
            found = await keep(world, number, body)
            for view in shown_to:
                coded.append((await (await show(found, view)).chosen(["gzip"]))[0])

    await show(await keep(world, 0, body), shown_to[0])
    counted = world.cached.statistics()["bytes"]
    taken = await taken_by(work())
    counted = world.cached.statistics()["bytes"] - counted
    assert counted / 4 < taken <= counted
    assert set(coded) == {"gzip"}


async def test_what_was_used_longest_ago_goes_first() -> None:
    world = build(max_bytes=10_000)
    first, second, third = (other(f"/ledger/user{number}") for number in range(3))
    for call in (first, second):
        await world.read(b"x" * 1000, call=call)
    await world.read(b"", call=first)
    await world.read(b"x" * 1000, call=third)
    asked = len(world.client.calls)
    assert await world.read(b"", call=first) == b"x" * 1000
    assert len(world.client.calls) == asked
    assert await world.read(b"again", call=second) == b"again"


async def test_a_reply_larger_than_the_bound_is_passed_on_and_drives_nothing_out() -> None:
    world = build(max_bytes=9000)
    await world.read(b"small")
    for _ in range(2):
        large = await world.read(b"x" * 5000, call=other())
        assert large == b"x" * 5000
    assert len(world.client.calls) == 3
    assert await world.read(b"") == b"small"


@pytest.mark.parametrize("status", [400, 404, 409, 410, 422, 429, 503])
async def test_a_refusal_is_passed_on_unread_and_not_kept(status: int, world: World) -> None:
    for count in (1, 2):
        read = await world.begin_read(parse=_unreadable)
        world.client.answer(-1, b"why", status)
        found = await read
        assert (found.reading.reply, found.reading.value) == (LedgerReply(status, b"why"), None)
        assert (found.outcome, found.kept) == (Outcome.MISS, None)
        assert len(world.client.calls) == count
    assert world.cached.statistics()["entries"] == 0


def _unreadable(_body: bytes) -> bytes:
    raise UnreadableBody("not rows")


async def test_what_cannot_be_read_is_an_error_for_all_who_wait_and_is_not_kept(
    world: World,
) -> None:
    reads = [await world.begin_read(parse=_unreadable) for _ in range(3)]
    world.client.answer(0, b"<html>")
    found = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(error) for error in found] == [LedgerBroken] * 3
    assert world.cached.statistics()["entries"] == 0
    assert await world.read(b"good") == b"good"


async def test_a_body_is_read_once_however_often_it_is_given(world: World) -> None:
    bodies: list[bytes] = []

    def parse(body: bytes) -> bytes:
        bodies.append(body)
        return body

    reads = [await world.begin_read(parse=parse) for _ in range(3)]
    world.client.answer(0, b"rows")
    assert {await got(read) for read in reads} == {b"rows"}
    assert await world.read(b"", parse=parse) == b"rows"
    assert bodies == [b"rows"]


async def test_what_the_reply_said_beside_its_body_is_kept_too(world: World) -> None:
    read = await world.begin_read()
    world.client.replies[0].set_result(LedgerReply(200, b"rows", next_cursor="c-2", elapsed=0.5))
    await read
    found = await (await world.begin_read())
    assert found.outcome is Outcome.HIT
    assert (found.reading.reply.next_cursor, found.reading.reply.elapsed) == ("c-2", 0.5)


async def test_nothing_is_kept_where_the_cache_is_off() -> None:
    world = build(enabled=False)
    assert await world.read(b"1") == b"1"
    assert await world.read(b"2") == b"2"
    assert world.cached.statistics() == {
        **{"entries": 0, "bytes": 0},
        **{"hits": 0, "stale": 0, "misses": 2},
    }


# What is the same question.


@pytest.mark.parametrize(
    "call",
    [
        other("/ledger/bob"),
        other("/ledger", ("limit", "2")),
        other("/ledger", ("status", "pending")),
        other("/ledger/"),
        other("/Ledger"),
    ],
)
async def test_another_path_or_query_is_another_question(call: LedgerCall, world: World) -> None:
    await world.read(b"ledger")
    assert await world.read(b"other", call=call) == b"other"


async def test_parts_of_a_query_do_not_run_into_each_other(world: World) -> None:
    queries: list[tuple[tuple[str, str], ...]] = [
        (("a", "b"), ("c", "d")),
        (("a", "b,c=d"),),
        (("a", "b&c=d"),),
        (("ab", ""), ("c", "d")),
        (("c", "d"), ("a", "b")),
    ]
    for query in queries:
        await world.read(repr(query).encode(), call=other("/ledger", *query))
    for query in queries:
        known = await world.read(b"wrong", call=other("/ledger", *query))
        assert known == repr(query).encode()


async def test_who_asks_does_not_matter(world: World) -> None:
    await world.read(b"raw")
    call = LedgerCall("GET", "/ledger", (), "bob", "r-99")
    assert await world.read(b"other", call=call) == b"raw"


# What a write makes old.


async def test_after_a_write_the_ledger_is_asked_again(world: World) -> None:
    await world.read(b"old")
    write = await world.begin_write()
    world.client.answer(-1, b"[]", 201)
    assert (await write).status == 201
    assert await world.read(b"new") == b"new"


async def test_a_write_changes_the_generation_before_it_is_sent(world: World) -> None:
    before, seen = world.generations.of(TAG), []
    world.client.sending = lambda: seen.append(world.generations.of(TAG))
    write = await world.begin_write()
    assert seen != [before]
    world.client.answer(0, b"", 201)
    await write
    # And again when it is answered.
    assert world.generations.of(TAG) not in (before, *seen)


async def test_while_a_write_is_under_way_the_old_reply_is_not_given(world: World) -> None:
    await world.read(b"old")
    write = await world.begin_write()
    assert await world.read(b"perhaps new") == b"perhaps new"
    world.client.answer(1, b"", 201)
    await write


async def test_a_read_during_a_write_does_not_fill_the_cache_for_after_it(world: World) -> None:
    write = await world.begin_write()
    assert await world.read(b"old") == b"old"
    world.client.answer(0, b"", 201)
    await write
    assert await world.read(b"new") == b"new"


async def test_a_read_from_before_a_write_never_fills_the_cache_with_the_old_state(
    world: World,
) -> None:
    read = await world.begin_read()
    write = await world.begin_write()
    world.client.answer(1, b"", 201)
    await write
    world.client.answer(0, b"old")
    assert await got(read) == b"old"
    assert await world.read(b"new") == b"new"


async def test_a_read_after_a_write_does_not_join_one_from_before_it(world: World) -> None:
    early = await world.begin_read()
    write = await world.begin_write()
    world.client.answer(1, b"", 201)
    await write
    late = await world.begin_read()
    assert len(world.client.calls) == 3
    world.client.answer(2, b"new")
    world.client.answer(0, b"old")
    assert await got(early) == b"old"
    assert await got(late) == b"new"
    # The early one came last, and still is not what the next reader gets.
    assert await world.read(b"newer") in (b"new", b"newer")


async def test_a_read_from_before_a_write_does_not_drive_out_what_came_after_it(
    world: World,
) -> None:
    early = await world.begin_read()
    write = await world.begin_write()
    world.client.answer(1, b"", 201)
    await write
    assert await world.read(b"new") == b"new"
    world.client.answer(0, b"old")
    assert await got(early) == b"old"
    asked = len(world.client.calls)
    assert await world.read(b"newer") == b"new"
    assert len(world.client.calls) == asked


async def test_a_read_after_a_write_does_not_join_one_from_during_it(world: World) -> None:
    write = await world.begin_write()
    during = await world.begin_read()
    world.client.answer(0, b"", 201)
    await write
    after = await world.begin_read()
    assert len(world.client.calls) == 3
    world.client.answer(1, b"old")
    world.client.answer(2, b"new")
    assert (await got(during), await got(after)) == (b"old", b"new")


async def test_a_read_during_a_write_does_not_join_one_from_before_it(world: World) -> None:
    before = await world.begin_read()
    write = await world.begin_write()
    during = await world.begin_read()
    assert [call.method for call in world.client.calls] == ["GET", "POST", "GET"]
    for index in range(3):
        world.client.answer(index)
    await asyncio.gather(before, write, during)


@pytest.mark.parametrize(
    "error", [OutcomeUnknown("?"), LedgerBroken("!"), RuntimeError("a bug")], ids=repr
)
async def test_a_write_that_fails_may_have_been_carried_out(error: Exception, world: World) -> None:
    write = await world.begin_write()
    assert await world.read(b"old") == b"old"
    world.client.fail(0, error)
    with pytest.raises(type(error)):
        await write
    assert await world.read(b"new") == b"new"


@pytest.mark.parametrize("status", [409, 422, 429, 503])
async def test_a_write_that_is_refused_makes_old_too(status: int, world: World) -> None:
    write = await world.begin_write()
    assert await world.read(b"old") == b"old"
    world.client.answer(0, b"", status)
    assert (await write).status == status
    assert await world.read(b"new") == b"new"


async def test_a_write_whose_caller_is_cancelled_makes_old_too(world: World) -> None:
    write = await world.begin_write()
    assert await world.read(b"old") == b"old"
    write.cancel()
    await asyncio.wait((write,))
    assert await world.read(b"new") == b"new"


async def test_a_write_is_sent_every_time_and_its_reply_is_not_kept(world: World) -> None:
    for count in (1, 2):
        write = await world.begin_write()
        world.client.answer(-1, b"same")
        await write
        assert len(world.client.calls) == count
    assert world.cached.statistics()["entries"] == 0


async def test_two_writes_at_once_are_two_calls(world: World) -> None:
    writes = [await world.begin_write() for _ in range(2)]
    assert len(world.client.calls) == 2
    for index in range(2):
        world.client.answer(index)
    await asyncio.gather(*writes)


async def test_a_write_makes_old_only_what_depends_on_it(world: World) -> None:
    rates = other("/rates")
    await world.read(b"rates", call=rates, tag="rates:1")
    await world.read(b"rows")
    write = await world.begin_write()
    world.client.answer(-1, b"", 201)
    await write
    assert await world.read(b"new", call=rates, tag="rates:1") == b"rates"
    assert await world.read(b"new") == b"new"


async def test_a_failing_read_leaves_what_is_known(world: World) -> None:
    await world.read(b"known")
    read = await world.begin_read(fresh=True)
    world.client.fail(-1, LedgerTimeout("late"))
    with pytest.raises(LedgerTimeout):
        await read
    assert await world.read(b"new") == b"known"


# One call for many.


async def test_who_asks_the_same_at_once_shares_one_call(world: World) -> None:
    reads = [await world.begin_read() for _ in range(100)]
    assert len(world.client.calls) == 1
    world.client.answer(0, b"shared")
    assert {await got(read) for read in reads} == {b"shared"}
    assert world.cached.statistics()["misses"] == 100


async def test_who_asks_something_else_does_not_wait(world: World) -> None:
    first = await world.begin_read()
    assert await world.read(b"bob's", call=other()) == b"bob's"
    assert not first.done()
    world.client.answer(0)
    await first


async def test_one_call_is_shared_where_the_cache_is_off() -> None:
    world = build(enabled=False)
    reads = [await world.begin_read() for _ in range(3)]
    assert len(world.client.calls) == 1
    world.client.answer(0, b"shared")
    assert {await got(read) for read in reads} == {b"shared"}


@pytest.mark.parametrize("leaving", [0, 1, 2])
async def test_who_leaves_takes_nobody_along(leaving: int, world: World) -> None:
    reads = [await world.begin_read() for _ in range(3)]
    reads[leaving].cancel()
    await asyncio.wait((reads[leaving],))
    world.client.answer(0, b"shared")
    found = [await got(read) for read in reads if read is not reads[leaving]]
    assert found == [b"shared"] * 2
    assert len(world.client.calls) == 1


async def test_a_call_that_everybody_left_still_fills_the_cache(world: World) -> None:
    reads = [await world.begin_read() for _ in range(2)]
    for read in reads:
        read.cancel()
    await asyncio.wait(reads)
    world.client.answer(0, b"kept")
    await settle()
    assert await world.read(b"new") == b"kept"


async def test_a_call_that_everybody_left_may_fail_unheard(world: World) -> None:
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context))
    read = await world.begin_read()
    read.cancel()
    await asyncio.wait((read,))
    world.client.fail(0, LedgerBroken("!"))
    await settle()
    world.client.replies.clear()
    assert heard == []
    assert await world.read(b"new") == b"new"


async def test_an_error_reaches_all_who_wait_and_is_not_kept(world: World) -> None:
    reads = [await world.begin_read() for _ in range(3)]
    world.client.fail(0, LedgerTimeout("late"))
    found = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(error) for error in found] == [LedgerTimeout] * 3
    assert len(world.client.calls) == 1
    assert await world.read(b"new") == b"new"


async def test_a_call_that_is_over_is_not_joined(world: World) -> None:
    await world.read(b"1", ttl=0.0)
    read = await world.begin_read(ttl=0.0)
    assert len(world.client.calls) == 2
    world.client.answer(1, b"2")
    assert await got(read) == b"2"


# Fresh.


async def test_fresh_asks_the_ledger_whatever_is_known(world: World) -> None:
    await world.read(b"old")
    assert await world.read(b"new", fresh=True) == b"new"
    assert len(world.client.calls) == 2
    # And what it got is what the next reader gets.
    assert await world.read(b"newer") == b"new"


async def test_fresh_does_not_join_a_call_that_is_under_way(world: World) -> None:
    early = await world.begin_read()
    fresh = await world.begin_read(fresh=True)
    assert len(world.client.calls) == 2
    world.client.answer(0, b"old")
    world.client.answer(1, b"new")
    assert (await got(early), await got(fresh)) == (b"old", b"new")


async def test_an_earlier_call_that_comes_later_does_not_undo_a_fresh_one(world: World) -> None:
    early = await world.begin_read()
    fresh = await world.begin_read(fresh=True)
    world.client.answer(1, b"new")
    assert await got(fresh) == b"new"
    world.client.answer(0, b"old")
    assert await got(early) == b"old"
    assert await world.read(b"newest") in (b"new", b"newest")


async def test_who_comes_after_a_fresh_read_joins_it_and_not_the_older_one(world: World) -> None:
    early = await world.begin_read()
    fresh = await world.begin_read(fresh=True)
    joined = await world.begin_read()
    assert len(world.client.calls) == 2
    world.client.answer(0, b"old")
    world.client.answer(1, b"new")
    assert [await got(read) for read in (early, fresh, joined)] == [b"old", b"new", b"new"]


async def test_a_fresh_read_can_be_joined_when_an_older_one_has_come(world: World) -> None:
    early = await world.begin_read(ttl=0.0)
    fresh = await world.begin_read(fresh=True)
    world.client.answer(0, b"old")
    assert await got(early) == b"old"
    joined = await world.begin_read()
    assert len(world.client.calls) == 2
    world.client.answer(1, b"new")
    assert [await got(read) for read in (fresh, joined)] == [b"new", b"new"]


# Counting, and generations by themselves.


async def test_hits_misses_entries_and_bytes_are_counted(world: World) -> None:
    await world.read(b"x" * 500)
    for _ in range(3):
        await world.read(b"")
    await world.read(b"y" * 700, call=other())
    statistics = world.cached.statistics()
    assert (statistics["hits"], statistics["misses"], statistics["entries"]) == (3, 2, 2)
    assert 2400 <= statistics["bytes"] <= 7000


def test_every_bump_gives_a_generation_that_was_not_there_before() -> None:
    generations, seen = Generations(), set()
    for _ in range(1000):
        seen.add(generations.of(TAG))
        generations.bump(TAG)
    assert len(seen) == 1000
    assert Generations().of("another") == generations.of("another")


_FORK = """
import os
from gateway.generations import Generations

generations = Generations()
before = generations.of("ledger")
child = os.fork()
if child == 0:
    generations.bump("ledger")
    os._exit(0)
os.waitpid(child, 0)
bumped_by_the_child = generations.of("ledger")
came, went = os.pipe()
child = os.fork()
if child == 0:
    os.write(went, str(generations.of("ledger")).encode())
    os.read(came, 0)
    os._exit(0)
os.waitpid(child, 0)
print(before != bumped_by_the_child, os.read(came, 99).decode() == str(bumped_by_the_child))
"""


def test_generations_are_shared_with_processes_forked_later() -> None:
    """In a process of its own: a fork beside the threads of a test run is not safe."""
    done = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_a_memo_forgets_what_was_used_longest_ago() -> None:
    memo = bounded_memo(2)
    memo["a"] = memo["b"] = 1
    assert memo["a"] == 1
    memo["c"] = 1
    assert set(memo) == {"a", "c"}


# Beyond its time, and what a caller wishes.

PRICES = Lifetime(TTL, revalidate_s=5.0, if_error_s=50.0, max_stale_s=50.0)
NO_WISHES = Wishes()


async def begin(world: World, wish: Wishes = NO_WISHES, lifetime: Lifetime = PRICES) -> Read:
    """A read with all that can be said of it, as far as it gets without the ledger."""

    async def parse(body: bytes) -> bytes:
        return body

    read = asyncio.create_task(world.cached.read(READ, parse, TAG, lifetime, wish))
    await settle()
    return read


async def filled(world: World) -> World:
    read = await begin(world)
    world.client.answer(0, b"old")
    await read
    return world


async def test_what_is_fetched_again_is_fetched_once_and_nobody_waits(world: World) -> None:
    await filled(world)
    world.now = TTL + 1
    for _ in range(5):
        found = await (await begin(world))
        assert (found.reading.value, found.outcome) == (b"old", Outcome.HIT)
        assert (found.age, found.left) == (TTL + 1, -1.0)
    assert len(world.client.calls) == 2
    world.client.answer(1, b"new")
    await settle()
    assert (await (await begin(world))).reading.value == b"new"
    assert len(world.client.calls) == 2


async def test_a_fetch_that_nobody_waits_for_may_fail_and_is_tried_again(world: World) -> None:
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context))
    await filled(world)
    world.now = TTL + 1
    for count in (2, 3, 4):
        assert (await (await begin(world))).reading.value == b"old"
        assert len(world.client.calls) == count
        world.client.fail(-1, LedgerTimeout("late"))
        await settle()
    world.client.replies.clear()
    assert heard == []


@pytest.mark.parametrize("status", [503, None])
async def test_an_old_reply_tides_over_a_failure_and_does_not_get_younger(
    world: World, status: int | None
) -> None:
    await filled(world)
    for now in (TTL + 5, TTL + 50 - 0.001):
        world.now = now
        read = await begin(world)
        if status is None:
            world.client.fail(-1, LedgerTimeout("late"))
        else:
            world.client.answer(-1, status=status)
        found = await read
        assert (found.reading.value, found.outcome, found.age) == (b"old", Outcome.STALE, now)
    assert world.cached.statistics()["stale"] == 2
    world.now = TTL + 50
    read = await begin(world)
    world.client.fail(-1, LedgerTimeout("late"))
    with pytest.raises(LedgerTimeout):
        await read


async def test_an_old_reply_that_grows_too_old_during_the_call_is_not_given(world: World) -> None:
    await filled(world)
    world.now = TTL + 49
    read = await begin(world)
    world.now = TTL + 50
    world.client.fail(-1, LedgerTimeout("late"))
    with pytest.raises(LedgerTimeout):
        await read


@pytest.mark.parametrize("fails", [True, False])
async def test_a_reply_that_came_during_the_call_tides_over_better_than_an_old_one(
    world: World, fails: bool
) -> None:
    await filled(world)
    world.now = TTL + 6
    early = await begin(world)
    fresh = await begin(world, Wishes(no_cache=True))
    world.client.answer(2, b"new")
    await fresh
    if fails:
        world.client.fail(1, LedgerTimeout("late"))
    else:
        world.client.answer(1, status=503)
    assert (await got(early), (await early).outcome) == (b"new", Outcome.HIT)


async def test_an_old_reply_that_a_write_has_overtaken_during_the_call_is_not_given(
    world: World,
) -> None:
    await filled(world)
    world.now = TTL + 6
    read = await begin(world)
    write = await world.begin_write()
    world.client.answer(2, b"", 201)
    await write
    world.client.fail(1, LedgerTimeout("late"))
    with pytest.raises(LedgerTimeout):
        await read


@pytest.mark.parametrize("status", [400, 404, 409, 410, 429])
async def test_a_refusal_is_no_failure_that_is_tided_over(world: World, status: int) -> None:
    await filled(world)
    world.now = TTL + 6
    read = await begin(world)
    world.client.answer(-1, status=status)
    assert (await read).reading.reply.status == status


async def test_who_wishes_nothing_stored_has_a_call_of_their_own(world: World) -> None:
    unkept = Wishes(no_store=True)
    reads = [await begin(world), await begin(world, unkept), await begin(world, unkept)]
    assert len(world.client.calls) == 3
    for index in range(3):
        world.client.answer(index, b"%d" % index)
    assert [await got(read) for read in reads] == [b"0", b"1", b"2"]
    assert [(await read).kept is None for read in reads] == [False, True, True]
    assert await got(await begin(world)) == b"0"


async def test_nobody_joins_the_call_of_who_wishes_nothing_stored(world: World) -> None:
    alone = await begin(world, Wishes(no_store=True))
    other = await begin(world)
    assert len(world.client.calls) == 2
    for index in range(2):
        world.client.answer(index)
    await asyncio.gather(alone, other)


@pytest.mark.parametrize(
    ("age", "wish", "forwarded"),
    [
        (0.0, Wishes(no_cache=True), "request"),
        (0.0, Wishes(no_store=True), "request"),
        (2.0, Wishes(max_age=1.0), "request"),
        (TTL + 6, NO_WISHES, "stale"),
        (TTL + 6, Wishes(max_age=1.0), "stale"),
        (TTL + 6, Wishes(no_cache=True), "stale"),
        (TTL + 60, NO_WISHES, "uri-miss"),
        # It is the caller's wish only where something could have been used without it.
        (TTL + 60, Wishes(no_cache=True), "uri-miss"),
        (TTL + 60, Wishes(no_store=True), "uri-miss"),
    ],
)
async def test_why_the_ledger_was_asked_is_known(
    world: World, age: float, wish: Wishes, forwarded: str
) -> None:
    await filled(world)
    world.now = age
    read = await begin(world, wish)
    world.client.answer(-1)
    assert (await read).forwarded == forwarded


async def test_an_entry_is_good_without_a_caller_while_it_is_fresh_and_no_write_came(
    world: World,
) -> None:
    read = await begin(world)
    world.client.answer(0, b"old")
    kept = (await read).kept
    assert kept is not None
    ages = {}
    for now in (0.0, 4.5, TTL - 0.5, TTL, TTL + 1):
        world.now = now
        ages[now] = world.cached.age_if_fresh(kept)
    assert ages == {0.0: 0.0, 4.5: 4.5, TTL - 0.5: TTL - 0.5, TTL: None, TTL + 1: None}
    world.now = 1.0
    world.generations.bump("another")
    assert world.cached.age_if_fresh(kept) == 1.0
    world.generations.bump(TAG)
    assert world.cached.age_if_fresh(kept) is None
