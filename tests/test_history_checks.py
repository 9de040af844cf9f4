"""The checker of histories: what it explains, and what it does not."""

import pytest

from tests.history import Kind, Rule, Spell
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
    patch,
    rate,
    reads,
    registered,
    row,
    seen,
    written,
)

lost = action(1, 1, 2, **UNKNOWN)
repeat = action(1, 3, 4)
cut = action(1, 1, 2, None)
lost_patch = patch(2, 3, 4, **UNKNOWN)
lost_delete = delete(3, 3, 4, None)

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


bad_row = action(1, 1, 2, 409)
early = action(1, 1, 2, **NOT_SENT)
barred = action(1, 1, 2, 403, **{**DORA, "asked": lost.asked})
twice = [action(1, 1, 2, **UNKNOWN), action(1, 3, 4)]
remade = [create(1, 1, 2, **UNKNOWN), create(1, 5, 6)]
resent = delete(3, 5, 6, 404)
known = action(1, 1, 2)
stranger = action(9, 1, 2)

UNEXPLAINED = {
    "a write that was done and is not there": (history(action(1, 1, 2)), Rule.EFFECT),
    "a write that was not sent and is there": (
        history(early, held=[row(1)], also=[early]),
        Rule.EFFECT,
    ),
    "a write that was not sent and came": (history(early, again=[early]), Rule.EFFECT),
    "a refused write that is there": (history(bad_row, held=[row(1)], also=[bad_row]), Rule.EFFECT),
    "a write that may not be and came": (history(barred, again=[barred]), Rule.EFFECT),
    "a repeat that was carried out, too": (
        history(*twice, held=[row(1), row(1, id="other")], also=twice[:1]),
        Rule.EFFECT,
    ),
    "a lost write in the ledger twice": (
        history(lost, held=[row(1), row(1, id="other")], also=[lost]),
        Rule.EFFECT,
    ),
    "a rate made twice": (
        history(*remade, held=[rate("R", 1, "now"), rate("R", 1)], also=remade[:1]),
        Rule.EFFECT,
    ),
    "a write that came twice": (history(known, held=[row(1)], again=[known]), Rule.RESENT),
    "a write that nobody sent": (history(also=[stranger]), Rule.EFFECT),
    "a row that nobody asked for": (history(held=[row(1)]), Rule.EFFECT),
    "a row with another amount": (
        history(action(1, 1, 2), held=[row(1, amount="-1.251")]),
        Rule.EFFECT,
    ),
    "a row of another user": (
        history(action(1, 1, 2), held=[row(1, username="emil")]),
        Rule.EFFECT,
    ),
    "a rate that was written over": (
        history(create(1, 1, 2), patch(2, 3, 4), held=[rate("R", 1)]),
        Rule.EFFECT,
    ),
    "a rate that was deleted and is there": (
        history(create(1, 1, 2), delete(3, 3, 4), held=[rate("R", 1)]),
        Rule.EFFECT,
    ),
    "a delete that was refused and carried out": (
        history(create(1, 1, 2), resent, held=[rate("R", 1, "now")], also=[resent]),
        Rule.REFUSAL,
    ),
    "a rate as it was": (written(reads(5, 6, rate("R", 1))), Rule.STALE),
    "a rate as it will be": (written(reads(2.5, 2.9, rate("R", 2))), Rule.STALE),
    "a rate that nobody wrote": (written(reads(5, 6, rate("R", 7))), Rule.STALE),
    "a rate of two writes": (written(reads(5, 6, rate("R", 2, amount=1))), Rule.STALE),
    "a rate that is there, as missing": (written(reads(5, 6, None)), Rule.STALE),
    "a rate that is gone, as there": (written(reads(7, 8, rate("R", 2)), gone=True), Rule.STALE),
    "a rate that is there, as gone": (written(reads(5, 6, rate("R", 2, "now"))), Rule.STALE),
    "another rate": (written(reads(5, 6, rate("R", 2, id="other"))), Rule.ANSWER),
    "another rate of that name": (written(reads(5, 6, rate("R", 2, createdAt="x"))), Rule.ANSWER),
    "a list of rates as they were": (written(lists_rates(5, 6, rate("R", 1))), Rule.STALE),
    "a list without a rate": (written(lists_rates(5, 6)), Rule.STALE),
    "a list with a rate twice": (
        written(lists_rates(5, 6, rate("R", 2), rate("R", 2))),
        Rule.STALE,
    ),
    "a list with a rate that is gone": (
        written(lists_rates(7, 8, rate("R", 2)), gone=True),
        Rule.STALE,
    ),
    "a list with a rate, and that it is gone": (
        written(lists_rates(7, 8, rate("R", 2, "now")), gone=True),
        Rule.STALE,
    ),
    "a list with a rate of nobody": (
        written(lists_rates(5, 6, rate("R", 2), rate("X", 9))),
        Rule.ANSWER,
    ),
    "a list without a row": (registered(lists(5, 6, row(2))), Rule.STALE),
    "a list with a row twice": (registered(lists(5, 6, row(2), row(2), row(1))), Rule.STALE),
    "a list in the wrong order": (registered(lists(5, 6, row(1), row(2))), Rule.STALE),
    "a list with a row too early": (registered(lists(2.5, 2.9, row(2), row(1))), Rule.STALE),
    "a list with a row of nobody": (registered(lists(5, 6, row(9), row(2), row(1))), Rule.ANSWER),
    "a list with a changed row": (
        registered(lists(5, 6, row(2, currency="USD"), row(1))),
        Rule.ANSWER,
    ),
    "a list with what is hidden": (registered(lists(5, 6, row(2), row(1), **DORA)), Rule.ANSWER),
    "a list without what is not": (registered(lists(5, 6, seen(row(2)), row(1))), Rule.ANSWER),
    "a list with what was not asked for": (
        registered(lists(5, 6, row(2), asked={"username": "emil"})),
        Rule.ANSWER,
    ),
    "another's rows": (registered(lists(5, 6, **NOT_DORAS)), Rule.ANSWER),
    "an order of a user's that is kept from them": (
        history(
            action(1, 1, 2), call(Kind.ROWS, 5, 6, 403, **DORAS_ORDER), held=[row(1, order_id="o1")]
        ),
        Rule.STALE,
    ),
    "a list that is refused": (registered(call(Kind.ROWS, 5, 6, 403)), Rule.REFUSAL),
    "a user's own rows refused": (registered(call(Kind.ROWS, 5, 6, 403, **DORA)), Rule.REFUSAL),
    "a write that is refused": (history(action(1, 1, 2, 422)), Rule.REFUSAL),
    "a rate that exists, it says": (history(create(1, 1, 2, 409)), Rule.REFUSAL),
    "a rate that is there refused as missing": (written(patch(4, 5, 6, 404)), Rule.REFUSAL),
    "a rate refused before it was deleted": (
        written(patch(4, 4.1, 4.9, 404), gone=True),
        Rule.REFUSAL,
    ),
    "a user who writes": (
        history(action(1, 1, 2, **{**DORA, "asked": lost.asked}), held=[row(1)]),
        Rule.ANSWER,
    ),
    "the row of another write": (
        history(
            action(1, 1, 2, answer={"api_data": [row(2)]}), action(2, 1, 2), held=[row(1), row(2)]
        ),
        Rule.ANSWER,
    ),
    "the rate of another write": (
        history(create(1, 1, 2), patch(2, 3, 4, answer=rate("R", 1)), held=[rate("R", 2)]),
        Rule.ANSWER,
    ),
    "another success": (
        history(action(1, 1, 2, 200, answer={"api_data": [row(1)]}), held=[row(1)]),
        Rule.ANSWER,
    ),
    "the answer to another call": (registered(lists(5, 6, row(2), row(1), echo="c0")), Rule.ANSWER),
    "an answer to nobody": (registered(lists(5, 6, row(2), row(1), echo=None)), Rule.ANSWER),
    "an error of another call": (
        registered(
            call(
                Kind.ROWS,
                5,
                6,
                504,
                answer={"api_message": "LEDGER_TIMEOUT", "api_data": {"request_id": "c0"}},
            )
        ),
        Rule.ANSWER,
    ),
    "an error of another call for a rate": (
        written(call(Kind.RATES, 5, 6, 504, answer={"code": "LEDGER_TIMEOUT", "requestId": "c0"})),
        Rule.ANSWER,
    ),
    "an error of the gateway's own": (
        history(action(1, 1, 2, 500, answer=failed("INTERNAL_ERROR"))),
        Rule.ANSWER,
    ),
    "a write that is only broken": (
        history(action(1, 1, 2, 502, answer=failed("LEDGER_BROKEN"))),
        Rule.ANSWER,
    ),
    "a write that is only late": (
        history(action(1, 1, 2, 504, answer=failed("LEDGER_TIMEOUT"))),
        Rule.ANSWER,
    ),
    "a read with an outcome": (
        registered(call(Kind.ROWS, 5, 6, 504, answer=failed("OUTCOME_UNKNOWN"))),
        Rule.ANSWER,
    ),
}


@pytest.mark.parametrize(("told", "rule"), UNEXPLAINED.values(), ids=UNEXPLAINED)
def test_it_does_not_explain(told: History, rule: Rule) -> None:
    assert {violation.rule for violation in violations(*told)} >= {rule}


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
