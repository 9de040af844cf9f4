"""The checks of a history: each answer, each delivery, the ledger's state, and each read."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from tests.history import (
    ABSENT,
    GONE,
    WRITES,
    Call,
    Document,
    Fate,
    Kind,
    LedgerState,
    Rule,
    Spell,
    Violation,
    Write,
    counted,
    explained,
    fate,
    made_at,
    mark_of,
    matches,
    permitted,
    shown,
    value_of,
    writes_of,
)

Found = Iterator[Violation]
_SUCCESS = {Kind.ACTION: 201, Kind.CREATE: 201, Kind.DELETE: 204}


def violations(
    calls: Sequence[Call], ledger: LedgerState, spells: Sequence[Spell] = ()
) -> list[Violation]:
    """Everything in a history that has no explanation; nothing if all is well."""
    book = _Book(calls, ledger, spells)
    found: list[Violation] = []
    for call in calls:
        found += book.answered(call)
        if fate(call) is Fate.REFUSED and call.kind in WRITES:
            found += book.refused(call)
        if call.kind not in WRITES and permitted(call):
            found += book.read(call)
    return [*found, *book.delivered(), *book.took_effect(), *book.ended()]


class _Book:
    """The writes of a history, and the ledger's documents, by what they are looked up by."""

    def __init__(self, calls: Sequence[Call], ledger: LedgerState, spells: Sequence[Spell]) -> None:
        self._ledger, self._spells = ledger, spells
        self._calls = {call.name: call for call in calls}
        self._writes = writes_of(calls)
        self._of_rate: defaultdict[str, list[Write]] = defaultdict(list)
        for write in self._writes.values():
            if write.kind is not Kind.ACTION:
                self._of_rate[write.asked["rate"]].append(write)
        self._rows = {row["id"]: row for row in ledger.rows}
        self._writer = {row["id"]: self._writes.get(mark_of(row)) for row in ledger.rows}
        self._rates = {rate["baseInstrumentCode"]: rate for rate in ledger.rates}

    # Answers.

    def answered(self, call: Call) -> Found:
        """Whether this call may be answered so: with this status, to this caller."""
        if call.status is None:
            return
        if call.echo != call.name or _named(call.answer) not in (None, call.name):
            yield _wrong(Rule.ANSWER, call, f"it is the answer to {call.echo}")
        if fate(call) is Fate.WRONG:
            yield _wrong(Rule.ANSWER, call, "nobody may be told this")
        if not permitted(call) and call.status != 403:
            yield _wrong(Rule.ANSWER, call, "the caller may not do this")
        if fate(call) is Fate.DONE:
            if call.status != _SUCCESS.get(call.kind, 200):
                yield _wrong(Rule.ANSWER, call, "it is another success")
            if call.kind in WRITES:
                yield from self._told(call)

    def _told(self, call: Call) -> Found:
        """Whether the answer to a write is of this write."""
        if call.kind is Kind.DELETE:
            return
        if call.kind is Kind.ACTION:
            row = call.answer["api_data"][0]
            right = self._rows.get(row["id"]) == row and mark_of(row) == call.write
        else:
            right = self._is_rate(call, call.answer) and value_of(call.answer) == call.write
        if not right:
            yield _wrong(Rule.ANSWER, call, "it is not what was written")

    def _is_rate(self, call: Call, rate: Document) -> bool:
        """Whether a rate is the one that was asked for, by what never changes of it."""
        held = self._rates.get(call.asked.get("rate", rate["baseInstrumentCode"]))
        fixed = ("id", "baseInstrumentCode", "createdAt", "ledgerId", "organizationId")
        return held is not None and all(rate[name] == held[name] for name in fixed)

    def _nothing_to_see(self, call: Call) -> bool:
        """Whether a refused read says: there is none. Then it is checked as a read of nothing."""
        if call.kind is Kind.RATE:
            return call.status == 404
        return call.status == 403 and call.role == "user" and "order_id" in call.asked

    def refused(self, call: Call) -> Found:
        """Whether there is a reason: the role, or that there is no such rate (any more)."""
        if not permitted(call):
            return
        if call.kind in (Kind.PATCH, Kind.DELETE) and call.status == 404:
            others = [w for w in self._of_rate[call.asked["rate"]] if w.mark != call.write]
            if explained(others, call.began, call.ended) & {ABSENT, GONE}:
                return
        yield _wrong(Rule.REFUSAL, call, "a write")

    # Writes.

    def delivered(self) -> Found:
        """Whether each call came to the ledger once at most, and only if it may have."""
        names = [delivery.name for delivery in self._ledger.deliveries]
        for name in counted(names):
            yield Violation(Rule.RESENT, f"{name}: {self._calls.get(name)}")
        for name in set(names):
            call = self._calls.get(name)
            if call is None:
                yield Violation(Rule.EFFECT, f"{name} came to the ledger, and nobody sent it")
            elif fate(call) is Fate.NOT_SENT or not permitted(call):
                yield _wrong(Rule.EFFECT, call, "and it came to the ledger")

    def took_effect(self) -> Found:
        """Whether each write is in the ledger as often as its callers were told."""
        carried_out = {name for name, done in self._ledger.deliveries if done}
        rows = Counter(mark_of(row) for row in self._ledger.rows)
        rates = Counter(rate["baseInstrumentCode"] for rate in self._ledger.rates)
        for write in self._writes.values():
            effects = [len(write.names & carried_out)]
            if write.kind is Kind.ACTION:
                effects.append(rows[write.mark])
            elif write.kind is Kind.CREATE:
                effects.append(rates[write.asked["rate"]])
            least, most = int(write.done < inf), int(write.possible)
            if not all(least <= times <= most for times in effects):
                text = f"{write.mark} took effect {effects} times, not {least} to {most}: {write}"
                yield Violation(Rule.EFFECT, text)

    def ended(self) -> Found:
        """Whether all that is in the ledger was asked for, and so."""
        for row in self._ledger.rows:
            write = self._writer[row["id"]]
            if write is None or not matches(row, write.asked):
                yield Violation(Rule.EFFECT, f"nobody asked for the row {row}: {write}")
        for rate in self._ledger.rates:
            writes = self._of_rate[rate["baseInstrumentCode"]]
            if value_of(rate) not in explained(writes, inf, inf):
                yield Violation(Rule.EFFECT, f"nothing explains the rate {rate}: {writes}")

    # Reads.

    def read(self, call: Call) -> Found:
        """Whether what a read saw is something that it may have seen."""
        nothing = self._nothing_to_see(call)
        if fate(call) is Fate.REFUSED and not nothing:
            yield _wrong(Rule.REFUSAL, call, "a read")
        if fate(call) is not Fate.DONE and not nothing:
            return
        if call.kind is Kind.ROWS:
            yield from self._saw_rows(call, [] if nothing else call.answer["api_data"])
        elif call.kind is Kind.RATES:
            yield from self._saw_rates(call)
        elif nothing:
            yield from self._saw(call, call.asked["rate"], {ABSENT})
        elif not self._is_rate(call, call.answer) or call.answer["id"] != call.asked["id"]:
            yield _wrong(Rule.ANSWER, call, "it is not this rate")
        else:
            yield from self._saw(call, call.asked["rate"], {value_of(call.answer)})

    def _saw(self, call: Call, rate: str, values: set[str]) -> Found:
        """Whether a rate may have been one of the values."""
        expected = explained(self._of_rate[rate], made_at(call, self._spells), call.ended)
        if not expected & values:
            yield _wrong(Rule.STALE, call, f"{rate} was {values}, not of {expected}")

    def _saw_rates(self, call: Call) -> Found:
        names = [rate["baseInstrumentCode"] for rate in call.answer]
        wanted = call.asked.get("rate")
        for name in counted(names):
            yield _wrong(Rule.STALE, call, f"{name} is listed twice")
        for rate in call.answer:
            name = rate["baseInstrumentCode"]
            if not self._is_rate(call, rate):
                yield _wrong(Rule.ANSWER, call, f"{name} is not that rate")
            # A deleted one is not to be listed, whenever it was read.
            yield from self._saw(call, name, {value_of(rate)} - {GONE})
        for name in {wanted} if wanted else self._of_rate.keys():
            if name not in names:
                yield from self._saw(call, name, {ABSENT, GONE})

    def _saw_rows(self, call: Call, rows: Sequence[Document]) -> Found:
        began, listed = made_at(call, self._spells), [row["id"] for row in rows]
        for row_id in counted(listed):
            yield _wrong(Rule.STALE, call, f"the row {row_id} is listed twice")
        for row in rows:
            held = self._rows.get(row["id"])
            if held is None or shown(held, call.role) != row or not matches(row, call.asked):
                yield _wrong(Rule.ANSWER, call, f"{row} is not to be listed: {held}")
        for row_id in self._rows.keys() - set(listed):
            write = self._writer[row_id]
            if write and write.done < began and matches(self._rows[row_id], call.asked):
                yield _wrong(Rule.STALE, call, f"a row is missing: {write}")
        yield from self._in_order(call, [self._writer.get(row_id) for row_id in listed])

    def _in_order(self, call: Call, writes: Sequence[Write | None]) -> Found:
        """Whether the newest stands first, where one was over before the other was begun."""
        earliest = inf
        for write in writes:
            if write is None:
                continue
            if write.began > earliest:
                yield _wrong(Rule.STALE, call, f"{write} stands behind an older one")
            if write.began > call.ended:
                yield _wrong(Rule.STALE, call, f"{write} was not even begun")
            earliest = min(earliest, write.done)


def _named(answer: Any) -> Any:
    """The request that an error says it is about."""
    if not isinstance(answer, dict):
        return None
    data = answer.get("api_data")
    return answer.get("requestId", data.get("request_id") if isinstance(data, dict) else None)


def _wrong(rule: Rule, call: Call, text: str) -> Violation:
    answer = repr(call.answer)
    brief = answer if len(answer) < 400 else f"{answer[:400]}..."
    told = f"{call.kind.value} {call.name} {call.write} by {call.caller}, asked {dict(call.asked)}"
    when = f"{call.began:.4f} to {call.ended:.4f}"
    return Violation(rule, f"{text}: {told}, {when}: {call.status} {brief}")
