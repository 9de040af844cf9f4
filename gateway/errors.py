"""The one exception tree: code, HTTP status, whose fault.

First come the caller's faults, then the ledger's. Foreign errors are translated into these where
they arise; these become HTTP in `middlewares.error_boundary`, or in `connections` if there is no
request.
"""

from collections.abc import Mapping
from typing import ClassVar


class GatewayError(Exception):
    """Something the caller is told about.

    `detail` is one sentence in our own words, safe to show to anybody; `fields` maps a field name
    to what is wrong with it; `headers` go on the answer as they are.
    """

    status: ClassVar[int] = 500
    code: str = "INTERNAL_ERROR"
    title: ClassVar[str] = "Internal error"
    midaz_code: str | None = None
    origin: ClassVar[str] = "gateway"
    # Whether what follows on the connection can no longer be told apart from what came.
    closes: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = dict(fields or {})
        self.headers = dict(headers or {})


# The caller's fault.


class InvalidRequest(GatewayError):
    """The request cannot be understood (RFC 9110 section 15.5.1)."""

    status = 400
    code = "INVALID_REQUEST"
    title = "Invalid request"
    midaz_code = "0047"


class AmbiguousFraming(InvalidRequest):
    """Another reader of the same bytes may see other requests in them (RFC 9112 section 6.3)."""

    closes = True


class MalformedBody(InvalidRequest):
    """The body is not one well-formed JSON document."""

    code = "MALFORMED_JSON"
    title = "Malformed JSON"
    midaz_code = "0094"


class BodyBrokenOff(MalformedBody):
    """The end of the body did not come; what does cannot be told apart from it."""

    closes = True


class InvalidPath(InvalidRequest):
    """A path parameter breaks its rule."""

    code = "INVALID_PATH"
    title = "Invalid path parameter"
    midaz_code = "0065"


class InvalidQuery(InvalidRequest):
    """A query parameter is unknown, repeated or out of range."""

    code = "INVALID_QUERY"
    title = "Invalid query parameter"


class InvalidCursor(InvalidRequest):
    """A cursor that this gateway did not sign for this caller, route and filter."""

    code = "INVALID_CURSOR"
    title = "Invalid cursor"


class InvalidIdempotencyKey(InvalidRequest):
    """`Idempotency-Key` is missing, repeated or malformed."""

    code = "INVALID_IDEMPOTENCY_KEY"
    title = "Invalid idempotency key"


class Unauthenticated(GatewayError):
    """Nobody we know is asking (RFC 6750 section 3)."""

    status = 401
    title = "Not authenticated"


class TokenMissing(Unauthenticated):
    """No credentials at all."""

    code = "TOKEN_MISSING"
    midaz_code = "0041"


class TokenInvalid(Unauthenticated):
    """Credentials that prove nothing."""

    code = "TOKEN_INVALID"
    midaz_code = "0042"


class Forbidden(GatewayError):
    """Known, and not allowed."""

    status = 403
    code = "FORBIDDEN"
    title = "Forbidden"
    midaz_code = "0043"


class NotFound(GatewayError):
    """No such route."""

    status = 404
    code = "NOT_FOUND"
    title = "Not found"
    midaz_code = "0007"


class MethodNotAllowed(GatewayError):
    """The route exists, not for this method."""

    status = 405
    code = "METHOD_NOT_ALLOWED"
    title = "Method not allowed"


class RequestTimeout(GatewayError):
    """The body did not arrive in time."""

    status = 408
    code = "REQUEST_TIMEOUT"
    title = "Request timeout"
    closes = True


class PayloadTooLarge(GatewayError):
    """The body is over the limit."""

    status = 413
    code = "PAYLOAD_TOO_LARGE"
    title = "Payload too large"


class UnsupportedMediaType(GatewayError):
    """The body is not `application/json`."""

    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"
    title = "Unsupported media type"


class InvalidAction(GatewayError):
    """A well-formed ledger action that breaks a rule."""

    status = 422
    code = "INVALID_ACTION"
    title = "Invalid action"


class InvalidRate(InvalidRequest):
    """A well-formed rate that breaks a rule; `midaz_code` tells which kind."""

    title = "Invalid instrument rate"

    def __init__(self, midaz_code: str, detail: str, *, fields: Mapping[str, str]) -> None:
        super().__init__(detail, fields=fields)
        self.midaz_code = midaz_code


class KeyReused(GatewayError):
    """The idempotency key is in flight with another body."""

    status = 422
    code = "IDEMPOTENCY_KEY_REUSED"
    title = "Idempotency key reused"


class RateLimited(GatewayError):
    """More than one user may ask for (RFC 6585 section 4)."""

    status = 429
    code = "RATE_LIMITED"
    title = "Rate limited"


# The ledger's fault, or nobody's.


class NotReady(GatewayError):
    """The gateway has no verification keys."""

    status = 503
    code = "NOT_READY"
    title = "Not ready"


class Overloaded(GatewayError):
    """Too many calls are in flight to the ledger already; this one was not sent."""

    status = 503
    code = "OVERLOADED"
    title = "Overloaded"


class CircuitOpen(GatewayError):
    """The ledger has failed too often to be asked at this moment; this was not sent."""

    status = 503
    code = "CIRCUIT_OPEN"
    title = "Circuit open"


class LedgerUnreachable(GatewayError):
    """No connection to the ledger: certainly not sent, safe to repeat."""

    status = 503
    code = "LEDGER_UNREACHABLE"
    title = "Ledger unreachable"
    origin = "ledger"


class LedgerTimeout(GatewayError):
    """The ledger did not answer a read in time."""

    status = 504
    code = "LEDGER_TIMEOUT"
    title = "Ledger timeout"
    origin = "ledger"


class LedgerBroken(GatewayError):
    """The ledger answered nonsense, or broke off."""

    status = 502
    code = "LEDGER_BROKEN"
    title = "Ledger broken"
    origin = "ledger"


class UnexpectedAnswer(LedgerBroken):
    """It answered in good order, and what cannot be passed on: that is no sign of ill health."""


class LedgerFailing(LedgerBroken):
    """It did so before an answer began, or said itself that something behind it fails: asking a
    second time may help.
    """


class OutcomeUnknown(GatewayError):
    """A write was sent and its outcome is not known: repeat it with the same idempotency key."""

    status = 504
    code = "OUTCOME_UNKNOWN"
    title = "Outcome unknown"
    origin = "ledger"


class LedgerRefused(GatewayError):
    """A 4xx or 503 that the ledger gave and the caller may see."""

    title = "Refused by the ledger"
    origin = "ledger"

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        midaz_code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail, headers=headers)
        self.status = status  # type: ignore[misc]  # the one error whose status is the ledger's to choose
        self.code = code
        self.midaz_code = midaz_code
