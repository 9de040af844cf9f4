"""What an answer says of how it was come by (RFC 9211), alone and made of several replies."""

import gc
import weakref

import pytest

from gateway.calls import LedgerReply
from gateway.exchange import Trace
from gateway.freshness import Lifetime
from gateway.kept import VIEW_OVERHEAD, Found, Kept, Outcome, Reading, cache_status_of_hit, worst
from gateway.representations import Representation, Room

READING: Reading[bytes] = Reading(LedgerReply(200, b""), b"")


def kept() -> Kept:
    return Kept(READING, "ledger", 7, 0.0, Lifetime(10.0), size=0, room=Room(0))


def found(outcome: Outcome, age: float = 0.0, left: float = 0.0) -> Found[bytes]:
    return Found(READING, outcome, age, left, kept())


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (found(Outcome.HIT, 1.0, 9.0), "ledger-gateway; hit; ttl=9"),
        (found(Outcome.HIT, 0.5, 9.5), "ledger-gateway; hit; ttl=9"),
        (found(Outcome.HIT, 9.5, 0.5), "ledger-gateway; hit; ttl=0"),
        # One that is used while another is fetched is beyond its time, and says so.
        (found(Outcome.HIT, 10.0, -0.0), "ledger-gateway; hit; ttl=0"),
        (found(Outcome.HIT, 10.5, -0.5), "ledger-gateway; hit; ttl=-1"),
        (
            found(Outcome.STALE, 12.5, -2.5),
            "ledger-gateway; fwd=stale; ttl=-3; detail=stale-if-error",
        ),
        (Found(READING, Outcome.MISS), "ledger-gateway; fwd=uri-miss"),
        (Found(READING, Outcome.MISS, kept=kept()), "ledger-gateway; fwd=uri-miss; stored"),
        (Found(READING, Outcome.MISS, forwarded="request"), "ledger-gateway; fwd=request"),
        (
            Found(READING, Outcome.MISS, kept=kept(), forwarded="stale"),
            "ledger-gateway; fwd=stale; stored",
        ),
    ],
)
def test_the_field_says_how_an_answer_was_come_by(of: Found[bytes], said: str) -> None:
    assert of.cache_status() == said


def test_a_hit_says_the_same_wherever_it_is_answered() -> None:
    assert found(Outcome.HIT, 1.0, 9.7).cache_status() == cache_status_of_hit(9)


def test_the_first_reply_speaks_for_itself() -> None:
    first = found(Outcome.HIT, 3.0)
    assert worst(None, first) is first


HIT, STALE = found(Outcome.HIT, 5.0), found(Outcome.STALE, 5.0)
MISS: Found[bytes] = Found(READING, Outcome.MISS)


@pytest.mark.parametrize(
    ("one", "other", "speaker"),
    [
        (HIT, found(Outcome.HIT, 4.0), HIT),
        (STALE, found(Outcome.STALE, 4.0), STALE),
        # Of two that were fetched or known, the ledger was asked for the answer.
        (HIT, MISS, MISS),
        # An old part makes the whole old, and its age is told.
        (STALE, HIT, STALE),
        (STALE, found(Outcome.HIT, 50.0), STALE),
        (STALE, MISS, STALE),
    ],
)
def test_of_several_replies_the_worst_speaks_for_all_in_any_order(
    one: Found[bytes], other: Found[bytes], speaker: Found[bytes]
) -> None:
    assert worst(one, other) is speaker
    assert worst(other, one) is speaker


def test_views_are_each_entrys_own() -> None:
    one, other = kept(), kept()
    one.views["x"] = object()  # type: ignore[assignment]
    assert other.views == {}


def test_two_entries_are_never_taken_for_each_other() -> None:
    assert kept() != kept()
    assert len({kept(), kept()}) == 2


def test_an_entry_that_the_cache_lets_go_is_gone_at_once() -> None:
    """Without waiting for a collection: what refers to it weakly must not answer with it."""
    entry = kept()
    reference = weakref.ref(entry)
    gc.disable()
    try:
        del entry
        assert reference() is None
    finally:
        gc.enable()


def test_views_are_kept_as_long_as_there_is_room_for_them() -> None:
    room = Room(2000 + 3 * VIEW_OVERHEAD)
    one = Kept(READING, "ledger", 7, 0.0, Lifetime(10.0), size=5000, room=room)
    for name in range(5):
        one.remember(name, Representation(b"x" * 900, 0, '"tag"'))
    assert list(one.views) == [0, 1]
    one.remember("small", Representation(b"x" * 200, 0, '"tag"'))
    assert list(one.views) == [0, 1, "small"]


def test_when_its_head_is_ready_a_request_lets_go_of_replies_and_takes_no_more() -> None:
    trace = Trace("r-1", 0.0)
    trace.heed(found(Outcome.HIT))
    assert trace.found is not None
    trace.release()
    trace.heed(found(Outcome.MISS))
    assert (trace.found, trace.cache) == (None, "hit")
