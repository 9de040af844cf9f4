"""The table: every route that needs an identity, and all that differs between them.

A route that is not declared here does not exist; a route without `roles` cannot be declared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from gateway.authz import Access, Role
from gateway.error_forms import ledger_form, rates_form
from gateway.errors import (
    GatewayError,
    InvalidAction,
    InvalidPath,
    InvalidRate,
    MalformedBody,
)
from schemas.fields import ORDER_ID, USERNAME, UUID
from schemas.ledger import check_action
from schemas.rates import check_rate, check_rate_patch
from schemas.violations import Violations

Roles = Mapping[Role, Access]
Params = Mapping[str, str]


class Reply(Enum):
    """What a successful reply holds, and so how it is read and shown."""

    ROWS = "rows"
    GROUPS = "rows by currency"
    ROW = "one row"
    RATES = "an array of rates"
    RATE = "one rate"
    NOTHING = "nothing"


class Api(Enum):
    """The two documents; each has its own form of error."""

    LEDGER = "ledger"
    RATES = "rates"

    def error_body(self, error: GatewayError, request_id: str) -> dict[str, Any]:
        """The error body that clients of this API know."""
        form = ledger_form if self is Api.LEDGER else rates_form
        return form(error, request_id)


def api_of(path: str) -> Api:
    """Whose form of error a path is answered in, whether or not there is a route."""
    return Api.RATES if path.startswith("/v1/") else Api.LEDGER


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One route.

    `path` is ours and, from the same template, the ledger's; `own_path` is asked instead for a role
    with `Access.OWN_ROWS`, the caller's name filled in. `tag` names what a read depends on and a
    write changes. `status` is that of success. `message` is the envelope's `api_message`.
    """

    name: str
    method: str
    path: str
    roles: Roles
    api: Api
    reply: Reply
    tag: str
    status: int = 200
    message: str = ""
    own_path: str | None = None
    check_body: Callable[[object], None] | None = None
    idempotency_key_required: bool = False
    username_required: bool = True

    @property
    def is_write(self) -> bool:
        """Whether the ledger's state may change."""
        return self.method != "GET"

    @property
    def is_list(self) -> bool:
        """Whether the reply comes in pages."""
        return self.reply is Reply.ROWS

    def params(self, raw_path: str) -> dict[str, str]:
        """The path parameters of a still encoded path that matched this route. `InvalidPath`."""
        pairs = zip(self.path.split("/"), raw_path.split("/"), strict=True)
        return {
            name[1:-1]: _parameter(name[1:-1], segment)
            for name, segment in pairs
            if name.startswith("{")
        }

    def refuse_duplicate(self, key: str) -> GatewayError:
        """The error for a body in which a key stands twice: readers would not agree on it."""
        fields = {key: "stands twice"}
        if self.api is Api.LEDGER:
            return InvalidAction("A key stands twice.", fields=fields)
        return MalformedBody("A key stands twice.", fields=fields)

    def refuse(self, violations: Violations) -> GatewayError:
        """The error for a well-formed body that breaks a rule, in the words of the route's API."""
        fields = violations.reasons()
        if self.api is Api.LEDGER:
            return InvalidAction("The action breaks a rule.", fields=fields)
        if violations.unexpected:
            return InvalidRate("0053", "There are fields that may not be sent.", fields=fields)
        if violations.missing:
            return InvalidRate("0009", "There are fields missing.", fields=fields)
        return InvalidRate("0047", "There are fields of a wrong type or value.", fields=fields)


def fill(template: str, params: Params) -> str:
    """A path from a template of ours, each parameter one encoded segment."""
    if "{" not in template:
        return template
    return template.format_map({name: quote(value, safe="") for name, value in params.items()})


_RULES = {
    "username": USERNAME,
    "order_id": ORDER_ID,
    "organization_id": UUID,
    "ledger_id": UUID,
    "id": UUID,
}


def _parameter(name: str, segment: str) -> str:
    """One decoded path parameter, in the one spelling that it has."""
    rule, value = _RULES[name], segment
    try:
        if "%" in segment:
            value = unquote_to_bytes(segment).decode("ascii")
    except UnicodeError as error:
        raise InvalidPath(f"{name} is malformed.", fields={name: "malformed"}) from error
    if not rule.fullmatch(value):
        raise InvalidPath(f"{name} is malformed.", fields={name: "malformed"})
    return value.lower() if rule is UUID else value


def _everybody(user: Access) -> Roles:
    return MappingProxyType({Role.ADMIN: Access.ALL, Role.SERVICE: Access.ALL, Role.USER: user})


_STAFF: Roles = MappingProxyType({Role.ADMIN: Access.ALL, Role.SERVICE: Access.ALL})
_RATES = "/v1/organizations/{organization_id}/ledgers/{ledger_id}/instrument-rates"
# Every ledger read depends on every action: a transfer or a trade may add rows for others, too.
_LEDGER_TAG = "ledger"
_RATES_TAG = "rates:{organization_id}/{ledger_id}"


def _ledger(name: str, path: str, **rest: Any) -> Endpoint:
    return Endpoint(name=name, path=path, api=Api.LEDGER, tag=_LEDGER_TAG, **rest)


def _rates(name: str, method: str, path: str, roles: Roles, **rest: Any) -> Endpoint:
    return Endpoint(
        name=name,
        method=method,
        path=_RATES + path,
        roles=roles,
        api=Api.RATES,
        tag=_RATES_TAG,
        username_required=False,
        **rest,
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    _ledger(
        "listLedger",
        "/ledger",
        method="GET",
        roles=_everybody(Access.OWN_ROWS),
        own_path="/ledger/{username}",
        reply=Reply.ROWS,
        message="LEDGER_GET_LIST_SUCCESS",
    ),
    _ledger(
        "registerAction",
        "/ledger",
        method="POST",
        roles=_STAFF,
        reply=Reply.ROW,
        status=201,
        message="LEDGER_POST_SUCCESS",
        check_body=check_action,
        idempotency_key_required=True,
    ),
    _ledger(
        "listOrder",
        "/ledger/order/{order_id}",
        method="GET",
        roles=_everybody(Access.OWN_ROWS),
        reply=Reply.ROWS,
        message="LEDGER_GET_ORDER_SUCCESS",
    ),
    _ledger(
        "listUser",
        "/ledger/{username}",
        method="GET",
        roles=_everybody(Access.OWN_NAME),
        reply=Reply.ROWS,
        message="LEDGER_GET_USER_SUCCESS",
    ),
    _ledger(
        "listPendingDeposits",
        "/ledger/users/{username}/deposits",
        method="GET",
        roles=_everybody(Access.OWN_NAME),
        reply=Reply.GROUPS,
        message="LEDGER_GET_DEPOSITS_SUCCESS",
    ),
    _rates("createRate", "POST", "", _STAFF, reply=Reply.RATE, status=201, check_body=check_rate),
    _rates("listRates", "GET", "", _everybody(Access.ALL), reply=Reply.RATES),
    _rates("getRate", "GET", "/{id}", _everybody(Access.ALL), reply=Reply.RATE),
    _rates("updateRate", "PATCH", "/{id}", _STAFF, reply=Reply.RATE, check_body=check_rate_patch),
    _rates("deleteRate", "DELETE", "/{id}", _STAFF, reply=Reply.NOTHING, status=204),
)
