"""Coherence without Redis: what is said, what is heard, and what is trusted when, to the second.

Time passes here only when everybody waits, and then at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.cache import CachedLedger
from gateway.calls import LedgerCall, LedgerReply
from gateway.coherence import CHANNEL, EVERYTHING, Announcement, Coherence, announced, announcement
from gateway.config import Cache
from gateway.errors import GatewayError, LedgerTimeout, OutcomeUnknown
from gateway.freshness import NO_WISHES, Lifetime, Wishes
from gateway.generations import SLOTS, Generations, slot_of
from gateway.kept import Found, Outcome
from tests.gateway.no_time import Hub, Lost, in_no_time, now

ID = "0123456789abcdef"
TAG, OTHER = "ledger", "rates:a/b"
DEAF_S, BEAT_S, RETRY_S, PATIENCE_S = 1.5, 0.5, 0.5, 0.1


@dataclass
class Member:
    """One process: what it knows, and its part in the coherence."""

    generations: Generations
    coherence: Coherence


@asynccontextmanager
async def member(hub: Hub) -> AsyncIterator[Member]:
    generations = Generations()
    coherence = Coherence(generations, hub.connect, 1.0, now)
    running = asyncio.create_task(coherence.run())
    await settle()
    try:
        yield Member(generations, coherence)
    finally:
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()


def is_connected(member: Member) -> bool:
    return member.coherence.connected


async def settle() -> None:
    """Lets everybody go as far as they can without time passing, or next to none."""
    await asyncio.sleep(1e-6)


async def seconds(task: Awaitable[object]) -> float:
    """How long something takes."""
    began = now()
    await task
    return now() - began


# What is said.


@given(st.sets(st.integers(0, SLOTS - 1), min_size=1))
def test_an_announcement_says_what_was_announced(slots: set[int]) -> None:
    text = announcement(ID, {str(slot) for slot in slots})
    assert announced(text) == Announcement(ID, frozenset(slots))


@pytest.mark.parametrize("others", [(), ("1",), ("1", "2")])
def test_everything_is_everything(others: tuple[str, ...]) -> None:
    assert announced(announcement(ID, {EVERYTHING, *others})) == Announcement(ID, None)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1", "1 2", ID, f"{ID} ", f" {ID} 1", f"{ID}  1", f"{ID} 1 ", f"{ID} 1  2"),
        *(f"{ID} -1", f"{ID} 1.0", f"{ID} x", f"{ID} 1 x", f"{ID} * 1", f"{ID} 1 *", f"{ID} **"),
        *(f"{ID} \u0661", f"{ID} \uff11", f"{ID} 1\n", f"{ID}\n1", f"{ID} 123456", f"{ID} \ufffd"),
        *(f"{ID.upper()} 1", f"{ID}0 1", f"{ID[1:]} 1"),
    ],
)
def test_what_cannot_be_read_may_be_about_anything_and_from_anybody(text: str) -> None:
    assert announced(text) == Announcement("", None)


@pytest.mark.parametrize("slots", [f"{SLOTS}", "99999", f"1 {SLOTS}"])
def test_a_slot_that_does_not_exist_may_be_anything(slots: str) -> None:
    assert announced(f"{ID} {slots}") == Announcement(ID, None)


@given(st.text() | st.from_regex(rf"{ID} [0-9 ]+", fullmatch=True))
def test_of_every_text_the_slots_exist_or_it_is_about_everything(text: str) -> None:
    slots = announced(text).slots
    assert slots is None or (slots and all(0 <= slot < SLOTS for slot in slots))


# Generations.


def test_everything_changes_at_once() -> None:
    generations = Generations()
    tags = [f"rates:{number}" for number in range(1000)]
    before = [generations.of(tag) for tag in tags]
    generations.bump(tags[0])
    generations.bump_all()
    assert all(generations.of(tag) != old for tag, old in zip(tags, before, strict=True))


def test_what_a_tag_had_before_everything_changed_it_never_has_again() -> None:
    generations, seen = Generations(), set()
    for _ in range(300):
        seen.add(generations.of(TAG))
        generations.bump_all()
        seen.add(generations.of(TAG))
        generations.bump(TAG)
    assert len(seen) == 600


def test_a_slot_changes_its_tags_and_no_others() -> None:
    generations = Generations()
    before = generations.of(TAG), generations.of(OTHER)
    generations.bump_slot(slot_of(TAG))
    assert generations.of(TAG) != before[0]
    assert generations.of(OTHER) == before[1]


def test_a_tag_has_the_same_slot_in_every_gateway() -> None:
    assert (slot_of("ledger"), slot_of("rates:a/b")) == (42172, 11997)
    assert {slot_of(f"rates:{number}") < SLOTS for number in range(10_000)} == {True}


# What is heard.


@in_no_time
async def test_an_announcement_changes_what_the_others_have_of_that_tag() -> None:
    hub = Hub()
    async with member(hub) as one, member(hub) as other:
        await settle()
        mine, theirs = one.generations.of(TAG), other.generations.of(TAG)
        unrelated = other.generations.of(OTHER)
        await one.coherence.announce(TAG)
        await settle()
        assert other.generations.of(TAG) != theirs
        assert other.generations.of(OTHER) == unrelated
        # It has done that itself, and what it keeps may be from after it.
        assert one.generations.of(TAG) == mine


@in_no_time
async def test_nobodys_words_are_about_everything() -> None:
    hub = Hub()
    async with member(hub) as one:
        for text in ("what is this", f"{ID} *", f"{ID} 99999"):
            before = one.generations.of(TAG), one.generations.of(OTHER)
            await hub.take(hub.links[0], CHANNEL, text)
            await settle()
            assert one.generations.of(TAG) != before[0]
            assert one.generations.of(OTHER) != before[1]


@in_no_time
async def test_who_begins_to_listen_trusts_nothing_from_before() -> None:
    hub = Hub(down=OSError())
    async with member(hub) as one:
        before = one.generations.of(TAG)
        await asyncio.sleep(10)
        assert one.generations.of(TAG) == before
        hub.down = None
        await asyncio.sleep(RETRY_S)
        assert is_connected(one)
        assert one.generations.of(TAG) != before


@in_no_time
async def test_who_has_lost_the_link_trusts_nothing_from_before_either() -> None:
    hub = Hub()
    async with member(hub) as one:
        before = one.generations.of(TAG)
        hub.drop()
        await settle()
        assert not is_connected(one)
        assert one.generations.of(TAG) == before
        await asyncio.sleep(RETRY_S)
        assert is_connected(one)
        assert one.generations.of(TAG) != before


@in_no_time
async def test_what_is_kept_lasts_for_as_long_as_the_link() -> None:
    hub = Hub(delay_s=0.9)
    async with member(hub) as one:
        await asyncio.sleep(2)
        before = one.generations.of(TAG)
        for _ in range(3600):
            await asyncio.sleep(1.01)
            assert is_connected(one)
        assert one.generations.of(TAG) == before
        assert len(hub.attempts) == 1


@in_no_time
async def test_who_begins_tells_the_others_to_trust_nothing_from_before() -> None:
    hub = Hub()
    async with member(hub) as one:
        await settle()
        before = one.generations.of(TAG), one.generations.of(OTHER)
        async with member(hub):
            await settle()
            assert one.generations.of(TAG) != before[0]
            assert one.generations.of(OTHER) != before[1]


# Whether it is connected.


@in_no_time
async def test_it_is_connected_when_the_first_beat_is_back() -> None:
    hub = Hub(delay_s=0.4)
    async with member(hub) as one:
        assert one.coherence.state() == {"connected": False, "since_s": 0.0}
        await asyncio.sleep(0.39)
        assert one.coherence.state() == {"connected": False, "since_s": 0.39}
        await asyncio.sleep(0.02)
        assert one.coherence.state() == {"connected": True, "since_s": 0.01}
        await asyncio.sleep(60)
        assert one.coherence.state() == {"connected": True, "since_s": 60.01}


@in_no_time
async def test_a_link_that_falls_silent_is_noticed_in_time() -> None:
    hub = Hub()
    async with member(hub) as one:
        await asyncio.sleep(10.2)
        # The last beat that came back was sent 0.2 s ago.
        hub.stalled = True
        await asyncio.sleep(DEAF_S - 0.2 - 0.01)
        assert is_connected(one)
        await asyncio.sleep(0.02)
        assert not is_connected(one)
        assert hub.links == []


@in_no_time
async def test_beats_that_take_too_long_do_not_count() -> None:
    hub = Hub(delay_s=DEAF_S + 0.1)
    async with member(hub) as one:
        for _ in range(100):
            await asyncio.sleep(0.1)
            assert not is_connected(one)


@in_no_time
async def test_a_beat_counts_from_when_it_was_sent_and_not_from_when_it_came() -> None:
    hub = Hub(delay_s=1.0)
    async with member(hub) as one:
        await asyncio.sleep(10.01)
        # One was sent just now, and is under way for a second.
        hub.stalled = True
        await asyncio.sleep(1.2)
        assert is_connected(one)
        await asyncio.sleep(0.3)
        assert not is_connected(one)


@in_no_time
async def test_the_time_without_a_link_is_told() -> None:
    hub = Hub()
    async with member(hub) as one:
        await asyncio.sleep(10)
        hub.drop()
        hub.down = OSError()
        await asyncio.sleep(30)
        assert one.coherence.state() == {"connected": False, "since_s": pytest.approx(30, abs=0.01)}


@in_no_time
async def test_a_link_in_one_direction_is_none() -> None:
    hub = Hub(mute=PermissionError())
    async with member(hub) as one:
        await asyncio.sleep(10)
        assert not is_connected(one)


@in_no_time
async def test_only_its_own_beats_count() -> None:
    hub = Hub()
    async with member(hub) as one, member(hub) as other:
        await asyncio.sleep(1)
        first, second = hub.links
        assert first.channels[1] != second.channels[1]
        # The second hears nothing any more of what it sends.
        second.channels = (CHANNEL,)
        await asyncio.sleep(DEAF_S)
        assert is_connected(one)
        assert not is_connected(other)


@in_no_time
async def test_it_tries_again_twice_a_second() -> None:
    hub = Hub(down=OSError())
    async with member(hub) as one:
        await asyncio.sleep(10)
        assert len(hub.attempts) == 20 + 1
        hub.down = None
        assert await seconds(asyncio.sleep(RETRY_S)) == RETRY_S
        assert is_connected(one)


@pytest.mark.parametrize("error", [OSError(), TimeoutError(), ValueError(), KeyError("x"), Lost()])
@in_no_time
async def test_whatever_goes_wrong_is_gone_when_it_goes_well(error: Exception) -> None:
    hub = Hub(down=error)
    async with member(hub) as one:
        await asyncio.sleep(3)
        hub.down, hub.mute = None, error
        await asyncio.sleep(3)
        hub.mute = None
        await asyncio.sleep(1)
        assert is_connected(one)


@in_no_time
async def test_trouble_is_logged_once_and_its_end_as_well() -> None:
    hub = Hub(down=ConnectionRefusedError("redis://:secret@cache"))
    with capture_logs() as logged:
        async with member(hub):
            await asyncio.sleep(60)
            hub.down = TimeoutError()
            await asyncio.sleep(60)
            hub.down = None
            await asyncio.sleep(60)
            hub.drop()
            await asyncio.sleep(60)
    said = [(line["log_level"], line["event"], line.get("error")) for line in logged]
    assert said == [
        ("warning", "coherence lost", "ConnectionRefusedError"),
        ("warning", "coherence lost", "TimeoutError"),
        ("info", "coherence established", None),
        ("warning", "coherence lost", "Lost"),
        ("info", "coherence established", None),
    ]
    assert "secret" not in repr(logged)


@in_no_time
async def test_who_goes_leaves_no_link_and_no_task() -> None:
    for wait_s in (0, 1e-6, 0.25, 1, 10):
        hub = Hub(stalled=wait_s == 1)
        async with member(hub):
            await asyncio.sleep(wait_s)
        assert hub.links == []
        assert asyncio.all_tasks() == {asyncio.current_task()}


# What a write waits for.


@in_no_time
async def test_a_write_waits_until_its_announcement_is_taken() -> None:
    hub = Hub()
    async with member(hub) as one:
        await settle()
        hub.takes.clear()
        asyncio.get_running_loop().call_later(0.07, hub.takes.set)
        assert await seconds(one.coherence.announce(TAG)) == pytest.approx(0.07)
        assert hub.said[-1].endswith(f" {slot_of(TAG)}")


@in_no_time
async def test_a_write_does_not_wait_longer_than_a_moment() -> None:
    hub = Hub()
    async with member(hub) as one:
        await settle()
        hub.stalled = True
        assert await seconds(one.coherence.announce(TAG)) == pytest.approx(PATIENCE_S)


@in_no_time
async def test_without_a_link_a_write_does_not_wait_at_all() -> None:
    hub = Hub(down=OSError())
    async with member(hub) as one:
        assert await seconds(one.coherence.announce(TAG)) == 0
    hub = Hub()
    async with member(hub) as one:
        await asyncio.sleep(1)
        hub.stalled = True
        await asyncio.sleep(DEAF_S)
        assert await seconds(one.coherence.announce(TAG)) == 0


@in_no_time
async def test_a_write_whose_announcement_fails_goes_on_at_once() -> None:
    hub = Hub()
    async with member(hub) as one:
        await settle()
        hub.mute = Lost()
        assert await seconds(one.coherence.announce(TAG)) == 0


@in_no_time
async def test_writes_at_the_same_time_are_announced_together() -> None:
    hub = Hub()
    async with member(hub) as one, member(hub) as other:
        await settle()
        said = len(hub.said)
        before = [other.generations.of(f"rates:{number}") for number in range(100)]
        await asyncio.gather(*(one.coherence.announce(f"rates:{number}") for number in range(100)))
        await settle()
        assert len(hub.said) <= said + 2
        after = [other.generations.of(f"rates:{number}") for number in range(100)]
        assert all(old != new for old, new in zip(before, after, strict=True))


@in_no_time
async def test_a_write_that_comes_while_another_is_announced_is_announced_after_it() -> None:
    hub = Hub()
    async with member(hub) as one:
        await settle()
        hub.takes.clear()
        first = asyncio.create_task(one.coherence.announce(TAG))
        await settle()
        second = asyncio.create_task(one.coherence.announce(TAG))
        await settle()
        said = len(hub.said)
        hub.takes.set()
        await asyncio.gather(first, second)
        assert len(hub.said) == said + 2


@pytest.mark.parametrize("how", ["down", "mute", "stalled"])
@in_no_time
async def test_what_could_not_be_announced_is_announced_when_it_can_be(how: str) -> None:
    hub = Hub()
    async with member(hub) as one, member(hub) as other:
        await asyncio.sleep(1)
        setattr(hub, how, True if how == "stalled" else Lost())
        hub.drop()
        said = len(hub.said)
        await one.coherence.announce(TAG)
        await asyncio.sleep(5)
        await one.coherence.announce(OTHER)
        setattr(hub, how, False if how == "stalled" else None)
        await asyncio.sleep(2)
        assert is_connected(one)
        assert is_connected(other)
        words = {word for text in hub.said[said:] for word in text.split()[1:]}
        assert words == {str(slot_of(TAG)), str(slot_of(OTHER))}


@in_no_time
async def test_it_is_not_connected_before_it_has_told_what_there_is_to_tell() -> None:
    hub = Hub(down=OSError())
    async with member(hub) as one:
        await one.coherence.announce(TAG)
        hub.down = None
        hub.takes.clear()
        await asyncio.sleep(1)
        assert not is_connected(one)
        hub.takes.set()
        await settle()
        assert is_connected(one)
        assert hub.said == [f"{hub.said[0].split()[0]} {EVERYTHING}"]


# What the cache trusts.

READ = LedgerCall("GET", "/ledger", (), "alice", "r-1")
WRITE = LedgerCall("POST", "/ledger", (), "root", "r-2", b"{}", "key-1")
RATES = Lifetime(10.0, 5.0, 60.0, 60.0)
ROWS = Lifetime(10.0, max_stale_s=60.0)


@dataclass
class Ears:
    """In the place of a coherence: connected or not, as the test says."""

    events: list[str]
    connected: bool = True
    trust_s: float = 1.0

    async def announce(self, tag: str) -> None:
        self.events.append(f"announced {tag}")


@dataclass
class World:
    """A cache over a ledger that answers or fails, with a clock driven by hand."""

    events: list[str] = field(default_factory=list)
    error: GatewayError | None = None
    now: float = 1000.0
    generations: Generations = field(default_factory=Generations)

    def __post_init__(self) -> None:
        self.ears = Ears(self.events)
        settings = Cache(True, 1 << 20, 10.0, 10.0, 60.0)
        ledger: Any = self
        ears: Any = self.ears
        self.cached = CachedLedger(ledger, settings, self.generations, lambda: self.now, ears)

    async def send(self, call: LedgerCall) -> LedgerReply:
        self.events.append(call.method)
        if self.error is not None:
            raise self.error
        return LedgerReply(200, b"body")

    async def read(self, lifetime: Lifetime = RATES, wish: Wishes = NO_WISHES) -> Found[bytes]:
        async def parse(body: bytes) -> bytes:
            return body

        return await self.cached.read(READ, parse, TAG, lifetime, wish)

    async def aged(self, age: float, lifetime: Lifetime = RATES) -> Found[bytes]:
        """An entry of such an age, when nobody else is heard."""
        found = await self.read(lifetime)
        self.now += age
        self.ears.connected = False
        return found


@pytest.mark.parametrize("lifetime", [RATES, ROWS])
@pytest.mark.parametrize(
    ("age", "outcome"),
    [(0.0, Outcome.HIT), (0.99, Outcome.HIT), (1.0, Outcome.MISS), (9.0, Outcome.MISS)],
)
async def test_unheard_a_kept_reply_is_trusted_for_a_moment(
    age: float, outcome: Outcome, lifetime: Lifetime
) -> None:
    world = World()
    kept = (await world.aged(age, lifetime)).kept
    assert kept is not None
    quick = world.cached.age_if_fresh(kept)
    assert quick == (pytest.approx(age) if outcome is Outcome.HIT else None)
    # Heard again, and nothing was written.
    world.ears.connected = True
    assert world.cached.age_if_fresh(kept) == pytest.approx(age)
    world.ears.connected = False
    assert (await world.read(lifetime)).outcome is outcome


async def test_the_moment_is_never_longer_than_its_time() -> None:
    world = World()
    world.ears.trust_s = 600.0
    await world.aged(10.0, ROWS)
    assert (await world.read(ROWS)).outcome is Outcome.MISS


async def test_unheard_nothing_old_is_used_while_it_is_revalidated() -> None:
    for connected, outcome in ((True, Outcome.HIT), (False, Outcome.MISS)):
        world = World()
        await world.aged(12.0)
        world.ears.connected = connected
        assert (await world.read()).outcome is outcome
        # In the background there may be a fetch under way.
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.mark.parametrize(("age", "helped"), [(1.0, True), (60.9, True), (61.0, False)])
async def test_unheard_an_old_price_still_beats_none(age: float, helped: bool) -> None:
    world = World()
    await world.aged(age)
    world.error = LedgerTimeout("late")
    if helped:
        found = await world.read()
        assert found.outcome is Outcome.STALE
        assert found.age == pytest.approx(age)
    else:
        with pytest.raises(LedgerTimeout):
            await world.read()


async def test_unheard_old_rows_are_for_those_who_ask_for_them() -> None:
    world = World()
    await world.aged(5.0, ROWS)
    world.error = LedgerTimeout("late")
    with pytest.raises(LedgerTimeout):
        await world.read(ROWS)
    assert (await world.read(ROWS, Wishes(stale_if_error=30.0))).outcome is Outcome.STALE


@pytest.mark.parametrize("connected", [True, False])
async def test_what_was_written_over_is_not_used_in_any_case(connected: bool) -> None:
    world = World()
    kept = (await world.aged(0.5)).kept
    world.ears.connected = connected
    world.generations.bump_slot(slot_of(TAG))
    world.error = LedgerTimeout("late")
    assert kept is not None
    assert world.cached.age_if_fresh(kept) is None
    with pytest.raises(LedgerTimeout):
        await world.read(RATES, Wishes(stale_if_error=60.0))


@pytest.mark.parametrize("error", [None, OutcomeUnknown("?"), LedgerTimeout("late")])
async def test_a_write_is_announced_before_it_is_sent_and_when_it_is_over(
    error: GatewayError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(error=error)
    monkeypatch.setattr(
        Generations, "bump", lambda _self, tag: world.events.append(f"changed {tag}")
    )
    writing = asyncio.gather(world.cached.write(WRITE, TAG), return_exceptions=True)
    (result,) = await writing
    assert result is error or error is None
    both = [f"changed {TAG}", f"announced {TAG}"]
    assert world.events == [*both, "POST", *both]
