"""What a caller is told of a ledger's refusal: status and code; its words only to an admin."""

import msgspec

from gateway.authz import Principal, Role
from gateway.calls import LedgerReply
from gateway.endpoints import Api
from gateway.errors import LedgerRefused

_CODES = {
    400: "INVALID_REQUEST",
    404: "NOT_FOUND",
    409: "CONFLICT",
    410: "GONE",
    413: "PAYLOAD_TOO_LARGE",
    422: "REFUSED",
    429: "TOO_MANY_REQUESTS",
    503: "LEDGER_UNAVAILABLE",
}
# Codes of the rates API that clients act on, by the status that each goes with; first the default.
_RATES_CODES = {
    400: ("0047", "0009", "0053", "0065", "0094"),
    404: ("0007",),
    409: ("0028",),
    422: ("0047", "0009", "0053"),
}
_MAX_WORDS = 300
# A longer body, in bytes, is no explanation.
_MAX_BODY = 65_536


class _Refusal(msgspec.Struct):
    """The parts of both APIs' error bodies that may be passed on."""

    code: str = ""
    message: str = ""
    api_data: object = None


_decoder = msgspec.json.Decoder(_Refusal)


def refusal(reply: LedgerReply, api: Api, principal: Principal) -> LedgerRefused:
    """The error for a reply that is a refusal."""
    said = _said(reply.body)
    detail = "The ledger refused this."
    if principal.role is Role.ADMIN:
        detail = f"{detail} {_words(said)}".rstrip()
    wait = reply.retry_after if reply.retry_after is not None else 1
    headers = {"Retry-After": str(wait)} if reply.status in (429, 503) else {}
    known = _RATES_CODES.get(reply.status, (None,))
    midaz_code = said.code if said.code in known else known[0]
    return LedgerRefused(
        reply.status,
        _CODES[reply.status],
        detail,
        midaz_code=midaz_code if api is Api.RATES else None,
        headers=headers,
    )


def _said(body: bytes) -> _Refusal:
    if len(body) > _MAX_BODY:
        return _Refusal()
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Refusal()


def _words(said: _Refusal) -> str:
    """The ledger's own explanation, printable and short."""
    data = said.api_data if isinstance(said.api_data, dict) else {}
    words = str(data.get("detail") or said.message)
    return "".join(char for char in words if char.isprintable())[:_MAX_WORDS]
