"""The two forms of an error body, one for each API."""

from typing import Any

from gateway.errors import GatewayError


def ledger_form(error: GatewayError, request_id: str) -> dict[str, Any]:
    """The error body of the ledger routes: `{"api_message", "api_data": {...}}`."""
    data: dict[str, Any] = {
        "detail": error.detail,
        "origin": error.origin,
        "request_id": request_id,
    }
    if error.fields:
        data["errors"] = error.fields
    return {"api_message": error.code, "api_data": data}


def rates_form(error: GatewayError, request_id: str) -> dict[str, Any]:
    """The error body of the rates routes: Midaz's form, with `requestId` and `origin`."""
    body: dict[str, Any] = {
        "code": error.midaz_code or error.code,
        "title": error.title,
        "message": error.detail,
        "requestId": request_id,
        "origin": error.origin,
    }
    if error.fields:
        body["fields"] = error.fields
    return body
