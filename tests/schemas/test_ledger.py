"""Ledger actions: what each type needs, allows and refuses; and the documented replies."""

from typing import Any

import pytest
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import fields

from schemas.ledger import (
    ACTION_SCHEMAS,
    LedgerDepositsSchema,
    LedgerErrorSchema,
    LedgerListSchema,
    RowSchema,
    check_action,
)
from schemas.violations import Violations

COMMON = {"username": "alice", "currency": "BTC", "amount": "0.10000000"}
OPTIONAL = {
    *("external_id", "ticker", "fee", "balance", "order_id", "order_coid", "order_status"),
    *("trade_id", "settlement_sequence", "txid", "wallet_id", "wallet_address"),
    *("recepient_wallet_address", "wallet_type", "lp_id", "lp_name", "created_by_id"),
    *("comment", "enc_order_id"),
}
ACTIONS: dict[str, dict[str, Any]] = {
    "trade": {**COMMON, "type": "trade", "order_id": "ord-1", "ticker": "BTC/USD"},
    "transfer": {**COMMON, "type": "transfer", "wallet_address": "bc1q"},
    "deposit": {**COMMON, "type": "deposit"},
    "withdrawal": {**COMMON, "type": "withdrawal", "amount": "-0.1"},
    "balance_update": {**COMMON, "type": "balance_update", "comment": "by hand"},
}


def violations(document: object) -> Violations:
    with pytest.raises(Violations) as caught:
        check_action(document)
    return caught.value


@pytest.mark.parametrize("kind", ACTIONS)
def test_each_type_is_accepted_with_no_more_than_it_needs(kind: str) -> None:
    check_action(ACTIONS[kind])
    check_action({**ACTIONS[kind], "timestamp": "2024-01-29T00:12:00Z"})


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("trade", {"amount": "-1"}),
        ("transfer", {"recepient_wallet_address": "bc1p"}),
        ("deposit", {"txid": "ab12", "status": "pending"}),
        ("withdrawal", {"txid": "ab12", "status": "canceled"}),
        ("balance_update", {"amount": "-1", "comment": "x" * 1000}),
    ],
)
def test_each_type_takes_its_optional_fields(kind: str, extra: dict[str, str]) -> None:
    check_action(ACTIONS[kind] | extra)


def test_a_transfer_needs_one_of_the_two_addresses() -> None:
    bare = {**COMMON, "type": "transfer"}
    check_action({**bare, "recepient_wallet_address": "bc1p"})
    assert violations(bare).missing == ("wallet_address",)
    assert violations({**bare, "amount": "0"}).missing == ("wallet_address",)


def test_an_address_that_is_invalid_is_not_called_missing() -> None:
    found = violations({**COMMON, "type": "transfer", "wallet_address": None})
    assert found.missing == ()
    assert tuple(found.invalid) == ("wallet_address",)


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, action in ACTIONS.items() for field in action if field != "type"],
)
def test_a_required_field_may_not_be_missing_or_null(kind: str, field: str) -> None:
    rest = {name: value for name, value in ACTIONS[kind].items() if name != field}
    assert violations(rest).missing == (field,)
    assert tuple(violations({**rest, field: None}).invalid) == (field,)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("deposit", "comment", "x"),
        ("deposit", "order_id", "ord-1"),
        ("deposit", "wallet_address", "bc1q"),
        ("trade", "status", "pending"),
        ("trade", "txid", "x"),
        ("transfer", "status", "pending"),
        ("balance_update", "status", "pending"),
        ("balance_update", "ticker", "BTC"),
        ("withdrawal", "id", "1"),
        ("deposit", "lp_id", None),
    ],
)
def test_a_field_of_another_type_is_unexpected(kind: str, field: str, value: object) -> None:
    assert violations({**ACTIONS[kind], field: value}).unexpected == (field,)


@pytest.mark.parametrize(
    ("kind", "amount"),
    [
        ("deposit", "-1"),
        ("withdrawal", "1"),
        ("deposit", "0"),
        ("withdrawal", "-0.0"),
        *((kind, amount) for kind in ACTIONS for amount in ("0", "1e5", "+1", "9" * 39)),
        *((kind, amount) for kind in ACTIONS for amount in (1, -1, 0.1, True, None, ["1"])),
    ],
)
def test_an_amount_is_a_decimal_string_whose_sign_fits(kind: str, amount: object) -> None:
    assert tuple(violations({**ACTIONS[kind], "amount": amount}).invalid) == ("amount",)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("deposit", "username", "../alice"),
        ("deposit", "currency", "BRL\n"),
        ("deposit", "status", "done"),
        ("deposit", "status", None),
        ("deposit", "timestamp", "2023-02-29T00:00:00Z"),
        ("deposit", "timestamp", 1706480000),
        ("deposit", "txid", ""),
        ("deposit", "txid", "x" * 257),
        ("trade", "order_id", "a/b"),
        ("trade", "ticker", "x" * 33),
        ("transfer", "wallet_address", "x" * 257),
        ("balance_update", "comment", " \n "),
        ("balance_update", "comment", "x" * 1001),
    ],
)
def test_a_value_out_of_bounds_is_invalid(kind: str, field: str, value: object) -> None:
    assert tuple(violations({**ACTIONS[kind], field: value}).invalid) == (field,)


@pytest.mark.parametrize("document", [None, [], "deposit", 1, [ACTIONS["deposit"]]])
def test_what_is_not_an_object_is_refused(document: object) -> None:
    assert tuple(violations(document).invalid) == ("body",)


def test_a_missing_type_is_missing() -> None:
    assert violations(COMMON).missing == ("type",)


@pytest.mark.parametrize("kind", ["", "Deposit", "deposit\n", "fee", None, 1, [], {}, True])
def test_an_unknown_type_is_invalid(kind: object) -> None:
    assert tuple(violations({**COMMON, "type": kind}).invalid) == ("type",)


def test_there_is_a_schema_for_each_of_the_five_types() -> None:
    assert list(ACTION_SCHEMAS) == list(ACTIONS)


def test_a_row_documents_every_field_of_the_contract() -> None:
    row = RowSchema()
    required = {name for name, field in row.fields.items() if field.required}
    assert required == {"id", "username", "type", "status", "amount", "currency", "timestamp"}
    assert row.fields.keys() - required == OPTIONAL
    for name, field in row.fields.items():
        assert isinstance(field, fields.String)
        assert field.allow_none is (name not in required)


def test_the_document_describes_actions_and_replies() -> None:
    spec = APISpec("t", "1", "3.1.0", plugins=[MarshmallowPlugin()])
    for name, schema in ACTION_SCHEMAS.items():
        spec.components.schema(name, schema=schema)
    for reply in (LedgerListSchema, LedgerDepositsSchema, LedgerErrorSchema):
        spec.components.schema(reply.__name__, schema=reply)
    shapes = spec.to_dict()["components"]["schemas"]
    assert shapes["deposit"]["additionalProperties"] is False
    assert shapes["deposit"]["properties"]["type"]["enum"] == ["deposit"]
    assert shapes["deposit"]["properties"]["amount"]["pattern"].startswith("^([1-9]")
    assert shapes["withdrawal"]["properties"]["amount"]["pattern"].startswith("^-([1-9]")
    rows = {"type": "array", "items": {"$ref": "#/components/schemas/Row"}}
    assert shapes["LedgerListSchema"]["properties"]["api_data"] == rows
    deposits = shapes["LedgerDepositsSchema"]["properties"]["api_data"]
    assert deposits == {"type": "object", "additionalProperties": rows}
    assert shapes["Row"]["additionalProperties"] is True
    assert shapes["Row"]["properties"]["fee"]["type"] == ["string", "null"]
    assert shapes["LedgerErrorData"]["required"] == ["detail", "origin", "request_id"]
