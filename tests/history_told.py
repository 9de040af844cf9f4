"""Histories as a test tells them: a few calls, their times, and what the ledger then holds."""

from collections.abc import Sequence
from typing import Any

from tests.history import Call, Delivery, Kind, LedgerState

Document = dict[str, Any]
NAMES = iter(range(1_000_000))


# What a ledger holds.


def row(number: int, username: str = "dora", **fields: Any) -> Document:
    given = {"id": f"id{number}", "username": username, "currency": "EUR", "lp_id": "lp"}
    return {**given, "amount": f"-{number}.250", "order_id": None, **fields}


def rate(name: str, number: int, deleted: str | None = None, **fields: Any) -> Document:
    given = {"id": f"id of {name}", "baseInstrumentCode": name, "ledgerId": "l"}
    dates = {"createdAt": "then", "organizationId": "o", "deletedAt": deleted}
    return {**given, **dates, "amount": number, "source": f"w{number}", **fields}


def seen(document: Document) -> Document:
    """A row as a user sees it."""
    return {name: value for name, value in document.items() if name != "lp_id"}


# What is asked and answered. Times are in no unit.


def call(kind: Kind, began: float, ended: float, status: int | None, **rest: Any) -> Call:
    name = f"c{next(NAMES)}"
    given = {"name": name, "caller": "root", "role": "admin", "asked": {}, "echo": name, **rest}
    return Call(kind=kind, began=began, ended=ended, status=status, **given)


def failed(code: str) -> Document:
    return {"api_message": code, "api_data": {"detail": "no"}}


def action(number: int, began: float, ended: float, status: int | None = 201, **rest: Any) -> Call:
    asked = {name: row(number)[name] for name in ("username", "currency", "amount")}
    answer = {"api_data": [row(number)]} if status == 201 else None
    given = {"asked": asked, "write": f"w{number}", "answer": answer, **rest}
    return call(Kind.ACTION, began, ended, status, **given)


def create(number: int, began: float, ended: float, status: int | None = 201, **rest: Any) -> Call:
    return rate_write(Kind.CREATE, number, began, ended, status, **rest)


def patch(number: int, began: float, ended: float, status: int | None = 200, **rest: Any) -> Call:
    return rate_write(Kind.PATCH, number, began, ended, status, **rest)


def delete(number: int, began: float, ended: float, status: int | None = 204, **rest: Any) -> Call:
    return rate_write(Kind.DELETE, number, began, ended, status, **{"answer": None, **rest})


def rate_write(
    kind: Kind, number: int, began: float, ended: float, status: int | None, **rest: Any
) -> Call:
    answer = rate("R", number) if status in (200, 201) else None
    given = {"asked": {"rate": "R"}, "write": f"w{number}", "answer": answer, **rest}
    return call(kind, began, ended, status, **given)


def reads(began: float, ended: float, found: Document | None) -> Call:
    """A read of the one rate; None: there is none."""
    status, answer = (200, found) if found else (404, failed("0007"))
    asked = {"rate": "R", "id": "id of R"}
    return call(Kind.RATE, began, ended, status, asked=asked, answer=answer)


def lists(began: float, ended: float, *found: Document, **rest: Any) -> Call:
    """A list of rows."""
    return call(Kind.ROWS, began, ended, 200, **{"answer": {"api_data": list(found)}, **rest})


def lists_rates(began: float, ended: float, *found: Document, **rest: Any) -> Call:
    return call(Kind.RATES, began, ended, 200, answer=list(found), **rest)


DORA: Document = {"caller": "dora", "role": "user", "asked": {"username": "dora"}}
DORAS_ORDER: Document = {**DORA, "asked": {"username": "dora", "order_id": "o1"}}
NOT_DORAS: Document = {**DORA, "asked": {"username": "emil"}}
UNKNOWN: Document = {"status": 504, "answer": failed("OUTCOME_UNKNOWN")}
NOT_SENT: Document = {"status": 503, "answer": failed("CIRCUIT_OPEN")}

History = tuple[Sequence[Call], LedgerState]


def history(
    *calls: Call,
    held: Sequence[Document] = (),
    also: Sequence[Call] = (),
    again: Sequence[Call] = (),
    replayed: Sequence[Call] = (),
) -> History:
    """The calls, and a ledger that holds something in the end. What was acknowledged came to it and
    was carried out unless it was `replayed`; `also` is what else was, and `again` came once more.
    """
    done = [one for one in calls if one.write and one.status in (200, 201, 204)]
    carried_out = [*(one for one in done if one not in replayed), *also]
    deliveries = [Delivery(one.name, True) for one in carried_out]
    deliveries += [Delivery(one.name, False) for one in (*again, *replayed)]
    rows = [one for one in held if "username" in one]
    rates = [one for one in held if "source" in one]
    return calls, LedgerState(rows, rates, deliveries)


def written(*others: Call, gone: bool = False) -> History:
    """A rate that was made by w1, made w2 and, if it is gone, deleted by w3; and other calls."""
    calls = [create(1, 1, 2), patch(2, 3, 4), *([delete(3, 5, 6)] if gone else []), *others]
    return history(*calls, held=[rate("R", 2, "now" if gone else None)])


def registered(*others: Call) -> History:
    """The rows w1 and w2, one after the other, and other calls."""
    return history(action(1, 1, 2), action(2, 3, 4), *others, held=[row(2), row(1)])


# What several histories tell of.
lost = action(1, 1, 2, **UNKNOWN)
other_rate = create(2, 1, 2, asked={"rate": "S"}, answer=rate("S", 2))
lost_delete = delete(3, 3, 4, None)
