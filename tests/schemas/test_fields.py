"""The shared fields: what each accepts, hands back unchanged, and says in OpenAPI terms."""

import re
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError, fields

from schemas.fields import (
    MAX_AMOUNT,
    ORDER_ID,
    USERNAME,
    ExactInteger,
    Metadata,
    StrictString,
    comment,
    currency_code,
    description,
    instrument_code,
    matched,
    money,
    one_of,
    order_id,
    text,
    timestamp,
    user_name,
)

NOT_STRINGS: list[object] = [None, 1, 1.5, True, [], {}, b"abc", ["abc"]]


def accepts(field: fields.Field[Any], value: object) -> bool:
    try:
        loaded = field.deserialize(value)
    except ValidationError:
        return False
    assert loaded is value
    return True


CASES: list[tuple[StrictString, list[str], list[str]]] = [
    (
        user_name(),
        ["a", "Z", "0", "a.b_c@d+e-f", "a" * 64, "1..--"],
        [
            "",
            "a" * 65,
            ".",
            "..",
            "-a",
            "@a",
            "_a",
            "a b",
            "a/b",
            "a%",
            "é",
            "\uff41",
            "a\n",
            "a\x00",
        ],
    ),
    (
        order_id(),
        ["a", "9", "ord:1.2-3_4", "a" * 128],
        ["", "a" * 129, ".", "..", ":a", "a@b", "a/b", "a\n", "\u0663"],
    ),
    (
        currency_code(),
        ["BRL", "usdt", "USDT_TRC-20.x", "1INCH", "A" * 32],
        ["", "A" * 33, "BRL\n", " BRL", "-A", "€", "A/B"],
    ),
    (
        instrument_code(),
        ["BRL", "X.Y_Z-1", "A" * 32, "."],
        ["", "A" * 33, "BRL\n", "brl", "A B", "É", "A/B"],
    ),
    (
        one_of(("pending", "failed")),
        ["pending", "failed"],
        ["", "Pending", "pending\n", "other", "pend"],
    ),
    (
        money(),
        ["1", "-1", "0.1", "-0.10000000", "10", "9" * 38, "-0." + "0" * 36 + "1", "1.50"],
        [
            *("", "0", "-0", "0.0", "0.", ".5", "1.", "+1", "--1", "01", "00.1", "1e5", "1E5"),
            *(
                "1,5",
                " 1",
                "1 ",
                "1\n",
                "NaN",
                "Infinity",
                "0x1",
                "1_0",
                "\u0661",
                "\uff11",
                "9" * 39,
            ),
            *("0." + "0" * 37 + "1", "1" * 38 + ".0", "1.2.3", "-", "9" * 100_000),
        ],
    ),
    (money(""), ["1", "0.01"], ["-1", "0", "-0.01"]),
    (money("-"), ["-1", "-0.01"], ["1", "0", "0.01", "-0"]),
    (
        timestamp(),
        [
            "2024-01-29T00:12:00Z",
            "2024-02-29t23:59:59z",
            "2024-01-29T00:12:00.123456789+03:00",
            "2024-01-29T00:12:00.1-23:59",
            "9999-12-31T23:59:59Z",
            "0001-01-01T00:00:00Z",
        ],
        [
            *("", "2024-01-29", "2024-01-29T00:12:00", "2024-01-29 00:12:00Z", "now", "1706480000"),
            *("2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z", "2024-01-00T00:00:00Z"),
            *("2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2024-01-01T00:00:60Z"),
            *("2024-01-29T00:12:00+0300", "2024-01-29T00:12:00+24:00", "2024-01-29T00:12Z"),
            *("2024-01-29T00:12:00.Z", "2024-01-29T00:12:00.1234567890Z", "0000-01-01T00:00:00Z"),
            *("2024-01-29T00:12:00Z\n", "٢٠٢٤-01-29T00:12:00Z", "20240129T001200Z"),
            *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"),
        ],
    ),
    (
        text(5),
        ["a", "abcde", " a ", "日本語です", "\U0001f600"],
        ["", "abcdef", "a\n", "a\x00", "\x7f", "a\tb", "\x85"],
    ),
    (
        comment(5),
        ["a", "a\nb\t", " a ", "日本語"],
        ["", " ", "\n\t ", "\u2003", "abcdef", "a\x00", "\x1b"],
    ),
    (description(5), ["", " ", "a\nb", "abcde"], ["abcdef", "\x00", "a\x7f"]),
]
ROWS = [
    (field, value, good)
    for field, accepted, refused in CASES
    for values, good in ((accepted, True), (refused, False))
    for value in values
]


@pytest.mark.parametrize(("field", "value", "good"), ROWS)
def test_a_string_field_accepts_only_its_own_form(
    field: StrictString, value: str, good: bool
) -> None:
    assert accepts(field, value) is good


@pytest.mark.parametrize("value", NOT_STRINGS)
@pytest.mark.parametrize("field", [case[0] for case in CASES if not case[0].allow_none])
def test_a_string_field_refuses_everything_else(field: StrictString, value: object) -> None:
    assert not accepts(field, value)


def test_only_a_description_may_be_null() -> None:
    assert accepts(description(5), None)
    assert not accepts(description(5), 1)


@pytest.mark.parametrize(("field", "value", "good"), ROWS)
def test_the_openapi_properties_accept_what_the_field_accepts(
    field: StrictString, value: str, good: bool
) -> None:
    properties = dict(field.metadata)
    patterns = [p["pattern"] for p in (properties, *properties.get("allOf", [])) if "pattern" in p]
    documented = (
        # ECMA's `$` without the m flag is the end of the text, as `\Z` is here.
        all(re.search(f"{pattern[:-1]}\\Z", value) for pattern in patterns)
        and properties.get("minLength", 0) <= len(value) <= properties.get("maxLength", len(value))
        and value in properties.get("enum", [value])
    )
    if good:
        assert documented
    elif "format" not in properties:
        assert not documented


@given(st.decimals(allow_nan=False, allow_infinity=False, places=8, max_value=10**29))
def test_any_plain_decimal_is_money_unless_it_is_zero(value: Decimal) -> None:
    digits = format(value, "f")
    fits = sum(char.isdigit() for char in digits) <= 38
    assert accepts(money(), digits) is (value != 0 and fits)


@given(st.text("-+.0123456789eE_ ", max_size=45))
def test_whatever_is_accepted_as_money_is_exact_and_non_zero(value: str) -> None:
    if accepts(money(), value):
        assert format(Decimal(value), "f") == value
        assert Decimal(value) != 0
        assert sum(char.isdigit() for char in value) <= 38


zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


# The first and the last year can leave the calendar by their offset.
@given(st.datetimes(timezones=zones).filter(lambda value: 1 < value.year < 9999))
def test_any_instant_that_python_writes_is_a_timestamp(value: datetime) -> None:
    assert accepts(timestamp(), value.isoformat())


@pytest.mark.parametrize("value", [0, 1, 38])
def test_an_integer_in_range_is_accepted(value: int) -> None:
    assert accepts(ExactInteger(38), value)


@pytest.mark.parametrize(
    "value",
    [-1, 39, 10**100, 1.0, 1.9, "1", " 12 ", "1_000", "\u0661\u0662", True, False, None, [], {}],
)
def test_anything_else_is_not_an_integer(value: object) -> None:
    assert not accepts(ExactInteger(38), value)


def test_an_amount_has_up_to_38_digits() -> None:
    assert accepts(ExactInteger(MAX_AMOUNT), int("9" * 38))
    assert not accepts(ExactInteger(MAX_AMOUNT), 10**38)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 1, "b": 1.5, "c": True, "d": None, "e": "", "f": "x" * 2000},
        {"k" * 100: 1, "__proto__": 1, "$where": "1", "a.b": 1, " ": 1},
        dict.fromkeys(map(str, range(1000)), "v"),
    ],
)
def test_flat_metadata_is_accepted(value: object) -> None:
    assert accepts(Metadata(), value)


def test_metadata_has_at_most_a_thousand_keys() -> None:
    assert not accepts(Metadata(), dict.fromkeys(map(str, range(1001)), "v"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "a",
        1,
        {"": 1},
        {"k" * 101: 1},
        {"a": {}},
        {"a": []},
        {"a": "x" * 2001},
        {"a": 1, "b": {"c": 1}},
    ],
)
def test_metadata_that_is_nested_or_too_long_is_refused(value: object) -> None:
    assert not accepts(Metadata(), value)


@pytest.mark.parametrize(
    ("name", "good"), [("alice", True), ("..", False), ("a\n", False), ("", False)]
)
def test_the_patterns_for_path_segments_hold_with_fullmatch(name: str, good: bool) -> None:
    assert bool(USERNAME.fullmatch(name)) is good
    assert bool(ORDER_ID.fullmatch(name)) is good


def test_a_reason_never_quotes_the_value() -> None:
    every: list[fields.Field[Any]] = [*(case[0] for case in CASES), ExactInteger(5), Metadata()]
    for field in every:
        with pytest.raises(ValidationError) as caught:
            field.deserialize(["{input} secret"])
        assert "secret" not in str(caught.value)


def test_apispec_finds_the_right_types() -> None:
    plugin = MarshmallowPlugin()
    APISpec("t", "1", "3.1.0", plugins=[plugin])
    converter = plugin.converter
    assert converter is not None
    expected = {"type": "string", "pattern": "^[a]$", "minLength": 1, "maxLength": 2}
    assert converter.field2property(matched(re.compile("[a]"), "x", 1, 2)) == expected
    assert converter.field2property(ExactInteger(38)) == {
        "type": "integer",
        "minimum": 0,
        "maximum": 38,
    }
    assert converter.field2property(one_of(("a", "b"))) == {"type": "string", "enum": ["a", "b"]}
    assert converter.field2property(description(9))["type"] == ["string", "null"]
    assert converter.field2property(timestamp())["format"] == "date-time"
    assert converter.field2property(Metadata())["type"] == "object"
    assert "anyOf" in converter.field2property(Metadata())["additionalProperties"]
