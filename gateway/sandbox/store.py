"""The sandbox's memory: rows with running balances, and rates.

Pure and synchronous. What it is given is already validated; ids and times come with each write.
"""

import json
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Clamped, Context, Decimal, Inexact, InvalidOperation, Overflow
from itertools import islice
from operator import attrgetter
from typing import Any

from gateway.errors import LedgerRefused, NotFound
from gateway.sandbox.pages import Page, Row, Selection, Window

ROW_FIELDS = (
    "id",
    "external_id",
    "username",
    "type",
    "status",
    "amount",
    "currency",
    "ticker",
    "fee",
    "balance",
    "order_id",
    "order_coid",
    "order_status",
    "trade_id",
    "settlement_sequence",
    "txid",
    "wallet_id",
    "wallet_address",
    "recepient_wallet_address",
    "wallet_type",
    "lp_id",
    "lp_name",
    "created_by_id",
    "comment",
    "enc_order_id",
    "timestamp",
)

# Sums of amounts of 38 digits at any scale fit; were one ever to be rounded, it raises.
_EXACT = Context(prec=160, traps=[Inexact, InvalidOperation, Overflow, Clamped])

_FRACTION = re.compile(r"\.[0-9]+")

Rate = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stamp:
    """The id and time a write gets, and the acting user."""

    id: str
    at: datetime
    actor: str | None = None


class Store:
    """Rows in the order they were registered, indexed by owner and order; rates by id."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._of_user: defaultdict[str, list[Row]] = defaultdict(list)
        self._of_order: defaultdict[str, list[Row]] = defaultdict(list)
        self._balances: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._rates: dict[str, Rate] = {}

    def register(self, action: Mapping[str, str | None], stamp: Stamp) -> bytes:
        """Add an action as the newest row and return the row's JSON text.

        Only a completed action moves the balance of its (username, currency); the fee never does.
        """
        fields = self._row_fields(action, stamp)
        row = _row(len(self._rows) + 1, fields)
        self._balances[row.username, row.currency] = Decimal(fields["balance"])
        self._rows.append(row)
        self._of_user[row.username].append(row)
        if fields["order_id"] is not None:
            self._of_order[fields["order_id"]].append(row)
        return row.json

    def _row_fields(self, action: Mapping[str, str | None], stamp: Stamp) -> dict[str, Any]:
        given = dict(action)
        if "timestamp" in given:
            given["timestamp"] = _in_utc(given["timestamp"] or "")
        written = {
            "status": "completed",
            "timestamp": rfc3339(stamp.at),
            "created_by_id": stamp.actor,
            **given,
            "id": stamp.id,
        }
        written["balance"] = self._balance_after(written)
        return {name: written.get(name) for name in ROW_FIELDS}

    def _balance_after(self, action: Mapping[str, Any]) -> str:
        balance = self._balances.get((action["username"], action["currency"]), Decimal())
        if action["status"] == "completed":
            balance = _EXACT.add(balance, Decimal(action["amount"]))
        return format(balance, "f")

    def page(self, selection: Selection, window: Window) -> Page:
        """The selected rows inside the window, newest first."""
        rows = self._indexed(selection)
        end = len(rows)
        if window.before is not None:
            end = bisect_left(rows, window.before, key=attrgetter("sequence"))
        newest_first = (rows[position] for position in range(end - 1, -1, -1))
        return _page(filter(selection.matches, newest_first), window.limit)

    def _indexed(self, selection: Selection) -> list[Row]:
        if selection.username is not None:
            return self._of_user.get(selection.username, [])
        if selection.order_id is not None:
            return self._of_order.get(selection.order_id, [])
        return self._rows

    def pending_deposits(self, username: str) -> dict[str, list[bytes]]:
        """The user's pending deposits by currency, currencies in order, newest first."""
        found: dict[str, list[bytes]] = {}
        wanted = Selection(type="deposit", status="pending")
        for row in filter(wanted.matches, reversed(self._of_user.get(username, []))):
            found.setdefault(row.currency, []).append(row.json)
        return dict(sorted(found.items()))

    def create_rate(self, owner: tuple[str, str], given: Mapping[str, Any], stamp: Stamp) -> Rate:
        """Add a rate for (organization, ledger); 409 if its pair has an active one."""
        at = rfc3339(stamp.at)
        rate = {
            "id": stamp.id,
            "ledgerId": owner[1],
            "organizationId": owner[0],
            **{name: given[name] for name in _REQUIRED_RATE_FIELDS},
            "status": {**_status("ACTIVE"), **given.get("status", {})},
            "metadata": given.get("metadata", {}),
            "createdAt": at,
            "updatedAt": at,
            "deletedAt": None,
        }
        self._refuse_duplicate(rate)
        self._rates[stamp.id] = rate
        return rate

    def active_rates(self, owner: tuple[str, str]) -> list[Rate]:
        """The rates of (organization, ledger) that are not deleted, oldest first."""
        return [
            rate
            for rate in self._rates.values()
            if _owner(rate) == owner and rate["deletedAt"] is None
        ]

    def rate(self, owner: tuple[str, str], rate_id: str) -> Rate:
        """One rate, deleted or not; raises NotFound."""
        rate = self._rates.get(rate_id)
        if rate is None or _owner(rate) != owner:
            raise NotFound("There is no such instrument rate.")
        return rate

    def change_rate(
        self, owner: tuple[str, str], rate_id: str, changes: Mapping[str, Any], at: datetime
    ) -> Rate:
        """Replace the fields in `changes`; raises NotFound (also if deleted), LedgerRefused 409."""
        rate = {**self._active_rate(owner, rate_id), **changes, "updatedAt": rfc3339(at)}
        rate["status"] = {"description": None, **rate["status"]}
        self._refuse_duplicate(rate)
        self._rates[rate_id] = rate
        return rate

    def delete_rate(self, owner: tuple[str, str], rate_id: str, at: datetime) -> None:
        """Mark a rate INACTIVE and deleted; raises NotFound, also if it is deleted already."""
        rate = self._active_rate(owner, rate_id)
        deleted = rfc3339(at)
        marks = {"status": _status("INACTIVE"), "updatedAt": deleted, "deletedAt": deleted}
        self._rates[rate_id] = {**rate, **marks}

    def _active_rate(self, owner: tuple[str, str], rate_id: str) -> Rate:
        rate = self.rate(owner, rate_id)
        if rate["deletedAt"] is not None:
            raise NotFound("The instrument rate is deleted.")
        return rate

    def _refuse_duplicate(self, rate: Rate) -> None:
        for other in self.active_rates(_owner(rate)):
            if other["id"] != rate["id"] and _pair(other) == _pair(rate):
                raise LedgerRefused(
                    409, "RATE_EXISTS", "The pair has an active rate.", midaz_code="0028"
                )


_REQUIRED_RATE_FIELDS = (
    "baseInstrumentCode",
    "counterInstrumentCode",
    "amount",
    "scale",
    "source",
)


def rfc3339(moment: datetime) -> str:
    """A moment in UTC, to the microsecond where it has any, with `Z`."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def instant(text: str) -> datetime:
    """The moment an RFC 3339 text names, to the microsecond."""
    return datetime.fromisoformat(text.upper())


def _in_utc(text: str) -> str:
    # Offsets are whole minutes, so a fraction of any length is carried over as it is.
    fraction = _FRACTION.search(text)
    seconds = rfc3339(instant(text).replace(microsecond=0)).removesuffix("Z")
    return f"{seconds}{fraction[0] if fraction else ''}Z"


def _row(sequence: int, fields: Mapping[str, Any]) -> Row:
    return Row(
        sequence=sequence,
        username=fields["username"],
        type=fields["type"],
        status=fields["status"],
        currency=fields["currency"],
        timestamp=instant(fields["timestamp"]),
        json=json.dumps(fields, separators=(",", ":")).encode(),
    )


def _page(matching: Iterator[Row], limit: int | None) -> Page:
    if limit is None:
        return Page([row.json for row in matching], None)
    rows = list(islice(matching, limit))
    more = next(matching, None) is not None
    return Page([row.json for row in rows], rows[-1].sequence if more else None)


def _status(code: str) -> dict[str, str | None]:
    return {"code": code, "description": None}


def _owner(rate: Rate) -> tuple[str, str]:
    return rate["organizationId"], rate["ledgerId"]


def _pair(rate: Rate) -> tuple[str, str]:
    return rate["baseInstrumentCode"], rate["counterInstrumentCode"]
