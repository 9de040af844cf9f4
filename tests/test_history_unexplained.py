"""The checker of histories: what it does not explain."""

import pytest

from tests.history import Kind, Rule
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

broken = action(1, 1, 2, 502, answer=failed("LEDGER_BROKEN"))
bad_row = action(1, 1, 2, 409)
early = action(1, 1, 2, **NOT_SENT)
barred = action(1, 1, 2, 403, **{**DORA, "asked": lost.asked})
twice = [action(1, 1, 2, **UNKNOWN), action(1, 3, 4)]
remade = [create(1, 1, 2, **UNKNOWN), create(1, 5, 6)]
both = [action(1, 1, 6), action(1, 1, 2)]
in_a_row = [action(1, 1, 2), action(2, 1, 10), action(3, 3, 4)]
resent = delete(3, 5, 6, 404)
known = action(1, 1, 2)
stranger = action(9, 1, 2)

UNEXPLAINED = {
    "a write that was done and is not there": (
        history(action(1, 1, 2)),
        {Rule.EFFECT, Rule.ANSWER},
    ),
    "a write that was not sent and is there": (
        history(early, held=[row(1)], also=[early]),
        Rule.EFFECT,
    ),
    "a write that was not sent and came": (history(early, again=[early]), Rule.EFFECT),
    "a refused write that is there": (
        history(bad_row, held=[row(1)], also=[bad_row]),
        {Rule.EFFECT, Rule.REFUSAL},
    ),
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
        {Rule.EFFECT, Rule.ANSWER},
    ),
    "a row of another user": (
        history(action(1, 1, 2), held=[row(1, username="emil")]),
        {Rule.EFFECT, Rule.ANSWER},
    ),
    "a rate that was written over": (
        history(create(1, 1, 2), patch(2, 3, 4), held=[rate("R", 1)]),
        Rule.EFFECT,
    ),
    "a rate that was deleted and is there": (
        history(create(1, 1, 2), delete(3, 3, 4), held=[rate("R", 1)]),
        Rule.EFFECT,
    ),
    "a row that is there twice": (
        history(action(1, 1, 2), held=[row(1), row(1, id="other")]),
        Rule.EFFECT,
    ),
    "a rate that is there twice": (
        history(create(1, 1, 2), held=[rate("R", 1, id="other"), rate("R", 1)]),
        Rule.EFFECT,
    ),
    "a repeated delete that was refused": (
        history(
            create(1, 1, 2),
            lost_delete,
            delete(3, 5, 6, 404),
            held=[rate("R", 1, "now")],
            also=[lost_delete],
        ),
        Rule.REFUSAL,
    ),
    "a delete that was refused and carried out": (
        history(create(1, 1, 2), resent, held=[rate("R", 1, "now")], also=[resent]),
        {Rule.REFUSAL, Rule.EFFECT},
    ),
    "a rate as it was": (written(reads(5, 6, rate("R", 1))), Rule.STALE),
    "a rate as it would be, had it been sent": (
        history(
            create(1, 1, 2),
            patch(2, 3, 4, **NOT_SENT),
            reads(5, 6, rate("R", 2)),
            held=[rate("R", 1)],
        ),
        Rule.STALE,
    ),
    "a rate that is not the one of that id": (
        written(call(Kind.RATE, 5, 6, 200, asked={"rate": "R", "id": "x"}, answer=rate("R", 2))),
        Rule.ANSWER,
    ),
    "a list of one rate with another": (
        history(
            create(1, 1, 2),
            other_rate,
            lists_rates(3, 4, rate("R", 1), rate("S", 2), asked={"rate": "R"}),
            held=[rate("R", 1), rate("S", 2)],
        ),
        Rule.ANSWER,
    ),
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
        {Rule.ANSWER, Rule.STALE},
    ),
    "a list without a row": (registered(lists(5, 6, row(2))), Rule.STALE),
    "a list with a row twice": (registered(lists(5, 6, row(2), row(2), row(1))), Rule.STALE),
    "a list without a row that was done for one of two": (
        history(*both, lists(3, 4), held=[row(1)], replayed=both[:1]),
        Rule.STALE,
    ),
    "a list in the wrong order, with one between": (
        history(*in_a_row, lists(11, 12, row(1), row(2), row(3)), held=[row(1), row(2), row(3)]),
        Rule.STALE,
    ),
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
            action(1, 1, 2, answer={"api_data": [row(1, order_id="o1")]}),
            call(Kind.ROWS, 5, 6, 403, **DORAS_ORDER),
            held=[row(1, order_id="o1")],
        ),
        Rule.STALE,
    ),
    "a list that is refused": (registered(call(Kind.ROWS, 5, 6, 403)), Rule.REFUSAL),
    "a user's own rows refused": (registered(call(Kind.ROWS, 5, 6, 403, **DORA)), Rule.REFUSAL),
    "an order refused to one who may read all": (
        registered(call(Kind.ROWS, 5, 6, 403, asked={"order_id": "o1"})),
        Rule.REFUSAL,
    ),
    "a rate that is gone refused as there": (written(patch(4, 7, 8, 409), gone=True), Rule.REFUSAL),
    "a write that is refused": (history(action(1, 1, 2, 422)), Rule.REFUSAL),
    "a rate that exists, it says": (history(create(1, 1, 2, 409)), Rule.REFUSAL),
    "a rate that is there refused as missing": (written(patch(4, 5, 6, 404)), Rule.REFUSAL),
    "a rate refused before it was deleted": (
        written(patch(4, 4.1, 4.9, 404), gone=True),
        Rule.REFUSAL,
    ),
    "a user who writes": (
        history(action(1, 1, 2, **{**DORA, "asked": lost.asked}), held=[row(1)]),
        {Rule.ANSWER, Rule.EFFECT},
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
    "the row, changed": (
        history(action(1, 1, 2, answer={"api_data": [row(1, currency="USD")]}), held=[row(1)]),
        Rule.ANSWER,
    ),
    "the rate, changed": (
        history(create(1, 1, 2, answer=rate("R", 1, id="other")), held=[rate("R", 1)]),
        Rule.ANSWER,
    ),
    "a write that the gateway failed at, with the words of another answer": (
        history(action(1, 1, 2, 500, answer=failed("CIRCUIT_OPEN"))),
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
    "a write that is only broken": (history(broken, held=[row(1)], also=[broken]), Rule.ANSWER),
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
def test_it_does_not_explain(told: History, rule: Rule | set[Rule]) -> None:
    rules = rule if isinstance(rule, set) else {rule}
    assert {violation.rule for violation in violations(*told)} == rules
