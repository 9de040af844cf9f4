"""Ledger actions as they come in, and ledger replies as the API document describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import INCLUDE, Schema, ValidationError, fields, validates_schema

from schemas.fields import (
    STATUSES,
    comment,
    currency_code,
    money,
    one_of,
    order_id,
    text,
    timestamp,
    user_name,
)
from schemas.violations import BODY, NOT_AN_OBJECT, REQUIRED, Violations, load

MAX_COMMENT = 1000
MAX_REFERENCE = 256
MAX_TICKER = 32

_WALLETS = ("wallet_address", "recepient_wallet_address")


class TradeSchema(Schema):
    """One side of an executed order."""

    type = one_of(("trade",), required=True)
    username = user_name(required=True)
    currency = currency_code(required=True)
    amount = money(required=True)
    order_id = order_id(required=True)
    ticker = text(MAX_TICKER, required=True)
    timestamp = timestamp()


class TransferSchema(Schema):
    """A move between wallets; at least one of the two addresses is needed."""

    type = one_of(("transfer",), required=True)
    username = user_name(required=True)
    currency = currency_code(required=True)
    amount = money(required=True)
    wallet_address = text(MAX_REFERENCE)
    recepient_wallet_address = text(MAX_REFERENCE)
    timestamp = timestamp()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _has_wallet(self, _data: object, original: Mapping[str, Any], **_kwargs: Any) -> None:
        # The original: an address that is there but invalid is not a missing one.
        if not any(name in original for name in _WALLETS):
            raise ValidationError({_WALLETS[0]: [REQUIRED]})


class DepositSchema(Schema):
    """Money that comes in: a positive amount."""

    type = one_of(("deposit",), required=True)
    username = user_name(required=True)
    currency = currency_code(required=True)
    amount = money("", required=True)
    txid = text(MAX_REFERENCE)
    status = one_of(STATUSES)
    timestamp = timestamp()


class WithdrawalSchema(Schema):
    """Money that goes out: a negative amount."""

    type = one_of(("withdrawal",), required=True)
    username = user_name(required=True)
    currency = currency_code(required=True)
    amount = money("-", required=True)
    txid = text(MAX_REFERENCE)
    status = one_of(STATUSES)
    timestamp = timestamp()


class BalanceUpdateSchema(Schema):
    """A correction by hand, with its reason."""

    type = one_of(("balance_update",), required=True)
    username = user_name(required=True)
    currency = currency_code(required=True)
    amount = money(required=True)
    comment = comment(MAX_COMMENT, required=True)
    timestamp = timestamp()


ACTION_SCHEMAS: dict[str, Schema] = {
    "trade": TradeSchema(),
    "transfer": TransferSchema(),
    "deposit": DepositSchema(),
    "withdrawal": WithdrawalSchema(),
    "balance_update": BalanceUpdateSchema(),
}
"""The body of `POST /ledger` by its `type`."""


def check_action(document: object) -> None:
    """Raises Violations unless `document`, a parsed JSON value, is an action."""
    if not isinstance(document, dict):
        raise Violations(invalid={BODY: NOT_AN_OBJECT})
    if "type" not in document:
        raise Violations(missing=["type"])
    kind = document["type"]
    if not isinstance(kind, str) or kind not in ACTION_SCHEMAS:
        raise Violations(invalid={"type": f"must be one of {', '.join(ACTION_SCHEMAS)}"})
    load(ACTION_SCHEMAS[kind], document)


def _optional(note: str = "") -> fields.String:
    return fields.String(allow_none=True, metadata={"description": note} if note else None)


class RowSchema(Schema):
    """A ledger row as it is served. The ledger may add fields; they are passed on."""

    class Meta:
        unknown = INCLUDE

    id = fields.String(required=True)
    username = fields.String(required=True, metadata={"description": "whose row it is"})
    type = fields.String(
        required=True, metadata={"description": f"{', '.join(ACTION_SCHEMAS)}, or the ledger's own"}
    )
    status = fields.String(required=True, metadata={"enum": list(STATUSES)})
    amount = fields.String(
        required=True,
        metadata={
            "pattern": r"^-?[0-9]+(\.[0-9]+)?$",
            "description": "a decimal, credit positive",
            "example": "-0.10000000",
        },
    )
    currency = fields.String(required=True)
    timestamp = fields.String(required=True, metadata={"format": "date-time", "description": "UTC"})
    external_id = _optional()
    ticker = _optional()
    fee = _optional()
    balance = _optional()
    order_id = _optional()
    order_coid = _optional()
    order_status = _optional()
    trade_id = _optional()
    settlement_sequence = _optional()
    txid = _optional()
    wallet_id = _optional()
    wallet_address = _optional()
    recepient_wallet_address = _optional()
    wallet_type = _optional()
    lp_id = _optional("not shown to users")
    lp_name = _optional("not shown to users")
    created_by_id = _optional("not shown to users")
    comment = _optional()
    enc_order_id = _optional()


class LedgerListSchema(Schema):
    """The envelope of ledger rows; also of the one row of `POST /ledger`."""

    api_message = fields.String(required=True)
    api_data = fields.List(fields.Nested(RowSchema), required=True)


class LedgerDepositsSchema(Schema):
    """The envelope of pending deposits: currency to rows."""

    api_message = fields.String(required=True)
    api_data = fields.Dict(
        keys=fields.String(), values=fields.List(fields.Nested(RowSchema)), required=True
    )


class LedgerErrorDataSchema(Schema):
    """What went wrong, who says so, and in which request."""

    detail = fields.String(required=True)
    origin = fields.String(required=True, metadata={"enum": ["gateway", "ledger"]})
    request_id = fields.String(required=True)
    errors = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        metadata={"description": "field name to reason"},
    )


class LedgerErrorSchema(Schema):
    """An error on a ledger route; `api_message` is its code."""

    api_message = fields.String(required=True)
    api_data = fields.Nested(LedgerErrorDataSchema, required=True)
