"""Every order in which reads, writes, their answers, time and a death can come over two workers."""

from collections.abc import Iterator
from math import factorial
from typing import Any

import pytest

from gateway import cache
from gateway.cache import CachedLedger, Flight
from gateway.calls import LedgerCall, LedgerReply
from gateway.config import Cache
from gateway.freshness import Lifetime, Use, Wishes
from gateway.generations import Generations
from gateway.kept import Found, Kept
from gateway.representations import Room
from tests.interleavings import ROWS, TTL, Reader, Scenario, World, Writer


class Violation(AssertionError):
    """A read was given what it must not be given."""


def runs(scenario: Scenario, kind: type[CachedLedger] = CachedLedger) -> Iterator[World]:
    """Every run of a scenario. Raises `Violation` at the first that went wrong."""
    chosen: list[tuple[int, int]] = []
    while True:
        world = World(scenario, kind)
        _run(world, chosen)
        yield world
        while chosen and chosen[-1][0] + 1 == chosen[-1][1]:
            chosen.pop()
        if not chosen:
            return
        index, count = chosen.pop()
        chosen.append((index + 1, count))


def _run(world: World, chosen: list[tuple[int, int]]) -> None:
    """Takes the steps that are chosen, then always the first; notes among how many."""
    depth = 0
    while choices := world.choices():
        if depth == len(chosen):
            chosen.append((0, len(choices)))
        world.take(choices[chosen[depth][0]])
        depth += 1
    world.end()
    if world.violation is not None:
        raise Violation(world.violation)


ASKS_FOR_OLD = Wishes(stale_if_error=1000.0)
PRICES = Lifetime(TTL, 5.0, 50.0, 50.0)
FRESH = Wishes(no_cache=True)
UNKEPT = Wishes(no_store=True)
A, B = 0, 1
PAIRS = [(A, A), (A, B), (B, B)]


def _scenarios() -> Iterator[tuple[str, Scenario]]:
    """Writes are on A; what differs is where the reads are, and what else comes to pass."""
    for one, other in PAIRS:
        reads = (Writer(A), Reader(one), Reader(other))
        yield f"time passes, reads on {one}{other}", Scenario(reads, passes=TTL)
        yield f"the writer dies, reads on {one}{other}", Scenario(reads, dies=A)
        yield f"the other dies, reads on {one}{other}", Scenario(reads, dies=B)
        short = (Writer(A), Reader(one, shortcut=True), Reader(other, shortcut=True))
        yield f"shortcuts on {one}{other}", Scenario(short, filled=True)
    for on in (A, B):
        yield f"two writes, read on {on}", Scenario((Writer(A), Writer(B), Reader(on)))
        yield f"fresh read on {on}", Scenario((Writer(A), Reader(on, FRESH), Reader(on)))
        yield f"unkept read on {on}", Scenario((Writer(A), Reader(on, UNKEPT), Reader(on)))
        yield (
            f"failing ledger, rows on {on}",
            Scenario((Writer(A), Reader(on, ASKS_FOR_OLD)), TTL + 1, None, True, ROWS, True),
        )
        yield (
            f"prices while they are fetched again on {on}",
            Scenario((Writer(A), Reader(on), Reader(on)), TTL + 1, None, False, PRICES, True),
        )
        yield (
            f"failing ledger, prices on {on}",
            Scenario((Writer(A), Reader(on), Reader(on)), TTL + 6, None, True, PRICES, True),
        )


SCENARIOS = dict(_scenarios())


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_order_of_events_gives_a_reader_what_a_write_has_made_old(name: str) -> None:
    count = sum(1 for _ in runs(SCENARIOS[name]))
    assert count > 50


# That the runs are all there are, and that they can go wrong.


def test_every_order_is_run_and_each_once() -> None:
    """Three steps of a write and two of each read that nobody else's call serves."""
    parts = (Writer(A), Reader(A, UNKEPT), Reader(B, UNKEPT))
    histories = [tuple(world.history) for world in runs(Scenario(parts))]
    assert len(histories) == len(set(histories)) == factorial(7) // (6 * 2 * 2)


def test_a_reader_during_a_write_may_get_either_state_and_a_reply_serves_many() -> None:
    during, saved = set(), 0
    for world in runs(Scenario((Writer(A), Reader(A), Reader(B)), filled=True)):
        write = world.writes[0]
        during |= {
            version
            for begun, version in world.given
            if write.sent < begun and (write.told is None or begun < write.told)
        }
        saved += len(world.given) - len(world.asked)
    assert during == {0, 1}
    assert saved > 0


class NotBumpedBefore(CachedLedger):
    """A write makes nothing old before it is sent."""

    async def write(self, call: LedgerCall, tag: str) -> LedgerReply:
        try:
            return await self._ledger.send(call)
        finally:
            self._generations.bump(tag)


class NotBumpedAfter(CachedLedger):
    """A write makes nothing old when it is answered."""

    async def write(self, call: LedgerCall, tag: str) -> LedgerReply:
        self._generations.bump(tag)
        return await self._ledger.send(call)


class NumberedAtTheEnd(CachedLedger):
    """An entry has the generation at the end of its fetch."""

    async def _fetched(self, fetch: Any) -> tuple[Any, Kept | None]:
        reading = await cache._reading(await self._ledger.send(fetch.call), fetch)
        generation = self._generations.of(fetch.tag)
        room = Room(0)
        kept = Kept(reading, fetch.tag, generation, self._now(), fetch.lifetime, 1, room)
        self._entries[fetch.key] = kept
        return reading, kept


class JoinedAcrossGenerations(CachedLedger):
    """Whoever asks the same joins the fetch that is under way, also one from before a write."""

    def _joined(self, fetch: Any) -> Flight:
        under_way = [one for (key, _), one in self._flights.items() if key == fetch.key]
        return under_way[0] if under_way else self._take_off(fetch)


class NotCompared(CachedLedger):
    """An entry is used whatever its generation."""

    async def _read(self, fetch: Any, wish: Wishes) -> Found[Any]:
        kept = self._entries.get(fetch.key)
        if kept is not None:
            kept.generation = fetch.generation
        return await super()._read(fetch, wish)


class NotShared(CachedLedger):
    """Each worker has generations of its own."""

    def __init__(self, ledger: Any, settings: Cache, _shared: Generations, now: Any) -> None:
        super().__init__(ledger, settings, Generations(), now)


class OldAfterAFailure(CachedLedger):
    """When the ledger fails an entry is used that was good when the read began."""

    def _tides_over(self, kept: Kept, wish: Wishes) -> bool:
        return self._use(kept, wish) is not Use.NONE


class ShortcutNotCompared(CachedLedger):
    """A shortcut looks at the time only."""

    def age_if_fresh(self, kept: Kept) -> float | None:
        return self._now() - kept.at


PLANTED = [
    (NotBumpedBefore, "the writer dies, reads on 11", "what was said before it"),
    (NotBumpedAfter, "time passes, reads on 01", "an older state"),
    (NumberedAtTheEnd, "time passes, reads on 00", "got"),
    (NumberedAtTheEnd, "time passes, reads on 11", "got"),
    (JoinedAcrossGenerations, "time passes, reads on 11", "got"),
    (NotCompared, "time passes, reads on 00", "got"),
    (NotShared, "time passes, reads on 01", "got"),
    (OldAfterAFailure, "failing ledger, prices on 1", "got"),
    (OldAfterAFailure, "failing ledger, rows on 1", "got"),
    (ShortcutNotCompared, "shortcuts on 11", "got"),
]


@pytest.mark.parametrize(("kind", "name", "what"), PLANTED)
def test_a_breach_of_the_rule_is_found(kind: type[CachedLedger], name: str, what: str) -> None:
    with pytest.raises(Violation, match=what):
        list(runs(SCENARIOS[name], kind))
