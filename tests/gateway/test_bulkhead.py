"""Calls in flight are bounded; the loop's clock is in the hand."""

import asyncio
from collections.abc import Iterator

import pytest

from gateway.bulkhead import Bulkhead, BulkheadRules
from gateway.errors import Overloaded

RULES = BulkheadRules(max_in_flight=100, max_waiting=100, max_wait_s=0.25)
SMALL = BulkheadRules(max_in_flight=2, max_waiting=2, max_wait_s=0.25)


class LoopClock:
    """Moves the time of the running loop by hand; nothing that waits for it wakes up before."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        await settle()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> LoopClock:
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop.time())
    monkeypatch.setattr(loop, "time", clock)
    return clock


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Callers:
    """Callers who hold a place until they are let go; `entered` is who got one, in order."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.bulkhead = bulkhead
        self.entered: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.leave: list[asyncio.Event] = []

    async def come(self, count: int) -> None:
        for _ in range(count):
            self.leave.append(asyncio.Event())
            self.tasks.append(asyncio.create_task(self._call(len(self.tasks))))
        await settle()

    async def go(self, *numbers: int) -> None:
        for number in numbers:
            self.leave[number].set()
        await settle()

    async def go_all(self) -> None:
        await self.go(*range(len(self.tasks)))

    def refused(self, number: int) -> bool:
        task = self.tasks[number]
        return task.done() and isinstance(task.exception(), Overloaded)

    async def _call(self, number: int) -> None:
        async with self.bulkhead:
            self.entered.append(number)
            await self.leave[number].wait()


@pytest.fixture
def crowd(request: pytest.FixtureRequest) -> Iterator[Callers]:
    callers = Callers(Bulkhead(getattr(request, "param", SMALL)))
    yield callers
    assert callers.bulkhead.in_flight == 0
    assert callers.bulkhead.waiting == 0


@pytest.mark.parametrize("crowd", [RULES], indirect=True)
async def test_a_hundred_call_a_hundred_wait_and_the_rest_is_refused_at_once(
    crowd: Callers, clock: LoopClock
) -> None:
    before = clock.now
    await crowd.come(250)
    assert clock.now == before
    assert crowd.entered == list(range(100))
    assert (crowd.bulkhead.in_flight, crowd.bulkhead.waiting) == (100, 100)
    assert [crowd.refused(number) for number in range(250)] == [False] * 200 + [True] * 50
    await crowd.go_all()
    assert crowd.entered == list(range(200))


async def test_a_refusal_says_when_to_come_back_and_that_nothing_was_sent(
    crowd: Callers, clock: LoopClock
) -> None:
    await crowd.come(5)
    error = crowd.tasks[4].exception()
    assert isinstance(error, Overloaded)
    assert (error.status, error.code, error.headers) == (503, "OVERLOADED", {"Retry-After": "1"})
    assert "not sent" in error.detail
    await crowd.go_all()


async def test_who_waits_is_refused_after_a_quarter_of_a_second_and_not_before(
    crowd: Callers, clock: LoopClock
) -> None:
    await crowd.come(4)
    await clock.advance(0.249)
    assert crowd.bulkhead.waiting == 2
    assert not any(task.done() for task in crowd.tasks)
    await clock.advance(0.002)
    assert [crowd.refused(number) for number in range(4)] == [False, False, True, True]
    assert (crowd.bulkhead.in_flight, crowd.bulkhead.waiting) == (2, 0)
    await crowd.go_all()
    assert crowd.entered == [0, 1]


async def test_the_time_starts_when_the_waiting_does(crowd: Callers, clock: LoopClock) -> None:
    await crowd.come(3)
    await clock.advance(0.2)
    await crowd.come(1)
    await clock.advance(0.1)
    assert [crowd.refused(number) for number in (2, 3)] == [True, False]
    await crowd.go(0)
    assert crowd.entered == [0, 1, 3]
    await crowd.go_all()


async def test_where_no_call_has_ended_for_so_long_nobody_waits_in_vain(
    crowd: Callers, clock: LoopClock
) -> None:
    await crowd.come(3)
    await clock.advance(0.251)
    assert crowd.refused(2)
    await crowd.come(1)
    assert crowd.refused(3)
    await crowd.go(0)
    await crowd.come(2)
    assert [crowd.refused(number) for number in (4, 5)] == [False, False]
    assert crowd.entered == [0, 1, 4]
    await clock.advance(0.2)
    await crowd.go(1)
    assert crowd.entered == [0, 1, 4, 5]
    await clock.advance(0.2)
    await crowd.come(1)
    assert not crowd.refused(6)
    await crowd.go_all()
    assert crowd.entered == [0, 1, 4, 5, 6]


async def test_places_go_to_those_who_waited_longest(crowd: Callers, clock: LoopClock) -> None:
    await crowd.come(4)
    await crowd.go(1)
    assert crowd.entered == [0, 1, 2]
    await crowd.go(0)
    assert crowd.entered == [0, 1, 2, 3]
    await crowd.go_all()


async def test_nobody_overtakes_those_who_wait(crowd: Callers, clock: LoopClock) -> None:
    await crowd.come(3)
    crowd.leave[0].set()
    await crowd.come(1)
    await settle()
    assert crowd.entered == [0, 1, 2]
    await crowd.go_all()
    assert crowd.entered == [0, 1, 2, 3]


async def test_a_waiter_who_leaves_frees_a_place_in_the_queue(
    crowd: Callers, clock: LoopClock
) -> None:
    await crowd.come(4)
    crowd.tasks[2].cancel()
    await settle()
    assert crowd.bulkhead.waiting == 1
    await crowd.come(1)
    assert not crowd.tasks[4].done()
    await crowd.go(0)
    assert crowd.entered == [0, 1, 3]
    await crowd.go_all()
    assert crowd.entered == [0, 1, 3, 4]


async def test_a_waiter_who_leaves_with_a_place_in_hand_passes_it_on(
    crowd: Callers, clock: LoopClock
) -> None:
    await crowd.come(4)
    # The place is given away in the same moment in which its new owner leaves.
    crowd.leave[0].set()
    await asyncio.sleep(0)
    crowd.tasks[2].cancel()
    await settle()
    assert crowd.tasks[2].cancelled()
    await crowd.go_all()
    assert set(crowd.entered) >= {0, 1, 3}


@pytest.mark.parametrize("turns", range(4))
async def test_no_place_is_lost_when_a_waiter_gives_up_as_it_comes_free(
    crowd: Callers, clock: LoopClock, turns: int
) -> None:
    await crowd.come(3)
    crowd.leave[0].set()
    for _ in range(turns):
        await asyncio.sleep(0)
    await clock.advance(0.3)
    await crowd.go_all()
    await crowd.come(2)
    assert crowd.bulkhead.in_flight == 2
    await crowd.go_all()
    assert crowd.entered[-2:] == [3, 4]


async def test_a_caller_who_is_cut_off_gives_the_place_back(
    crowd: Callers, clock: LoopClock
) -> None:
    await crowd.come(3)
    crowd.tasks[0].cancel()
    await settle()
    assert crowd.entered == [0, 1, 2]
    await crowd.go_all()


async def test_a_call_that_fails_gives_the_place_back() -> None:
    bulkhead = Bulkhead(BulkheadRules(max_in_flight=1, max_waiting=0, max_wait_s=0.0))
    for _ in range(10):
        with pytest.raises(ZeroDivisionError):
            await failing(bulkhead)
    assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)


async def failing(bulkhead: Bulkhead) -> None:
    async with bulkhead:
        assert bulkhead.in_flight == 1
        raise ZeroDivisionError


async def test_without_a_waiting_room_everybody_over_the_bound_is_refused_at_once(
    clock: LoopClock,
) -> None:
    crowd = Callers(Bulkhead(BulkheadRules(max_in_flight=1, max_waiting=0, max_wait_s=60.0)))
    await crowd.come(3)
    assert [crowd.refused(number) for number in range(3)] == [False, True, True]
    await crowd.go_all()
    assert crowd.entered == [0]
