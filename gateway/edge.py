"""Where aiohttp begins: a request becomes an `Ask`, an `Answer` becomes a response."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.errors import (
    AmbiguousFraming,
    BodyBrokenOff,
    GatewayError,
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
)
from gateway.exchange import Answer, Ask, Trace
from gateway.kept import Outcome
from gateway.representations import Representation, matches
from gateway.responses import WholeResponse

TRACE = web.RequestKey("trace", Trace)

MakeRequest = Callable[..., web.BaseRequest]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_HEADERS = {
    "Content-Type": "application/json",
    "Cache-Control": "private, no-cache",
    "Vary": "Authorization, username, Accept-Encoding",
}


def request_id(request: web.Request) -> str:
    """The caller's `X-Request-Id` if it is one that may be logged, else one of ours."""
    if "X-Request-Id" not in request.headers:
        return new_id()
    given = [value for name, value in request.raw_headers if name.lower() == b"x-request-id"]
    return accepted_id(given) or new_id()


def accepted_id(given: Sequence[bytes]) -> str | None:
    """The value of the one `X-Request-Id` header, if it may be used."""
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0].decode()
    return None


def new_id() -> str:
    """An id that no other request has; nothing is kept safe by it."""
    return f"{random.getrandbits(128):032x}"


def ask_of(request: web.Request, body_timeout_s: float) -> Ask:
    """What a request asks; nothing of it is decoded yet."""
    return Ask(
        raw_path=request.rel_url.raw_path,
        raw_query=request.rel_url.raw_query_string,
        headers=request.headers,
        read_body=lambda: _body(request, body_timeout_s),
        gone=lambda: request.transport is None or request.transport.is_closing(),
        trace=request[TRACE],
    )


async def respond(request: web.Request, answer: Answer) -> web.StreamResponse:
    """The response for an answer; one in chunks is sent here."""
    headers = {**_HEADERS, **answer.headers}
    if isinstance(answer.body, Representation):
        return await _represented(request, answer.body, headers)
    if isinstance(answer.body, bytes):
        if answer.status == 204:
            del headers["Content-Type"]
        request[TRACE].bytes_sent = len(answer.body)
        return WholeResponse(answer.status, headers, answer.body)
    response = web.StreamResponse(status=answer.status, headers=headers)
    if request.version < (1, 1):
        # Without chunks the end of the connection is that of the body (RFC 9112 section 6.3).
        response.force_close()
    await response.prepare(request)
    await _send(request, response, answer.body)
    return response


async def _represented(
    request: web.Request, representation: Representation, headers: dict[str, str]
) -> WholeResponse:
    """The representation in the coding that suits the caller; nothing of it if they have it."""
    coding, body = await representation.chosen(request.headers.getall("Accept-Encoding", []))
    headers["ETag"] = representation.tag(coding)
    if matches(headers["ETag"], request.headers.getall("If-None-Match", [])):
        # Of what is not sent only what tells it apart is said (RFC 9110 section 15.4.5).
        del headers["Content-Type"]
        return WholeResponse(304, headers, b"")
    if coding != "identity":
        headers["Content-Encoding"] = coding
    request[TRACE].bytes_sent = len(body)
    request[TRACE].sent = representation
    return WholeResponse(200, headers, body)


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """Puts on every answer, just before it is sent, the headers that every answer has."""
    trace = request[TRACE]
    if trace.found is not None and response.status in (200, 304):
        response.headers["Cache-Status"] = trace.found.cache_status()
        # What comes straight from its origin has no age; from a gateway behind this one it has.
        if trace.found.outcome is not Outcome.MISS or trace.found.age > 0:
            response.headers["Age"] = str(int(trace.found.age))
    response.headers.update(trace.headers)
    response.headers["X-Request-Id"] = trace.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "ledger-gateway"


async def _send(
    request: web.Request, response: web.StreamResponse, chunks: AsyncIterator[bytes]
) -> None:
    """Sends the chunks. If they break off the connection is cut: the answer must not look whole."""
    trace = request[TRACE]
    try:
        async for chunk in chunks:
            await response.write(chunk)
            trace.bytes_sent += len(chunk)
    except GatewayError as error:
        trace.code = error.code
        _cut(request)
    except ConnectionError:
        _cut(request)
    except BaseException:
        _cut(request)
        raise


def _cut(request: web.Request) -> None:
    request[TRACE].aborted = True
    if request.transport is not None:
        request.transport.abort()


def check_framing(request: web.Request) -> None:
    """Refuses what another reader on the way may have framed otherwise (RFC 9112 section 6.1).

    Raises `AmbiguousFraming`.
    """
    headers = request.headers
    codings = headers.getall("Transfer-Encoding", [])
    if not (1, 0) <= request.version <= (1, 1):
        raise AmbiguousFraming("HTTP/1.0 or HTTP/1.1 is needed.")
    if codings and (codings != ["chunked"] or "Content-Length" in headers):
        raise AmbiguousFraming("The length of the body is ambiguous.")
    if len(headers.getall("Content-Length", [])) > 1 or len(headers.getall("Host", [])) > 1:
        raise AmbiguousFraming("A header that must stand once stands twice.")


def check_target(request: web.Request) -> None:
    """Refuses a fragment, which is no part of a target (RFC 9112 section 3.2): aiohttp cuts it off,
    another reader may not. Raises `InvalidRequest`.
    """
    if "#" in request.raw_path:
        raise InvalidRequest("The request target must not hold a fragment.")


def is_last(request: web.Request) -> bool:
    """Whether a connection ends with this request: what follows it may not be what it seems.

    aiohttp takes the trailer of a chunked body for a header of the next request, loses bytes behind
    an upgrade that it does not know, and reads no body after CONNECT.
    """
    headers = request.headers
    return request.method == "CONNECT" or "Transfer-Encoding" in headers or "Upgrade" in headers


def without_odd_expectations(make: MakeRequest) -> MakeRequest:
    """Ignores what is expected beside 100-continue, as RFC 9110 section 10.1.1 allows; aiohttp
    would refuse it, in words of its own, where no middleware sees it.
    """

    def factory(message: Any, *rest: Any) -> web.BaseRequest:
        expected = message.headers.get("Expect")
        if expected is not None and expected.lower() != "100-continue":
            headers = CIMultiDict(message.headers)
            del headers["Expect"]
            message = message._replace(headers=CIMultiDictProxy(headers))
        return make(message, *rest)

    return factory


async def _body(request: web.Request, timeout_s: float) -> bytes:
    if (request.content_length or 0) > request.client_max_size:
        raise PayloadTooLarge("The body is too large.")
    try:
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except TimeoutError as error:
        raise RequestTimeout("The body did not come in time.") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise PayloadTooLarge("The body is too large.") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise BodyBrokenOff("The body broke off.") from error
