"""Violations and `load`: what is named, in which kind, and how much of it."""

import time
from typing import Any

import pytest
from marshmallow import Schema, fields

from schemas.fields import MESSAGES, ExactInteger, text
from schemas.rates import StatusSchema
from schemas.violations import Violations, load


class Sample(Schema):
    """One field of each kind."""

    name = text(10, required=True)
    count = ExactInteger(9)
    status = fields.Nested(StatusSchema, error_messages=MESSAGES)


SAMPLE = Sample()


def violations(document: object) -> Violations:
    with pytest.raises(Violations) as caught:
        load(SAMPLE, document)
    return caught.value


@pytest.mark.parametrize(
    "document",
    [
        {"name": "a"},
        {"name": "a", "count": 0},
        {"status": {"description": None, "code": "X"}, "name": "ü"},
    ],
)
def test_a_good_document_comes_back_as_it_was(document: dict[str, Any]) -> None:
    assert load(SAMPLE, document) == document


@pytest.mark.parametrize("document", [None, [], [{"name": "a"}], "x", 1, True, 1.5])
def test_what_is_not_an_object_is_an_invalid_body(document: object) -> None:
    found = violations(document)
    assert (found.unexpected, found.missing) == ((), ())
    assert found.invalid == {"body": "must be a JSON object"}


@pytest.mark.parametrize(
    ("document", "unexpected", "missing", "invalid"),
    [
        ({"name": "a", "x": 1}, ("x",), (), ()),
        ({}, (), ("name",), ()),
        ({"name": None}, (), (), ("name",)),
        ({"name": ""}, (), (), ("name",)),
        ({"x": 1, "count": "1"}, ("x",), ("name",), ("count",)),
        ({"name": "a", "status": {}}, (), ("status.code",), ()),
        ({"name": "a", "status": {"code": 1, "x": 1}}, ("status.x",), (), ("status.code",)),
        ({"name": "a", "status": []}, (), (), ("status",)),
        ({"name": "a", "status": None}, (), (), ("status",)),
        ({"name": "a", "_schema": 1, "__proto__": 1}, ("_schema", "__proto__"), (), ()),
    ],
)
def test_all_that_is_wrong_is_named_by_kind(
    document: dict[str, Any],
    unexpected: tuple[str, ...],
    missing: tuple[str, ...],
    invalid: tuple[str, ...],
) -> None:
    found = violations(document)
    assert found.unexpected == unexpected
    assert found.missing == missing
    assert tuple(found.invalid) == invalid


def test_reasons_are_short_and_in_our_own_words() -> None:
    found = violations({"x": 1, "count": 10, "status": []})
    assert found.reasons() == {
        "x": "is not expected",
        "name": "is required",
        "count": "must be an integer from 0 to 9",
        "status": "must be a JSON object",
    }
    assert str(found).startswith("x is not expected; name is required; ")


def test_the_document_is_left_as_it_was() -> None:
    document = {"name": "a", "x": 1, "status": {"y": 1}}
    violations(document)
    assert document == {"name": "a", "x": 1, "status": {"y": 1}}


def test_a_name_is_shown_short_and_printable() -> None:
    found = violations({"name": "a", "\x00" + "k" * 10_000: 1})
    assert found.unexpected == ("\ufffd" + "k" * 63,)


@pytest.mark.parametrize("nested", [False, True])
def test_many_unknown_fields_cost_little_and_give_a_small_answer(nested: bool) -> None:
    many: dict[str, Any] = dict.fromkeys(map(str, range(60_000)), 1)
    document = {"name": "a", "status": many} if nested else many
    start = time.perf_counter()
    found = violations(document)
    assert time.perf_counter() - start < 0.5
    assert len(found.reasons()) == 20
    assert len(str(found)) < 1000


def test_at_most_twenty_reasons_are_given_unexpected_before_missing_before_invalid() -> None:
    names = [f"f{number}" for number in range(30)]
    assert len(Violations(invalid=dict.fromkeys(names, "is wrong")).reasons()) == 20
    merged = Violations(unexpected=names[:10], missing=names[10:15], invalid={"z": "is wrong"})
    assert list(merged.reasons()) == [*names[:15], "z"]
    full = Violations(unexpected=names[:15], missing=names[15:], invalid={"z": "is wrong"})
    assert list(full.reasons()) == names[:20]
