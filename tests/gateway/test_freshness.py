"""Freshness: how `Cache-Control` is read, and what a kept reply of some age is good for."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.freshness import (
    NO_WISHES,
    Lifetime,
    Use,
    Wishes,
    allowed,
    directives,
    use_of,
    wishes,
)

FOREVER = float("inf")
# Of numbers: beyond what an integer of 64 bits holds, a float, and what Python reads by default.
LENGTHS = [30, 400, 5000, 8000]


def request(*values: str) -> CIMultiDictProxy[str]:
    """The headers of a request with these `Cache-Control` lines."""
    return CIMultiDictProxy(CIMultiDict([("Cache-Control", value) for value in values]))


# The grammar.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], {}),
        ([""], {}),
        ([" , ,, "], {}),
        (["no-store"], {"no-store": ""}),
        (["No-STORE"], {"no-store": ""}),
        (["max-age=5"], {"max-age": "5"}),
        (["MAX-AGE=5"], {"max-age": "5"}),
        (['max-age="5"'], {"max-age": "5"}),
        (["max-age=5,no-store"], {"max-age": "5", "no-store": ""}),
        (["max-age=5\t ,\t no-store "], {"max-age": "5", "no-store": ""}),
        (["max-age=5", "no-store"], {"max-age": "5", "no-store": ""}),
        (["max-age=5, max-age=9"], {"max-age": "5"}),
        (["max-age=5", "max-age=9"], {"max-age": "5"}),
        (["max-age="], {"max-age": ""}),
        (["max-age = 5"], {"max-age": "5"}),
        (["max-age=-5"], {"max-age": "-5"}),
        (["max-age=5;no-store"], {"max-age": "5;no-store"}),
        (["max-age=5 no-store"], {"max-age": "5", "no-store": ""}),
        (['private="Set-Cookie, X-A"'], {"private": "Set-Cookie, X-A"}),
        (['x="a, no-store, b", max-age=5'], {"x": "a, no-store, b", "max-age": "5"}),
        (['x="a \\", no-store, b", max-age=5'], {"x": 'a \\", no-store, b', "max-age": "5"}),
        (["x='a, no-store'"], {"x": "'a", "no-store'": ""}),
        (["x-no-store"], {"x-no-store": ""}),
        (["no-storex"], {"no-storex": ""}),
        (["=5, max-age=7"], {"5": "", "max-age": "7"}),
    ],
)
def test_directives_are_read_as_names_and_arguments(
    values: list[str], said: dict[str, str]
) -> None:
    assert directives(values) == said


@pytest.mark.parametrize(
    "value", ['x="a, no-store', 'x="a\\", no-store', '", no-store', '"" no-store, "', "x=(no-store"]
)
def test_a_quotation_that_does_not_end_hides_no_prohibition(value: str) -> None:
    assert "no-store" in str(directives([value]))
    if "(" not in value:
        assert directives([value])["no-store"] == ""


_NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
_PLAIN = st.from_regex(r"[A-Za-z0-9.-]{1,6}", fullmatch=True)
_QUOTED = st.from_regex(r"[A-Za-z0-9 ,=;.]{0,9}", fullmatch=True)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(_NAMES, st.none() | _PLAIN | _QUOTED.map(lambda text: f'"{text}"')))
def test_what_is_written_by_the_grammar_is_read_back(said: dict[str, str | None]) -> None:
    value = ", ".join(name if text is None else f"{name}={text}" for name, text in said.items())
    assert directives([value]) == {name: (text or "").strip('"') for name, text in said.items()}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_text_is_read_without_an_error(values: list[str]) -> None:
    assert all(name == name.lower() for name in directives(values))
    wish = wishes(request(*values))
    assert wish.max_age >= 0
    assert wish.stale_if_error >= 0


@pytest.mark.parametrize(
    "value",
    [
        '"' + " " * 8000 + '"',
        "=" + " " * 8000 + "=",
        "a" + " " * 8000 + '"',
        'a="' + "\\" * 8000,
        'a="' * 2600,
        '"' + "\t " * 4000,
    ],
    ids=["quoted", "equals", "name", "escapes", "openings", "tabs"],
)
def test_no_header_takes_long_to_read(value: str) -> None:
    """The longest line that a head may hold, read a few times."""
    begun = time.thread_time()
    for _ in range(4):
        directives([value])
    assert time.thread_time() - begun < 0.2


# What a caller wishes.


@pytest.mark.parametrize(
    ("values", "wish"),
    [
        ([], NO_WISHES),
        (["nothing-to-see-here"], NO_WISHES),
        (["no-cache"], Wishes(no_cache=True)),
        (["no-store"], Wishes(no_store=True)),
        (["no-cache, no-store"], Wishes(no_cache=True, no_store=True)),
        (["no-cache", "no-store"], Wishes(no_cache=True, no_store=True)),
        (["max-age=0"], Wishes(max_age=0.0)),
        (["max-age=7"], Wishes(max_age=7.0)),
        (['max-age="7"'], Wishes(max_age=7.0)),
        (["max-age=007"], Wishes(max_age=7.0)),
        (["max-age"], Wishes(max_age=0.0)),
        (["max-age="], Wishes(max_age=0.0)),
        (["max-age=-1"], Wishes(max_age=0.0)),
        (["max-age=1.5"], Wishes(max_age=0.0)),
        (["max-age=1e9"], Wishes(max_age=0.0)),
        (["max-age=inf"], Wishes(max_age=0.0)),
        (["max-age=nan"], Wishes(max_age=0.0)),
        (["max-age=1_0"], Wishes(max_age=0.0)),
        (["max-age=\u0661\u0662"], Wishes(max_age=0.0)),
        (["max-age=\u00b2"], Wishes(max_age=0.0)),
        (["stale-if-error=60"], Wishes(stale_if_error=60.0)),
        (["stale-if-error"], Wishes()),
        (["stale-if-error=-60"], Wishes()),
        (["stale-if-error=x"], Wishes()),
        (["max-age=5, stale-if-error=9"], Wishes(max_age=5.0, stale_if_error=9.0)),
        (["max-stale=60, min-fresh=1, only-if-cached"], NO_WISHES),
    ],
)
def test_a_wish_is_what_the_headers_say_and_what_cannot_be_read_is_the_strictest(
    values: list[str], wish: Wishes
) -> None:
    assert wishes(request(*values)) == wish


@pytest.mark.parametrize("digits", ["9" * count for count in LENGTHS], ids=map(str, LENGTHS))
def test_a_huge_number_is_a_number(digits: str) -> None:
    wish = wishes(request(f"max-age={digits}, stale-if-error={digits}"))
    assert wish.max_age == wish.stale_if_error == float(digits)
    lifetime = Lifetime(10.0, max_stale_s=60.0)
    assert use_of(9.0, lifetime, wish) is Use.FRESH
    assert use_of(69.0, lifetime, wish) is Use.IF_ERROR
    assert use_of(70.0, lifetime, wish) is Use.NONE
    assert allowed(lifetime, [f"max-age={digits}"]) == lifetime


def test_the_name_of_the_header_is_in_any_case() -> None:
    headers = CIMultiDictProxy(CIMultiDict([("cache-CONTROL", "no-cache")]))
    assert wishes(headers).no_cache


# What the ledger allows.

RATES = Lifetime(10.0, 5.0, 60.0, 60.0)
NOT_AT_ALL = Lifetime(0.0)


@pytest.mark.parametrize(
    ("values", "lifetime"),
    [
        ([], RATES),
        (["public"], RATES),
        (["max-age=11"], RATES),
        (["max-age=3"], Lifetime(3.0, 5.0, 60.0, 60.0)),
        (['max-age="3"'], Lifetime(3.0, 5.0, 60.0, 60.0)),
        (["max-age=3, max-age=9"], Lifetime(3.0, 5.0, 60.0, 60.0)),
        (["max-age=0"], Lifetime(0.0, 5.0, 60.0, 60.0)),
        (["max-age=x"], Lifetime(0.0, 5.0, 60.0, 60.0)),
        (["s-maxage=3, max-age=9"], Lifetime(3.0)),
        (["max-age=3, s-maxage=9"], Lifetime(9.0)),
        (["s-maxage=99"], Lifetime(10.0)),
        (["s-maxage=x"], NOT_AT_ALL),
        (["must-revalidate"], Lifetime(10.0)),
        (["proxy-revalidate"], Lifetime(10.0)),
        (["max-age=3, must-revalidate"], Lifetime(3.0)),
        (["max-age=3", "Must-Revalidate"], Lifetime(3.0)),
        (["no-store"], NOT_AT_ALL),
        (["private"], NOT_AT_ALL),
        (["no-cache"], NOT_AT_ALL),
        (['private="x"'], NOT_AT_ALL),
        (['no-cache="x"'], NOT_AT_ALL),
        (["max-age=99, NO-STORE"], NOT_AT_ALL),
        (["max-age=99", "no-store"], NOT_AT_ALL),
        (['x="no-store"'], RATES),
        (["stale-if-error=0, stale-while-revalidate=0"], RATES),
    ],
)
def test_the_ledger_may_shorten_a_lifetime_and_never_lengthens_it(
    values: list[str], lifetime: Lifetime
) -> None:
    assert allowed(RATES, values) == lifetime


_SAID = st.sampled_from(
    ["no-store", "private", "no-cache", "public", "must-revalidate", "s-maxage=4", "max-age=2", "x"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_SAID, max_size=4), st.lists(_SAID, max_size=4))
def test_lines_mean_what_one_line_of_them_does(one: list[str], other: list[str]) -> None:
    together = allowed(RATES, [", ".join([*one, *other])])
    assert allowed(RATES, [", ".join(one), ", ".join(other)]) == together
    for bound in ("fresh_s", "revalidate_s", "if_error_s", "max_stale_s"):
        assert getattr(together, bound) <= getattr(RATES, bound)


# What a reply of an age is good for.

JUST = 0.001
ROWS = Lifetime(1.0, max_stale_s=60.0)
F, R, E, N = Use.FRESH, Use.REVALIDATED, Use.IF_ERROR, Use.NONE


def wish(max_age: float = FOREVER, stale: float = 0.0) -> Wishes:
    return Wishes(max_age=max_age, stale_if_error=stale)


@pytest.mark.parametrize(
    ("lifetime", "said", "uses"),
    [
        # A price: fresh, then good while it is fetched again, then only if that fails.
        (RATES, wish(), {0: F, 10 - JUST: F, 10: R, 15 - JUST: R, 15: E, 70 - JUST: E, 70: N}),
        (RATES, wish(stale=5), {14: R, 15: E, 70 - JUST: E, 70: N}),
        (RATES, wish(stale=999), {70 - JUST: E, 70: N}),
        (RATES, wish(max_age=0), {0: F, JUST: N, 5: N, 12: N, 40: N, 80: N}),
        (RATES, wish(max_age=5), {5: F, 5 + JUST: N, 9: N, 11: N, 20: N}),
        (RATES, wish(max_age=12), {9: F, 12: R, 12 + JUST: N, 15: N}),
        (RATES, wish(max_age=20), {15: E, 20: E, 20 + JUST: N}),
        (RATES, wish(max_age=99), {70 - JUST: E, 70: N}),
        # Who sets a limit and says what may be given if the ledger fails.
        (RATES, wish(5, 30), {5: F, 6: E, 12: E, 40 - JUST: E, 40: N}),
        (RATES, wish(0, 999), {JUST: E, 70 - JUST: E, 70: N}),
        # Rows: never old unless it is asked for, and then not older than is kept.
        (ROWS, wish(), {0: F, 1 - JUST: F, 1: N, 2: N}),
        (ROWS, wish(stale=30), {1 - JUST: F, 1: E, 31 - JUST: E, 31: N}),
        (ROWS, wish(stale=60), {61 - JUST: E, 61: N}),
        (ROWS, wish(stale=61), {61 - JUST: E, 61: N}),
        (ROWS, wish(max_age=0), {0: F, JUST: N}),
        (ROWS, wish(0, 30), {JUST: E, 31 - JUST: E, 31: N}),
        # What must be revalidated is good for nothing else.
        (Lifetime(5.0), wish(stale=99), {5 - JUST: F, 5: N}),
        (Lifetime(5.0), wish(1, 99), {1: F, 1 + JUST: N, 5: N}),
        (NOT_AT_ALL, wish(), {0: N, 1: N}),
        (NOT_AT_ALL, wish(stale=99), {0: N, 1: N}),
    ],
)
def test_what_a_reply_is_good_for_depends_on_its_age_and_the_wish(
    lifetime: Lifetime, said: Wishes, uses: dict[float, Use]
) -> None:
    assert {age: use_of(age, lifetime, said) for age in uses} == uses


@pytest.mark.parametrize("said", [Wishes(no_cache=True), Wishes(no_store=True)])
@pytest.mark.parametrize("age", [0.0, 9.0, 12.0, 30.0])
def test_who_wishes_no_kept_answer_gets_none_at_any_age(said: Wishes, age: float) -> None:
    assert use_of(age, RATES, said) is Use.NONE


_TIMES = st.sampled_from([0.0, 1.0, 2.0, 5.0, 10.0])
_WISHES = st.builds(
    Wishes, st.booleans(), st.booleans(), st.sampled_from([0.0, 1.0, 4.0, FOREVER]), _TIMES
)
_ORDER = list(Use)


@settings(max_examples=300, deadline=None)
@given(st.builds(Lifetime, _TIMES, _TIMES, _TIMES, _TIMES), _WISHES, _AGES := st.floats(0, 50))
def test_nothing_is_used_beyond_what_it_is_kept_for_nor_unasked_beyond_its_time(
    lifetime: Lifetime, said: Wishes, age: float
) -> None:
    use = use_of(age, lifetime, said)
    if age >= lifetime.kept_s or said.no_cache or said.no_store:
        assert use is Use.NONE
    if age > said.max_age and not said.stale_if_error:
        assert use is Use.NONE
    if use is not Use.NONE and age >= lifetime.fresh_s:
        asked = min(said.stale_if_error, lifetime.max_stale_s)
        assert age - lifetime.fresh_s < max(lifetime.revalidate_s, lifetime.if_error_s, asked)


@settings(max_examples=300, deadline=None)
@given(st.builds(Lifetime, _TIMES, _TIMES, _TIMES, _TIMES), _WISHES, _AGES, _AGES)
def test_a_reply_never_becomes_good_for_more_by_getting_older(
    lifetime: Lifetime, said: Wishes, one: float, other: float
) -> None:
    uses = [use_of(age, lifetime, said) for age in sorted((one, other))]
    assert _ranks(uses) == sorted(_ranks(uses))


def _ranks(uses: Iterable[Use]) -> list[int]:
    return [_ORDER.index(use) for use in uses]


@pytest.mark.parametrize(
    ("lifetime", "kept_s"),
    [(RATES, 70.0), (ROWS, 61.0), (Lifetime(5.0), 5.0), (NOT_AT_ALL, 0.0)],
)
def test_a_reply_is_kept_for_as_long_as_it_may_be_good_for_anything(
    lifetime: Lifetime, kept_s: float
) -> None:
    assert lifetime.kept_s == kept_s
