"""A history of calls to a gateway and the ledger's state after it: what in them has no explanation.

Time. Each call has the moment it was made and the moment its answer was there, on one clock. All
calls with one key are one write. It took effect, if ever, after the first of them was made and
before the first was acknowledged; a write whose outcome nobody was told may take effect for ever.

Reads. Let a read be made at `began` and answered at `ended`. It may have seen a write that was
begun by `ended`, unless another one to the same place lies wholly between it and `began`: begun
when the first was acknowledged, and acknowledged when the read was made. What it saw must be one of
those (a regular register). Of two reads during a write the later one may see the older value: a
cache is told of a write before it is sent and when it is over, not at the moment of its effect.

While two gateways that do not hear of each other serve one port, what one has kept may be `age`
seconds old; a read in such a time counts as made so much earlier.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, NamedTuple

Document = Mapping[str, Any]

ABSENT, GONE = "absent", "gone"
HIDDEN = frozenset({"lp_id", "lp_name", "created_by_id"})


class Kind(Enum):
    """What a call asks for."""

    ACTION = "register an action"
    CREATE = "create a rate"
    PATCH = "change a rate"
    DELETE = "delete a rate"
    ROWS = "list rows"
    RATE = "read a rate"
    RATES = "list rates"


WRITES = frozenset({Kind.ACTION, Kind.CREATE, Kind.PATCH, Kind.DELETE})


class Fate(Enum):
    """What the caller knows of a call. WRONG: it was given an answer that nobody may be given."""

    DONE = "done"
    REFUSED = "refused"
    NOT_SENT = "certainly not sent"
    UNKNOWN = "unknown"
    WRONG = "wrong"


class Rule(Enum):
    """What is broken."""

    ANSWER = "an answer that must not be given"
    REFUSAL = "refused without a reason"
    RESENT = "sent to the ledger more than once"
    EFFECT = "the ledger does not hold what was told"
    STALE = "a read that nothing explains"


class Violation(NamedTuple):
    """One thing without an explanation."""

    rule: Rule
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call. `name` is its request id; `write` tells writes apart, and repeats have the same.

    `asked` is what is to come to be or, for a read, what all that is listed must have. `sent` is
    false where there was no connection; `status` is None where it broke or the caller left.
    """

    name: str
    kind: Kind
    caller: str
    role: str
    asked: Mapping[str, Any]
    write: str = ""
    began: float
    ended: float
    sent: bool = True
    status: int | None = None
    answer: Any = None
    echo: str | None = None


class Delivery(NamedTuple):
    """A write as it reached the ledger, and whether the ledger then carried it out."""

    name: str
    carried_out: bool


@dataclass(frozen=True, slots=True)
class LedgerState:
    """What is in the ledger when all is over, and every write that ever reached it."""

    rows: Sequence[Document] = ()
    rates: Sequence[Document] = ()
    deliveries: Sequence[Delivery] = ()


class Spell(NamedTuple):
    """A time in which two gateways served, and how old what they had kept could be then."""

    began: float
    ended: float
    age: float


@dataclass(frozen=True, slots=True)
class Write:
    """All calls with one key. `done` is infinite while nobody was told that it is."""

    kind: Kind | None
    mark: str
    asked: Mapping[str, Any]
    began: float
    done: float
    possible: bool
    names: frozenset[str] = field(default_factory=frozenset)

    @property
    def value(self) -> str:
        """What a read of the place shows after it."""
        return GONE if self.kind is Kind.DELETE else self.mark


_NOTHING = Write(None, ABSENT, {}, -inf, -inf, possible=True)
_NOT_SENT = {
    "LEDGER_UNREACHABLE",
    "CIRCUIT_OPEN",
    "OVERLOADED",
    "NOT_READY",
    "LEDGER_UNAVAILABLE",
}
_UNANSWERED = {(502, "LEDGER_BROKEN"), (504, "LEDGER_TIMEOUT")}


def fate(call: Call) -> Fate:
    """What the caller could conclude."""
    if not call.sent:
        return Fate.NOT_SENT
    if call.status is None:
        return Fate.UNKNOWN
    if call.status < 300:
        return Fate.DONE
    if call.status < 500:
        return Fate.REFUSED
    said = (call.status, _code(call.answer))
    if call.status == 503 and said[1] in _NOT_SENT:
        return Fate.NOT_SENT
    unknown = {(504, "OUTCOME_UNKNOWN")} if call.kind in WRITES else _UNANSWERED
    return Fate.UNKNOWN if said in unknown else Fate.WRONG


def permitted(call: Call) -> bool:
    """Whether the caller's role may ask that at all."""
    if call.role != "user" or call.kind in (Kind.RATE, Kind.RATES):
        return True
    return call.kind is Kind.ROWS and call.asked.get("username") == call.caller


def writes_of(calls: Iterable[Call]) -> dict[str, Write]:
    """The writes, by their marks."""
    made: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.kind in WRITES:
            made[call.write].append(call)
    return {mark: _write(mark, repeats) for mark, repeats in made.items()}


def _write(mark: str, calls: Sequence[Call]) -> Write:
    fates = {fate(call) for call in calls}
    return Write(
        calls[0].kind,
        mark,
        calls[0].asked,
        min(call.began for call in calls),
        min((call.ended for call in calls if fate(call) is Fate.DONE), default=inf),
        bool(fates & {Fate.DONE, Fate.UNKNOWN, Fate.WRONG}),
        frozenset(call.name for call in calls),
    )


def _code(answer: Any) -> str:
    if not isinstance(answer, dict):
        return ""
    return str(answer.get("api_message", answer.get("code", "")))


def mark_of(row: Document) -> str:
    """The write that a row is to have come from: its amount is the number of it."""
    return "w" + str(row["amount"]).lstrip("-").partition(".")[0]


def value_of(rate: Document) -> str:
    """What a rate shows: the last write, if both fields that each of them sets say the same."""
    if rate["deletedAt"] is not None:
        return GONE
    torn = rate["source"] != f"w{rate['amount']}"
    return f"{rate['source']} with amount {rate['amount']}" if torn else str(rate["source"])


def explained(writes: Iterable[Write], began: float, ended: float) -> set[str]:
    """The values that a read of one place may show, of the writes to it."""
    known = [_NOTHING, *(write for write in writes if write.possible and write.began <= ended)]
    latest = max(write.began for write in known if write.done < began)
    return {write.value for write in known if write.done >= latest}


def shown(row: Document, role: str) -> Document:
    """A row as a role sees it."""
    if role != "user":
        return row
    return {name: value for name, value in row.items() if name not in HIDDEN}


def matches(row: Document, asked: Mapping[str, Any]) -> bool:
    """Whether a row has all that was asked for."""
    return all(row.get(name) == value for name, value in asked.items())


def made_at(call: Call, spells: Iterable[Spell]) -> float:
    """When a read counts as made."""
    ages = [s.age for s in spells if s.began <= call.began <= s.ended + s.age]
    return call.began - max(ages, default=0.0)


def counted(texts: Iterable[str]) -> Iterator[str]:
    """Those that stand there more than once."""
    return (text for text, count in Counter(texts).items() if count > 1)
