"""The circuit breaker, driven by a clock in the hand."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.breaker import Admission, Breaker, BreakerRules, Circuit, Outcome

RULES = BreakerRules(window_s=10.0, min_calls=20, failure_ratio=0.5, open_s=5.0, max_open_s=60.0)


def admitted(breaker: Breaker, now: float) -> Admission:
    admission = breaker.admit(now)
    assert admission is not None
    return admission


def call(breaker: Breaker, outcome: Outcome, now: float) -> None:
    """One call that takes no time."""
    breaker.report(admitted(breaker, now), outcome, now)


def calls(breaker: Breaker, outcome: Outcome, count: int, now: float) -> None:
    for _ in range(count):
        call(breaker, outcome, now)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(RULES)
    calls(breaker, Outcome.FAILED, RULES.min_calls, now)
    assert breaker.state(now) is Circuit.OPEN
    return breaker


def test_a_new_circuit_is_closed_and_lets_every_call_pass() -> None:
    breaker = Breaker(RULES)
    admissions = [breaker.admit(0.0) for _ in range(1000)]
    assert breaker.state(0.0) is Circuit.CLOSED
    assert all(admission is not None and not admission.probe for admission in admissions)


@pytest.mark.parametrize(
    ("succeeded", "failed", "state"),
    [
        (0, 19, Circuit.CLOSED),
        (0, 20, Circuit.OPEN),
        (10, 9, Circuit.CLOSED),
        (10, 10, Circuit.OPEN),
        (11, 9, Circuit.CLOSED),
        (11, 10, Circuit.CLOSED),
        (11, 11, Circuit.OPEN),
        (100, 99, Circuit.CLOSED),
        (100, 100, Circuit.OPEN),
        (1000, 0, Circuit.CLOSED),
    ],
)
def test_it_opens_when_half_of_at_least_twenty_calls_failed(
    succeeded: int, failed: int, state: Circuit
) -> None:
    breaker = Breaker(RULES)
    calls(breaker, Outcome.SUCCEEDED, succeeded, 0.0)
    calls(breaker, Outcome.FAILED, failed, 0.0)
    assert breaker.state(0.0) is state


@pytest.mark.parametrize(
    ("age", "state"), [(9.99, Circuit.OPEN), (10.0, Circuit.CLOSED), (11.0, Circuit.CLOSED)]
)
def test_failures_count_for_ten_seconds(age: float, state: Circuit) -> None:
    breaker = Breaker(RULES)
    calls(breaker, Outcome.FAILED, 19, 100.0)
    call(breaker, Outcome.FAILED, 100.0 + age)
    assert breaker.state(100.0 + age) is state


def test_successes_too_are_forgotten_after_ten_seconds() -> None:
    breaker = Breaker(RULES)
    calls(breaker, Outcome.SUCCEEDED, 1000, 0.0)
    calls(breaker, Outcome.FAILED, 19, 11.0)
    assert breaker.state(11.0) is Circuit.CLOSED
    call(breaker, Outcome.FAILED, 11.0)
    assert breaker.state(11.0) is Circuit.OPEN


def test_abandoned_calls_do_not_count() -> None:
    breaker = Breaker(RULES)
    calls(breaker, Outcome.ABANDONED, 1000, 0.0)
    calls(breaker, Outcome.FAILED, 19, 0.0)
    assert breaker.state(0.0) is Circuit.CLOSED


def test_an_open_circuit_lets_nothing_pass_for_five_seconds_and_then_one_probe() -> None:
    breaker = opened()
    assert [breaker.admit(now) for now in (0.0, 1.0, 4.999)] == [None] * 3
    assert breaker.state(4.999) is Circuit.OPEN
    assert breaker.state(5.0) is Circuit.HALF_OPEN
    probe = admitted(breaker, 5.0)
    assert probe.probe
    assert [breaker.admit(now) for now in (5.0, 6.0, 1000.0)] == [None] * 3


def test_a_probe_that_succeeds_closes_the_circuit() -> None:
    breaker = opened()
    call(breaker, Outcome.SUCCEEDED, 5.0)
    assert breaker.state(5.0) is Circuit.CLOSED
    assert not any(admitted(breaker, 5.0).probe for _ in range(100))


def test_each_failed_probe_doubles_the_time_up_to_a_minute() -> None:
    breaker, now, waited = opened(), 0.0, []
    for _ in range(7):
        wait = breaker.wait(now)
        waited.append(wait)
        assert breaker.admit(now + wait - 0.001) is None
        now += wait
        call(breaker, Outcome.FAILED, now)
    assert waited == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0]


def test_a_closed_circuit_that_opens_again_starts_at_five_seconds() -> None:
    breaker = opened()
    call(breaker, Outcome.FAILED, 5.0)
    call(breaker, Outcome.SUCCEEDED, 15.0)
    calls(breaker, Outcome.FAILED, 20, 16.0)
    assert breaker.wait(16.0) == 5.0


def test_an_abandoned_probe_frees_its_place_and_changes_nothing() -> None:
    breaker = opened()
    call(breaker, Outcome.ABANDONED, 5.0)
    assert breaker.state(5.0) is Circuit.HALF_OPEN
    call(breaker, Outcome.FAILED, 5.0)
    assert breaker.wait(5.0) == 10.0


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_call_from_before_the_opening_says_nothing_for_the_probe(outcome: Outcome) -> None:
    breaker = Breaker(RULES)
    late = admitted(breaker, 0.0)
    calls(breaker, Outcome.FAILED, 20, 0.0)
    probe = admitted(breaker, 5.0)
    breaker.report(late, outcome, 5.5)
    assert breaker.state(5.5) is Circuit.HALF_OPEN
    assert breaker.admit(5.5) is None
    breaker.report(probe, Outcome.SUCCEEDED, 6.0)
    assert breaker.state(6.0) is Circuit.CLOSED


def test_late_failures_while_open_do_not_make_it_open_longer() -> None:
    breaker = Breaker(RULES)
    late = [admitted(breaker, 0.0) for _ in range(100)]
    calls(breaker, Outcome.FAILED, 20, 0.0)
    for admission in late:
        breaker.report(admission, Outcome.FAILED, 4.0)
    assert breaker.state(5.0) is Circuit.HALF_OPEN


@pytest.mark.parametrize("when", [4.0, 6.0], ids=["while open", "after it has closed again"])
def test_late_failures_of_the_last_outage_do_not_open_a_circuit_that_has_recovered(
    when: float,
) -> None:
    breaker = Breaker(RULES)
    late = [admitted(breaker, 0.0) for _ in range(100)]
    calls(breaker, Outcome.FAILED, 20, 0.0)
    if when < 5.0:
        for admission in late:
            breaker.report(admission, Outcome.FAILED, when)
    call(breaker, Outcome.SUCCEEDED, 5.0)
    if when > 5.0:
        for admission in late:
            breaker.report(admission, Outcome.FAILED, when)
    call(breaker, Outcome.SUCCEEDED, 6.0)
    assert breaker.state(6.0) is Circuit.CLOSED


def test_after_closing_it_takes_twenty_new_calls_to_open_again() -> None:
    breaker = opened()
    call(breaker, Outcome.SUCCEEDED, 5.0)
    calls(breaker, Outcome.FAILED, 19, 5.0)
    assert breaker.state(5.0) is Circuit.CLOSED
    call(breaker, Outcome.FAILED, 5.0)
    assert breaker.state(5.0) is Circuit.OPEN


@pytest.mark.parametrize(("now", "wait"), [(0.0, 5.0), (2.5, 2.5), (4.5, 1.0), (9.0, 1.0)])
def test_the_wait_is_what_is_left_and_never_under_a_second(now: float, wait: float) -> None:
    assert opened().wait(now) == wait


SMALL = BreakerRules(window_s=4.0, min_calls=4, failure_ratio=0.5, open_s=1.0, max_open_s=4.0)


class AnyBreaker(RuleBasedStateMachine):
    """Calls that begin and end in any order, beside a model that keeps everything."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(SMALL)
        self.now = 100.0
        self.pending: list[tuple[Admission, int]] = []
        self.history: list[tuple[float, bool]] = []
        self.era = 0
        self.closed = True
        self.open_s = SMALL.open_s
        self.opens_at = 0.0

    def expected(self) -> Circuit:
        if self.closed:
            return Circuit.CLOSED
        return Circuit.OPEN if self.now < self.opens_at else Circuit.HALF_OPEN

    def open(self) -> None:
        self.closed, self.era = False, self.era + 1
        self.opens_at, self.history = self.now + self.open_s, []

    @rule(quarters=st.integers(0, 12))
    def time_passes(self, quarters: int) -> None:
        self.now += quarters / 4

    @rule(count=st.integers(1, 4))
    def calls_begin(self, count: int) -> None:
        for _ in range(count):
            probing = any(admission.probe for admission, _ in self.pending)
            state = self.expected()
            admission = self.breaker.admit(self.now)
            if state is Circuit.CLOSED:
                assert admission is not None
                assert not admission.probe
            elif state is Circuit.HALF_OPEN and not probing:
                assert admission is not None
                assert admission.probe
            else:
                assert admission is None
            if admission is not None:
                self.pending.append((admission, self.era))

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 100), outcome=st.sampled_from(Outcome))
    def a_call_ends(self, which: int, outcome: Outcome) -> None:
        admission, era = self.pending.pop(which % len(self.pending))
        self.breaker.report(admission, outcome, self.now)
        if outcome is Outcome.ABANDONED:
            return
        if admission.probe and outcome is Outcome.SUCCEEDED:
            self.closed, self.open_s = True, SMALL.open_s
        elif admission.probe:
            self.open_s = min(self.open_s * 2, SMALL.max_open_s)
            self.open()
        elif era == self.era:
            self.history.append((self.now, outcome is Outcome.FAILED))
            recent = [failed for at, failed in self.history if at > self.now - SMALL.window_s]
            if len(recent) >= SMALL.min_calls and sum(recent) * 2 >= len(recent):
                self.open()

    @invariant()
    def it_is_in_the_state_that_the_model_is_in(self) -> None:
        assert self.breaker.state(self.now) is self.expected()

    @invariant()
    def there_is_one_probe_at_most(self) -> None:
        assert sum(admission.probe for admission, _ in self.pending) <= 1


TestAnyBreaker = AnyBreaker.TestCase
TestAnyBreaker.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
