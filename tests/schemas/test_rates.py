"""Rates: what may create one, what may change one, and the documented replies."""

from typing import Any

import pytest
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from schemas.rates import (
    RateCreateSchema,
    RateErrorSchema,
    RatePatchSchema,
    RateSchema,
    check_rate,
    check_rate_patch,
)
from schemas.violations import Violations

NEEDED: dict[str, Any] = {
    "baseInstrumentCode": "BRL",
    "counterInstrumentCode": "BTC",
    "amount": 35000000,
    "scale": 2,
    "source": "Chainlink database",
}
FULL: dict[str, Any] = {
    **NEEDED,
    "status": {"code": "My custom ACTIVE code", "description": "My description"},
    "metadata": {"updateCycle": 300, "urgent": True},
}
FIXED = ("id", "organizationId", "ledgerId", "createdAt", "updatedAt", "deletedAt")

INVALID = [
    ("baseInstrumentCode", "brl"),
    ("baseInstrumentCode", "BRL\n"),
    ("counterInstrumentCode", ""),
    ("counterInstrumentCode", "B" * 33),
    ("amount", "35000000"),
    ("amount", 1.0),
    ("amount", True),
    ("amount", -1),
    ("amount", 10**38),
    ("scale", 39),
    ("scale", -1),
    ("scale", "2"),
    ("source", ""),
    ("source", "x" * 201),
    ("source", 1),
    ("status", "ACTIVE"),
    ("status", []),
    ("metadata", []),
    ("metadata", {"a": {"b": 1}}),
    *((name, None) for name in FULL),
]
INVALID_STATUS = [
    ({"code": ""}, "code"),
    ({"code": "x" * 101}, "code"),
    ({"code": None}, "code"),
    ({"code": 1}, "code"),
    ({"code": "x", "description": "x" * 257}, "description"),
    ({"code": "x", "description": 1}, "description"),
]
VALID = [
    {"amount": 0},
    {"amount": 10**38 - 1, "scale": 38},
    {"status": {"code": "x" * 100}},
    {"status": {"code": "INACTIVE", "description": None}},
    {"status": {"code": "INACTIVE", "description": "x" * 256}},
    {"metadata": {}},
    {"metadata": {"a": None, "b": 1.5, "c": "x" * 2000}},
]


def create(document: object) -> Violations:
    with pytest.raises(Violations) as caught:
        check_rate(document)
    return caught.value


def patch(document: object) -> Violations:
    with pytest.raises(Violations) as caught:
        check_rate_patch(document)
    return caught.value


def test_the_example_of_the_source_is_accepted() -> None:
    check_rate(FULL)
    check_rate_patch(FULL)


def test_status_and_metadata_may_be_left_out() -> None:
    check_rate(NEEDED)


@pytest.mark.parametrize("change", VALID)
def test_good_values_create_and_change(change: dict[str, Any]) -> None:
    check_rate(NEEDED | change)
    check_rate_patch(change)


@pytest.mark.parametrize("name", NEEDED)
def test_a_needed_field_is_missed_on_create_but_not_on_patch(name: str) -> None:
    rest = {key: value for key, value in FULL.items() if key != name}
    assert create(rest).missing == (name,)
    check_rate_patch(rest)


def test_an_empty_patch_changes_nothing_and_is_allowed() -> None:
    check_rate_patch({})
    assert create({}).missing == tuple(NEEDED)


@pytest.mark.parametrize("name", [*FIXED, "value", "Amount", ""])
def test_fields_that_cannot_be_edited_and_unknown_ones_are_unexpected(name: str) -> None:
    assert create(FULL | {name: "x"}).unexpected == (name,)
    assert patch({name: "x"}).unexpected == (name,)


@pytest.mark.parametrize(("name", "value"), INVALID)
def test_a_wrong_value_is_invalid(name: str, value: object) -> None:
    for found in (create(FULL | {name: value}), patch({name: value})):
        assert (found.unexpected, found.missing) == ((), ())
        assert tuple(found.invalid) == (name,)


@pytest.mark.parametrize(("status", "name"), INVALID_STATUS)
def test_a_wrong_status_is_named_by_its_part(status: dict[str, Any], name: str) -> None:
    assert tuple(create(FULL | {"status": status}).invalid) == (f"status.{name}",)


def test_a_status_needs_its_code_and_nothing_unknown() -> None:
    assert patch({"status": {"description": "x"}}).missing == ("status.code",)
    assert patch({"status": {"code": "x", "more": 1}}).unexpected == ("status.more",)


@pytest.mark.parametrize("document", [None, [], "x", 1])
def test_what_is_not_an_object_is_refused(document: object) -> None:
    assert tuple(create(document).invalid) == ("body",)
    assert tuple(patch(document).invalid) == ("body",)


def test_the_document_describes_bodies_and_replies() -> None:
    spec = APISpec("t", "1", "3.1.0", plugins=[MarshmallowPlugin()])
    for schema in (RateCreateSchema, RatePatchSchema, RateSchema, RateErrorSchema):
        spec.components.schema(schema.__name__, schema=schema)
    shapes = spec.to_dict()["components"]["schemas"]
    amount = {"type": "integer", "minimum": 0, "maximum": 10**38 - 1}
    assert shapes["RateCreateSchema"]["properties"]["amount"] == amount
    assert shapes["RateCreateSchema"]["required"] == sorted(NEEDED)
    assert "required" not in shapes["RatePatchSchema"]
    assert set(shapes["RateSchema"]["properties"]) == {*FULL, *FIXED}
    assert shapes["RateSchema"]["properties"]["deletedAt"]["type"] == ["string", "null"]
    error = shapes["RateErrorSchema"]
    assert error["required"] == ["code", "message", "origin", "requestId", "title"]
    assert "fields" in error["properties"]
