"""The checker of histories: what it explains."""

import pytest

from tests.history import Kind, Spell
from tests.history_checks import violations
from tests.history_told import (
    DORA,
    DORAS_ORDER,
    NOT_DORAS,
    NOT_SENT,
    UNKNOWN,
    History,
    action,
    call,
    create,
    delete,
    failed,
    history,
    lists,
    lists_rates,
    lost,
    lost_delete,
    other_rate,
    patch,
    rate,
    reads,
    registered,
    row,
    seen,
    written,
)

repeat = action(1, 3, 4)
cut = action(1, 1, 2, None)
lost_patch = patch(2, 3, 4, **UNKNOWN)
lost_create = create(1, 1, 2, **UNKNOWN)

EXPLAINED = {
    "nothing": history(),
    "a write that was done": history(action(1, 1, 2), held=[row(1)]),
    "a lost write that took effect": history(lost, held=[row(1)], also=[lost]),
    "a lost write that did not": history(lost),
    "a cut write that took effect": history(cut, held=[row(1)], also=[cut]),
    "a lost write that was repeated": history(lost, action(1, 3, 4), held=[row(1)]),
    "a repeat that came after the effect": history(
        lost, repeat, held=[row(1)], also=[lost], replayed=[repeat]
    ),
    "a write that was not sent": history(action(1, 1, 2, **NOT_SENT)),
    "a write for which nobody listened": history(action(1, 1, 2, None, sent=False)),
    "a write that may not be": history(action(1, 1, 2, 403, **{**DORA, "asked": {}})),
    "the newest rate": written(reads(5, 6, rate("R", 2))),
    "the old rate while it is written": written(reads(3, 6, rate("R", 1))),
    "the new rate while it is written": written(reads(2.5, 3.5, rate("R", 2))),
    "new, then old, while it is written": written(
        reads(3.1, 3.2, rate("R", 2)), reads(3.3, 3.4, rate("R", 1))
    ),
    "no rate before it is there": written(reads(0, 3, None), lists_rates(0, 3)),
    "no rate while it is made": written(reads(1.5, 3, None), lists_rates(1.5, 3)),
    "a rate that is gone": written(reads(7, 8, rate("R", 2, "now")), gone=True),
    "no rate in a list when it is gone": written(lists_rates(7, 8), gone=True),
    "a rate in a list while it is deleted": written(lists_rates(5.5, 7, rate("R", 2)), gone=True),
    "a write of a rate that is gone": written(patch(4, 7, 8, 404), gone=True),
    "a write of a rate while it is deleted": written(patch(4, 5, 8, 404), gone=True),
    "a second delete": written(delete(4, 7, 8, 404), gone=True),
    "a lost write that is seen much later": history(
        create(1, 1, 2),
        lost_patch,
        patch(4, 5, 6),
        reads(7, 8, rate("R", 4)),
        reads(9, 10, rate("R", 2)),
        held=[rate("R", 2)],
        also=[lost_patch],
    ),
    "writes at once, in either order": history(
        create(1, 1, 2),
        patch(2, 3, 6),
        patch(3, 4, 5),
        reads(7, 8, rate("R", 2)),
        reads(7, 8, rate("R", 3)),
        held=[rate("R", 3)],
    ),
    "a lost write that is seen before it is repeated": history(
        lost_create, reads(3, 4, rate("R", 1)), create(1, 5, 6), held=[rate("R", 1)]
    ),
    "a list of one rate of two": history(
        create(1, 1, 2),
        other_rate,
        lists_rates(3, 4, rate("R", 1), asked={"rate": "R"}),
        held=[rate("R", 1), rate("S", 2)],
    ),
    "a refusal after a delete that was lost": history(
        create(1, 1, 2), lost_delete, patch(4, 5, 6, 404), held=[rate("R", 1)]
    ),
    "all rows": registered(lists(5, 6, row(2), row(1))),
    "a row while it is registered": registered(lists(3, 3.5, row(2), row(1))),
    "not yet a row that is being registered": registered(lists(3.5, 6, row(1))),
    "rows registered at once, in either order": history(
        action(1, 1, 4), action(2, 2, 3), lists(5, 6, row(1), row(2)), held=[row(1), row(2)]
    ),
    "a user's rows, without what is hidden": registered(
        lists(5, 6, seen(row(2)), seen(row(1)), **DORA)
    ),
    "no rows of another": registered(lists(5, 6, asked={"username": "emil"})),
    "no order of a user's": registered(call(Kind.ROWS, 5, 6, 403, **DORAS_ORDER)),
    "another's rows refused": registered(call(Kind.ROWS, 5, 6, 403, **NOT_DORAS)),
    "a read that was not answered": registered(
        call(Kind.ROWS, 5, 6, 502, answer=failed("LEDGER_BROKEN")),
        call(Kind.ROWS, 5, 6, 504, answer=failed("LEDGER_TIMEOUT")),
        call(Kind.ROWS, 5, 6, 503, answer=failed("OVERLOADED")),
        call(Kind.ROWS, 5, 6, None),
    ),
}


@pytest.mark.parametrize("told", EXPLAINED.values(), ids=EXPLAINED)
def test_it_explains(told: History) -> None:
    assert violations(*told) == []


@pytest.mark.parametrize(
    ("written_over", "began", "explains"),
    [
        (9.5, 9.9, False),
        (9.5, 10.0, True),
        (9.5, 11.5, True),
        (9.5, 11.6, False),
        (20.5, 22.0, True),
        (20.5, 22.1, False),
    ],
)
def test_an_old_answer_is_explained_while_two_gateways_serve(
    written_over: float, began: float, explains: bool
) -> None:
    calls = create(1, 1, 2), patch(2, 9, written_over), reads(began, 30, rate("R", 1))
    _, ledger = history(*calls, held=[rate("R", 2)])
    assert (violations(calls, ledger, [Spell(10.0, 20.0, 2.0)]) == []) is explains
