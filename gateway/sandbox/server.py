"""The sandbox's HTTP edge: requests in, the store's answers out.

It trusts its gateway, so it shows everything to whoever holds the token and never filters by role.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from gateway.errors import InvalidAction, InvalidIdempotencyKey
from gateway.sandbox.generated import GeneratedRows
from gateway.sandbox.idempotency import Answer, Journal
from gateway.sandbox.pages import Selection, Window, decode_cursor, encode_cursor
from gateway.sandbox.rate_calls import RATE_ROUTES
from gateway.sandbox.seed import seed
from gateway.sandbox.store import Store, instant
from gateway.sandbox.wire import (
    LEDGER,
    Ledger,
    array,
    boundary,
    checked_query,
    dumped,
    envelope,
    json_response,
    raw_path,
    raw_query,
    read_document,
    segment,
    stamp_of,
    write_once,
)
from schemas.fields import ORDER_ID, USERNAME
from schemas.ledger import check_action
from schemas.queries import list_query, no_query, parse_query
from schemas.violations import Violations

MAX_BODY_BYTES = 256 * 1024


def create_sandbox(rows: int | None = None, token: str | None = None) -> web.Application:
    """The sandbox as an application.

    `rows`: None for the seeded store, else that many generated rows, which are read-only.
    `token`: the bearer token that every request but `GET /health` must carry; None for no check.
    """
    store = Store()
    seed(store)
    listed = store if rows is None else GeneratedRows(rows)
    app = web.Application(middlewares=[boundary], client_max_size=MAX_BODY_BYTES)
    app[LEDGER] = Ledger(store, listed, Journal(), token)
    app.add_routes(_ROUTES)
    if rows is None:
        app.router.add_post("/ledger", register_action)
    return app


# Reading the ledger.


async def list_rows(request: web.Request) -> web.Response:
    """All rows."""
    return _rows(request, "LEDGER_GET_LIST_SUCCESS")


async def list_order(request: web.Request) -> web.Response:
    """The rows of an order; none when it is unknown."""
    order_id = segment(request, 3, ORDER_ID)
    return _rows(request, "LEDGER_GET_ORDER_SUCCESS", order_id=order_id)


async def list_user(request: web.Request) -> web.Response:
    """The rows of a user; none when they are unknown."""
    username = segment(request, 2, USERNAME)
    return _rows(request, "LEDGER_GET_USER_SUCCESS", username=username)


async def list_deposits(request: web.Request) -> web.Response:
    """The pending deposits of a user by currency."""
    checked_query(no_query, request)
    username = segment(request, 3, USERNAME)
    deposits = request.app[LEDGER].rows.pending_deposits(username)
    arrays = (dumped(name) + b":" + array(rows) for name, rows in deposits.items())
    return json_response(
        200, envelope("LEDGER_GET_DEPOSITS_SUCCESS", b"{" + b",".join(arrays) + b"}")
    )


def _rows(
    request: web.Request,
    message: str,
    *,
    username: str | None = None,
    order_id: str | None = None,
) -> web.Response:
    query = checked_query(list_query, request)
    selection = _selection(dict(query.filters), username, order_id)
    before = None if query.cursor is None else decode_cursor(query.cursor)
    page = request.app[LEDGER].rows.page(selection, Window(query.limit, before))
    response = json_response(200, envelope(message, array(page.rows)))
    if page.next_before is not None:
        response.headers["Link"] = _next_link(request, page.next_before)
    return response


def _selection(filters: Mapping[str, str], username: str | None, order_id: str | None) -> Selection:
    since, until = filters.get("since"), filters.get("until")
    return Selection(
        username=username,
        order_id=order_id,
        type=filters.get("type"),
        currency=filters.get("currency"),
        status=filters.get("status"),
        since=None if since is None else instant(since),
        until=None if until is None else instant(until),
    )


def _next_link(request: web.Request, before: int) -> str:
    kept = [pair for pair in parse_query(raw_query(request)) if pair[0] != "cursor"]
    query = urlencode([*kept, ("cursor", encode_cursor(before))])
    return f'<{raw_path(request)}?{query}>; rel="next"'


# Writing to the ledger.


async def register_action(request: web.Request) -> web.Response:
    """Register one action."""
    if "Idempotency-Key" not in request.headers:
        raise InvalidIdempotencyKey("The Idempotency-Key header is missing.")
    document = await read_document(request)
    store = request.app[LEDGER].store

    def register() -> Answer:
        _check_action(document)
        row = store.register(document, stamp_of(request))
        return Answer(201, envelope("LEDGER_POST_SUCCESS", array([row])))

    return write_once(request, document, register)


def _check_action(document: Any) -> None:
    try:
        check_action(document)
    except Violations as violations:
        reasons = violations.reasons()
        raise InvalidAction("The action breaks a rule.", fields=reasons) from None


async def health(request: web.Request) -> web.Response:
    """The sandbox is up."""
    return json_response(200, b'{"status":"ok"}')


# A parameter without a pattern would not match braces, and be 404 instead of 400.
_ROUTES = (
    web.get("/health", health),
    web.get("/ledger", list_rows),
    web.get("/ledger/order/{order_id:[^/]+}", list_order),
    web.get("/ledger/users/{username:[^/]+}/deposits", list_deposits),
    web.get("/ledger/{username:[^/]+}", list_user),
    *RATE_ROUTES,
)
