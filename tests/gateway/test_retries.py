"""How many reads may be asked a second time, and after what pause."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.retries import MAX_PAUSE_S, RetryBudget, RetryRules, pause

RULES = RetryRules(ratio=0.2, floor=3)


def after(requests: int, rules: RetryRules = RULES, now: float = 0.0) -> RetryBudget:
    budget = RetryBudget(rules)
    for _ in range(requests):
        budget.requested(now)
    return budget


@pytest.mark.parametrize(
    ("requests", "retries"),
    [(0, 3), (1, 3), (14, 3), (15, 3), (19, 3), (20, 4), (24, 4), (25, 5), (100, 20), (1000, 200)],
)
def test_a_fifth_of_the_reads_may_be_repeated_and_always_three(requests: int, retries: int) -> None:
    budget = after(requests)
    assert budget.left(0.0) == retries
    assert [budget.spend(0.0) for _ in range(retries + 2)] == [True] * retries + [False] * 2
    assert budget.left(0.0) == 0


def test_a_refused_retry_is_not_spent() -> None:
    budget = after(0)
    for _ in range(50):
        budget.spend(0.0)
    budget = after(0)
    assert [budget.spend(0.0) for _ in range(3)] == [True] * 3
    assert [budget.spend(59.0) for _ in range(5)] == [False] * 5
    assert budget.left(60.0) == 3


@pytest.mark.parametrize(("now", "left"), [(59.99, 0), (60.0, 3), (61.0, 3)])
def test_the_floor_is_three_a_minute(now: float, left: int) -> None:
    budget = after(0)
    for _ in range(3):
        assert budget.spend(0.0)
    assert budget.left(now) == left


@pytest.mark.parametrize(("now", "left"), [(59.99, 20), (60.0, 3)])
def test_reads_earn_retries_for_a_minute(now: float, left: int) -> None:
    assert after(100).left(now) == left


def test_no_floor_and_no_ratio_is_no_retry() -> None:
    assert not after(1000, RetryRules(ratio=0.0, floor=0)).spend(0.0)


def test_what_is_older_than_a_minute_takes_no_memory() -> None:
    budget = RetryBudget(RULES)
    for second in range(10_000):
        budget.requested(float(second))
    assert len(budget._requests) <= 60


@given(
    st.lists(
        st.tuples(st.sampled_from(["request", "retry"]), st.integers(0, 20)),
        min_size=1,
        max_size=120,
    )
)
def test_in_no_minute_are_there_more_retries_than_the_budget(
    steps: list[tuple[str, int]],
) -> None:
    budget, now = RetryBudget(RULES), 0.0
    requests: list[float] = []
    retries: list[float] = []
    for kind, seconds in steps:
        now += seconds
        if kind == "request":
            budget.requested(now)
            requests.append(now)
            continue
        minute = [at for at in retries if at > now - 60]
        allowed = max(3, len([at for at in requests if at > now - 60]) // 5)
        granted = budget.spend(now)
        assert granted == (len(minute) < allowed)
        if granted:
            retries.append(now)


@given(st.floats(0.0, 1.0))
def test_the_pause_is_spread_over_all_of_its_range(chance: float) -> None:
    assert 0.0 <= pause(chance) <= MAX_PAUSE_S == 0.1
    assert pause(0.0) == 0.0
    assert pause(1.0) == MAX_PAUSE_S
    assert pause(chance) == pytest.approx(chance * MAX_PAUSE_S)
