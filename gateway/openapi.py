"""The OpenAPI document, generated from the table of endpoints and the schemas."""

import json
from functools import cache
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import fields

from gateway import __version__, errors
from gateway.authz import Access, Role
from gateway.endpoints import ENDPOINTS, Api, Endpoint, Reply
from gateway.openapi_words import ABOUT, FAULTS, NOTES, SEEN_BY_USERS, SUMMARIES
from schemas import ledger, rates
from schemas.fields import (
    IDEMPOTENCY_KEY,
    MAX_METADATA_KEY,
    MAX_METADATA_TEXT,
    ORDER_ID,
    USERNAME,
    UUID,
    Metadata,
)
from schemas.queries import ListQuerySchema, RateListQuerySchema

Json = dict[str, Any]

_ERROR_SCHEMAS = {Api.LEDGER: ledger.LedgerErrorSchema, Api.RATES: rates.RateErrorSchema}
_NOT_OF = {Api.LEDGER: errors.InvalidRate, Api.RATES: errors.InvalidAction}
_ERROR_HEADERS = {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}
_SOMETIMES = {"Link", "Idempotency-Replayed", "ETag", "Age"}
_IDS = {
    "organization_id": "5f3a4c55-8b28-4276-bed7-f7c8a4bb44e8",
    "ledger_id": "77b0fb8b-1bd9-4810-9c6d-7e80064fab0c",
    "id": "d0aa3885-0f9d-4856-9ca8-7da4fe6e2a95",
}
_NEW_RATE: Json = json.loads("""{
    "baseInstrumentCode": "BRL", "counterInstrumentCode": "BTC", "amount": 35000000, "scale": 2,
    "source": "Chainlink database", "status": {"code": "ACTIVE", "description": null},
    "metadata": {"updateCycle": 300, "urgent": true}
}""")
_RATE: Json = {"id": _IDS["id"], "organizationId": _IDS["organization_id"]} | _NEW_RATE
_RATE |= {"ledgerId": _IDS["ledger_id"], "createdAt": "2024-01-28T21:12:00Z", "deletedAt": None}
_ACTION: Json = {"username": "alice", "currency": "BTC", "amount": "0.10000000"}
_ACTIONS = {
    "trade": _ACTION | {"type": "trade", "order_id": "ord-1001", "ticker": "BTC-USD"},
    "transfer": _ACTION | {"type": "transfer", "wallet_address": "sandbox-alice-btc"},
    "deposit": _ACTION | {"type": "deposit", "status": "pending"},
    "withdrawal": _ACTION | {"type": "withdrawal", "amount": "-0.10000000"},
    "balance_update": _ACTION | {"type": "balance_update", "comment": "Reconciled"},
}
_ROW = {"id": "1042", "timestamp": "2024-01-28T21:12:00Z"} | _ACTIONS["deposit"]
# Where a schema stands as a class, apispec makes it a component and puts in the reference.
_KINDS = {kind: type(schema) for kind, schema in ledger.ACTION_SCHEMAS.items()}
_COMPONENT = "#/components/schemas/"
_MAPPING = {kind: _COMPONENT + kind.title().replace("_", "") for kind in _KINDS}
_DISCRIMINATOR = {"propertyName": "type", "mapping": _MAPPING}
_BODIES: dict[str, Json] = {
    "registerAction": {
        "schema": {"oneOf": [*_KINDS.values()], "discriminator": _DISCRIMINATOR},
        "examples": {kind: {"value": action} for kind, action in _ACTIONS.items()},
    },
    "createRate": {"schema": rates.RateCreateSchema, "example": _NEW_RATE},
    "updateRate": {"schema": rates.RatePatchSchema, "example": {"source": "Coinmarketcap"}},
}
_REPLIES: dict[Reply, tuple[Any, Any]] = {
    Reply.ROWS: (ledger.LedgerListSchema, [_ROW]),
    Reply.ROW: (ledger.LedgerListSchema, [_ROW]),
    Reply.GROUPS: (ledger.LedgerDepositsSchema, {"BTC": [_ROW]}),
    Reply.RATES: ({"type": "array", "items": rates.RateSchema}, [_RATE]),
    Reply.RATE: (rates.RateSchema, _RATE),
}
_UUID = {"type": "string", "pattern": f"^{UUID.pattern}$"}
_PATHS = {name: _UUID | {"format": "uuid", "example": value} for name, value in _IDS.items()}
_PATHS |= {
    "username": {"type": "string", "pattern": f"^{USERNAME.pattern}$", "example": "alice"},
    "order_id": {"type": "string", "pattern": f"^{ORDER_ID.pattern}$", "example": "ord-1001"},
}
# Any character but a control character.
_PRINTED = r"[^\x00-\x1f\x7f-\x9f]"
# In exploded form each member of an object is a query parameter by itself.
_FREE_METADATA: Json = {
    "in": "query",
    "name": "metadata.<key>",
    "description": "`metadata.<key>=<value>`, as many as there are keys",
    "schema": {
        "type": "object",
        "propertyNames": {"pattern": f"^metadata\\.{_PRINTED}{{1,{MAX_METADATA_KEY}}}$"},
        "additionalProperties": {
            "type": "string",
            "pattern": f"^{_PRINTED}{{1,{MAX_METADATA_TEXT}}}$",
        },
    },
    "example": {},
}
_QUERIES: dict[Reply, list[Json]] = {
    Reply.ROWS: [{"in": "query", "schema": ListQuerySchema}],
    Reply.RATES: [{"in": "query", "schema": RateListQuerySchema}, _FREE_METADATA],
}


def document() -> Json:
    """The document, ready for JSON."""
    info = {"description": ABOUT, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}}
    plugin = MarshmallowPlugin()
    spec = APISpec("Ledger gateway", __version__, "3.1.0", [plugin], info=info)
    plugin.converter.add_attribute_function(_beyond_marshmallow)  # type: ignore[union-attr]
    bearer = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    spec.components.security_scheme("token", bearer | {"description": "bare, or after `Bearer`"})
    _add_errors(spec)
    for endpoint in ENDPOINTS:
        spec.path(endpoint.path, operations={endpoint.method.lower(): _operation(endpoint)})
    for name in ("live", "ready"):
        spec.path(f"/health/{name}", operations={"get": _probe(name)})
    _adjust(spec.components.schemas)
    return spec.to_dict()


@cache
def document_bytes() -> bytes:
    """The document as compact JSON."""
    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


def _add_errors(spec: APISpec) -> None:
    for api in Api:
        for status in (*sorted({str(fault.status) for fault in FAULTS}), "default"):
            spec.components.response(f"{api.value}-{status}", _error(api, status))


def _adjust(schemas: Json) -> None:
    """Says what the schemas cannot."""
    # In a request a status is closed; in a reply the ledger may add to it.
    schemas["RateStatus"] = schemas["Status"] | {"additionalProperties": True}
    schemas["Rate"]["properties"]["status"] = {"$ref": f"{_COMPONENT}RateStatus"}
    wallets = ("wallet_address", "recepient_wallet_address")
    schemas["Transfer"]["anyOf"] = [{"required": [name]} for name in wallets]


def _beyond_marshmallow(_converter: object, field: fields.Field[Any], **_rest: object) -> Json:
    """What the document says of a field that marshmallow or apispec has no word for."""
    if isinstance(field, Metadata):
        return {"propertyNames": {"minLength": 1, "maxLength": MAX_METADATA_KEY}}
    if isinstance(field.parent, ListQuerySchema) and field.name in NOTES:
        return {"description": NOTES[field.name]}
    return {}


def _response(description: str, schema: Any, headers: list[str], **examples: Any) -> Json:
    shown = {
        name: {"schema": {"type": "string"}, "required": name not in _SOMETIMES}
        for name in ("X-Request-Id", *headers)
    }
    content = {"application/json": {"schema": schema, **examples}} if schema else {}
    return {"description": description, "headers": shown, "content": content}


def _error(api: Api, status: str) -> Json:
    faults = [fault for fault in FAULTS if str(fault.status) == status]
    faults = [fault for fault in faults if not isinstance(fault, _NOT_OF[api])]
    text = " Or: ".join(fault.detail for fault in faults) or "Any other error."
    examples = {fault.code: {"value": api.error_body(fault, "5f0c7c1e9b6d")} for fault in faults}
    return _response(text, _ERROR_SCHEMAS[api], _ERROR_HEADERS.get(status, []), examples=examples)


def _operation(endpoint: Endpoint) -> Json:
    operation: Json = {
        "operationId": endpoint.name,
        "tags": [endpoint.api.value.title()],
        "summary": SUMMARIES[endpoint.name],
        "security": [{"token": []}],
        "description": _audience(endpoint),
        "parameters": _parameters(endpoint),
        "responses": {str(endpoint.status): _success(endpoint)} | _errors(endpoint),
    }
    if not endpoint.is_write:
        headers = _of_read(endpoint)
        operation["responses"]["304"] = _response("What you have is right.", None, headers)
    if endpoint.check_body is not None:
        content = {"application/json": _BODIES[endpoint.name]}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _audience(endpoint: Endpoint) -> str:
    """Who may call it, and what of it they see."""
    roles = ", ".join(f"`{role.label}`" for role in reversed(Role) if role in endpoint.roles)
    access = endpoint.roles.get(Role.USER)
    if access is None:
        return f"For {roles}; a user gets 403."
    hidden = access is Access.OWN_ROWS and endpoint.own_path is None
    silence = " If none are theirs it is 403, whether or not there are any." if hidden else ""
    return f"For {roles}. {SEEN_BY_USERS[access]}{silence}"


def _parameters(endpoint: Endpoint) -> list[Json]:
    names = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
    found = [{"in": "path", "name": name, "schema": _PATHS[name]} for name in names]
    found += _QUERIES.get(endpoint.reply, [])
    found.append(_header("username", endpoint.username_required, f"^{USERNAME.pattern}$"))
    found.append(_header("X-Request-Id", False, ""))
    if endpoint.is_write:
        required = endpoint.idempotency_key_required
        found.append(_header("Idempotency-Key", required, f"^{IDEMPOTENCY_KEY.pattern}$"))
    else:
        found += [_header("If-None-Match", False, ""), _header("Cache-Control", False, "")]
    return found


def _header(name: str, required: bool, pattern: str) -> Json:
    schema = {"type": "string"} | ({"pattern": pattern} if pattern else {})
    fixed = {"in": "header", "name": name, "description": NOTES[name]}
    return fixed | {"required": required, "schema": schema}


def _success(endpoint: Endpoint) -> Json:
    headers = ["Idempotency-Replayed"] if endpoint.is_write else _of_read(endpoint)
    if endpoint.reply is Reply.NOTHING:
        return _response("Done.", None, headers)
    schema, example = _REPLIES[endpoint.reply]
    if endpoint.api is Api.LEDGER:
        said: Json = {"api_message": {"const": endpoint.message}}
        if endpoint.reply is Reply.ROW:
            said["api_data"] = {"minItems": 1, "maxItems": 1}
        schema = {"allOf": [schema, {"properties": said}]}
        example = {"api_message": endpoint.message, "api_data": example}
    return _response("Done.", schema, headers, example=example)


def _of_read(endpoint: Endpoint) -> list[str]:
    return ["Link"] * endpoint.is_list + ["ETag", "Cache-Status", "Age"]


def _errors(endpoint: Endpoint) -> Json:
    statuses = [400, 401, 403, 404, 429, 502, 503, 504, "default"] + [409] * endpoint.is_write
    statuses += [408, 413, 415, 422] * (endpoint.check_body is not None)
    return {str(status): f"{endpoint.api.value}-{status}" for status in sorted(statuses, key=str)}


def _probe(name: str) -> Json:
    schema = {"type": "object", "properties": {"status": {"type": "string"}}}
    responses = {"200": _response("It is.", schema, [], example={"status": "ok"})}
    if name == "ready":
        example = {"status": "not ready"}
        responses["503"] = _response("Not now.", schema, ["Retry-After"], example=example)
    summary = f"Whether the gateway is {name}"
    return {"operationId": name, "tags": ["Health"], "summary": summary, "responses": responses}
