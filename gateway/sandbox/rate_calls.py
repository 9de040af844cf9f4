"""The five calls of the rates API over the store."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from gateway.errors import InvalidRate
from gateway.sandbox.idempotency import Answer
from gateway.sandbox.store import Rate
from gateway.sandbox.wire import (
    LEDGER,
    array,
    checked_query,
    dumped,
    json_response,
    now,
    read_document,
    segment,
    stamp_of,
    write_once,
)
from schemas.fields import UUID
from schemas.queries import Filters, no_query, rate_filters
from schemas.rates import check_rate, check_rate_patch
from schemas.violations import Violations

_PATH = "/v1/organizations/{organization_id:[^/]+}/ledgers/{ledger_id:[^/]+}/instrument-rates"
# A parameter without a pattern would not match braces, and be 404 instead of 400.
_BY_ID = _PATH + "/{id:[^/]+}"


async def create_rate(request: web.Request) -> web.Response:
    """Create a rate."""
    owner = _owner(request)
    document = await read_document(request)
    store = request.app[LEDGER].store

    def create() -> Answer:
        _check_rate(check_rate, document)
        rate = store.create_rate(owner, document, stamp_of(request))
        return Answer(201, dumped(rate))

    return write_once(request, document, create)


async def list_rates(request: web.Request) -> web.Response:
    """The rates that are not deleted and pass the filters, as a bare array."""
    owner = _owner(request)
    wanted = checked_query(rate_filters, request)
    rates = request.app[LEDGER].store.active_rates(owner)
    return json_response(200, array(dumped(rate) for rate in rates if _passes(rate, wanted)))


async def get_rate(request: web.Request) -> web.Response:
    """One rate, deleted or not."""
    checked_query(no_query, request)
    store = request.app[LEDGER].store
    return json_response(200, dumped(store.rate(_owner(request), _uuid(request, 7))))


async def change_rate(request: web.Request) -> web.Response:
    """Change some fields of a rate."""
    owner, rate_id = _owner(request), _uuid(request, 7)
    document = await read_document(request)
    store = request.app[LEDGER].store

    def change() -> Answer:
        _check_rate(check_rate_patch, document)
        return Answer(200, dumped(store.change_rate(owner, rate_id, document, now())))

    return write_once(request, document, change)


async def delete_rate(request: web.Request) -> web.Response:
    """Delete a rate; it can still be read by its id."""
    owner, rate_id = _owner(request), _uuid(request, 7)
    store = request.app[LEDGER].store

    def delete() -> Answer:
        store.delete_rate(owner, rate_id, now())
        return Answer(204, b"")

    return write_once(request, None, delete)


def _owner(request: web.Request) -> tuple[str, str]:
    return _uuid(request, 3), _uuid(request, 5)


def _uuid(request: web.Request, position: int) -> str:
    return segment(request, position, UUID).lower()


def _check_rate(check: Callable[[object], None], document: Any) -> None:
    try:
        check(document)
    except Violations as violations:
        raise _rate_refusal(violations) from None


def _rate_refusal(violations: Violations) -> InvalidRate:
    reasons = violations.reasons()
    if violations.unexpected:
        return InvalidRate("0053", "The rate has unexpected fields.", fields=reasons)
    if violations.missing:
        return InvalidRate("0009", "The rate misses fields.", fields=reasons)
    return InvalidRate("0047", "The rate has fields of a wrong type or value.", fields=reasons)


def _passes(rate: Rate, wanted: Filters) -> bool:
    return all(_text_of(rate, name) == value for name, value in wanted)


def _text_of(rate: Rate, name: str) -> str | None:
    # A key of the metadata may hold dots itself.
    kind, _, key = name.partition(".")
    held = rate["metadata"] if kind == "metadata" else rate
    if (key or kind) not in held:
        return None
    value = held[key or kind]
    return value if isinstance(value, str) else dumped(value).decode()


RATE_ROUTES = (
    web.get(_PATH, list_rates),
    web.post(_PATH, create_rate),
    web.get(_BY_ID, get_rate),
    web.patch(_BY_ID, change_rate),
    web.delete(_BY_ID, delete_rate),
)
