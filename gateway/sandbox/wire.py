"""Between HTTP and values: what is read off a request, how an answer looks."""

import hmac
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import unquote
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.error_forms import ledger_form, rates_form
from gateway.errors import (
    GatewayError,
    InvalidAction,
    InvalidIdempotencyKey,
    InvalidPath,
    InvalidQuery,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    TokenInvalid,
    TokenMissing,
    UnsupportedMediaType,
)
from gateway.sandbox.idempotency import Answer, Journal, Scope, once
from gateway.sandbox.pages import LedgerRows
from gateway.sandbox.store import Stamp, Store
from schemas import strict_json
from schemas.fields import IDEMPOTENCY_KEY
from schemas.queries import Pairs, parse_query
from schemas.violations import Violations

T = TypeVar("T")

_log = logging.getLogger(__name__)
# A target in absolute form starts with the scheme and host.
_TARGET = re.compile(r"(?:[a-zA-Z]+://[^/?#]*)?([^?#]*)(?:\?([^#]*))?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BEARER = re.compile(r"bearer +(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the handlers work on; `rows` is the store itself, or generated rows beside its rates."""

    store: Store
    rows: LedgerRows
    journal: Journal
    token: str | None


LEDGER = web.AppKey("ledger", Ledger)


# Requests.


def raw_path(request: web.Request) -> str:
    """The path as it was sent, nothing decoded or normalized."""
    found = _TARGET.match(request.raw_path)
    return found[1] if found else ""


def raw_query(request: web.Request) -> str:
    """The query string as it was sent."""
    found = _TARGET.match(request.raw_path)
    return found[2] or "" if found else ""


def segment(request: web.Request, position: int, pattern: re.Pattern[str]) -> str:
    """The path segment at a position from 1, percent-decoded once; raises InvalidPath."""
    try:
        value = unquote(raw_path(request).split("/")[position], errors="strict")
    except (UnicodeError, IndexError):
        value = ""
    if not pattern.fullmatch(value):
        raise InvalidPath("A path parameter is not of the required form.")
    return value


async def read_document(request: web.Request) -> Any:
    """The JSON body; raises UnsupportedMediaType, MalformedBody, InvalidAction."""
    if request.content_type != "application/json":
        raise UnsupportedMediaType("The body must be application/json.")
    try:
        return strict_json.parse(await request.read())
    except (web.RequestPayloadError, ConnectionError):
        raise MalformedBody("The body cannot be read.") from None
    except strict_json.DuplicateKey as error:
        raise _repeated_field(request, error.key) from None
    except strict_json.MalformedJSON as error:
        raise MalformedBody(f"The body cannot be read: {error}.") from None


def _repeated_field(request: web.Request, name: str) -> GatewayError:
    detail, fields = "The body names a field twice.", {name: "is given more than once"}
    if _is_rates(request):
        return MalformedBody(detail, fields=fields)
    return InvalidAction(detail, fields=fields)


def _is_rates(request: web.Request) -> bool:
    return request.path.startswith("/v1/")


def single_header(request: web.Request, name: str) -> str | None:
    """A header that may come once at most; raises InvalidRequest."""
    values = request.headers.getall(name, [])
    # Bytes that are not UTF-8 arrive as lone surrogates, which are not printable.
    if len(values) > 1 or not all(value.isprintable() for value in values):
        raise InvalidRequest(f"The {name} header is repeated or not text.")
    return values[0] if values else None


def idempotency_scope(request: web.Request) -> Scope | None:
    """Where the idempotency key counts, None without one; raises InvalidIdempotencyKey."""
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or not IDEMPOTENCY_KEY.fullmatch(keys[0]):
        raise InvalidIdempotencyKey("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    # Ids in paths are the same in either case.
    path = request.path.lower()
    return Scope(keys[0], request.method, path, single_header(request, "username"))


def checked_query(check: Callable[[Pairs], T], request: web.Request) -> T:
    """What a check of `schemas.queries` makes of the query; raises InvalidQuery."""
    try:
        return check(parse_query(raw_query(request)))
    except Violations as violations:
        reasons = violations.reasons()
    raise InvalidQuery("The query is not understood.", fields=reasons)


def stamp_of(request: web.Request) -> Stamp:
    """A new id, the time, and the acting user."""
    return Stamp(str(uuid4()), now(), single_header(request, "username"))


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


# Answers.


def dumped(document: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(document, separators=(",", ":")).encode()


def array(items: Iterable[bytes]) -> bytes:
    """JSON texts as one JSON array."""
    return b"[" + b",".join(items) + b"]"


def envelope(message: str, data: bytes) -> bytes:
    """The body of the ledger routes around a JSON text."""
    return b'{"api_message":%b,"api_data":%b}' % (dumped(message), data)


def json_response(status: int, body: bytes) -> web.Response:
    """A response of JSON text; an empty body has no type."""
    return web.Response(status=status, body=body, content_type="application/json" if body else None)


def write_once(request: web.Request, document: Any, act: Callable[[], Answer]) -> web.Response:
    """Act once per idempotency key: the act's answer, or the first one again, marked as such."""
    journal = request.app[LEDGER].journal
    answer, replayed = once(journal, idempotency_scope(request), document, act)
    response = json_response(answer.status, answer.body)
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


# Around every request.


@web.middleware
async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Demand the token, turn errors into answers, and name the request."""
    given = request.headers.get("X-Request-Id", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid4())
    response: web.StreamResponse
    try:
        _authenticate(request)
        response = await handler(request)
    except GatewayError as error:
        response = _refusal(request, error, request_id)
    except web.HTTPException as error:
        response = _refusal(request, _translated(error), request_id)
    except Exception:
        _log.exception("the sandbox failed")
        response = _refusal(request, GatewayError("The sandbox failed."), request_id)
    response.headers["X-Request-Id"] = request_id
    return response


def _authenticate(request: web.Request) -> None:
    token = request.app[LEDGER].token
    if token is None or request.path == "/health":
        return
    challenge = {"WWW-Authenticate": 'Bearer realm="ledger"'}
    sent = request.headers.getall("Authorization", [])
    if not sent:
        raise TokenMissing("The ledger needs its token.", headers=challenge)
    found = _BEARER.fullmatch(sent[0])
    if len(sent) > 1 or found is None or not _same(found[1], token):
        raise TokenInvalid("This is not the ledger's token.", headers=challenge)


def _same(given: str, expected: str) -> bool:
    # Header bytes that are not UTF-8 arrive as lone surrogates.
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode())


def _translated(error: web.HTTPException) -> GatewayError:
    match error:
        case web.HTTPNotFound():
            return NotFound("There is nothing here.")
        case web.HTTPMethodNotAllowed():
            allow = {"Allow": error.headers["Allow"]}
            return MethodNotAllowed("This method is not served here.", headers=allow)
        case web.HTTPRequestEntityTooLarge():
            return PayloadTooLarge("The body is too large.")
        case _:
            return InvalidRequest("The request cannot be understood.")


def _refusal(request: web.Request, error: GatewayError, request_id: str) -> web.Response:
    if _is_rates(request):
        body = rates_form(error, request_id)
        body["origin"] = "ledger"
    else:
        body = ledger_form(error, request_id)
        body["api_data"]["origin"] = "ledger"
    response = json_response(error.status, dumped(body))
    response.headers.update(error.headers)
    return response
