"""Query strings: raw to pairs, pairs to a question, and everything that is refused on the way."""

import json
from urllib.parse import urlencode

import pytest
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from hypothesis import given
from hypothesis import strategies as st

from schemas.queries import (
    ListQuery,
    ListQuerySchema,
    RateListQuerySchema,
    list_query,
    no_query,
    parse_query,
    rate_filters,
)
from schemas.violations import Violations

characters = st.characters(exclude_categories=["Cc", "Cs"])
printable = st.text(characters)
short = st.text(characters, min_size=1, max_size=100)


@given(st.lists(st.tuples(printable.filter(bool), printable), max_size=32))
def test_what_a_client_encodes_is_what_is_read(pairs: list[tuple[str, str]]) -> None:
    assert parse_query(urlencode(pairs)) == pairs


@given(st.text() | st.text("%&=+;a0fFC\x80é\ud800", max_size=20))
def test_any_raw_query_gives_clean_pairs_or_violations(raw: str) -> None:
    try:
        pairs = parse_query(raw)
    except Violations:
        return
    assert len(pairs) <= 32
    for part in (part for pair in pairs for part in pair):
        part.encode()
        assert not any(char < " " or "\x7f" <= char <= "\x9f" for char in part)


@pytest.mark.parametrize(
    ("raw", "pairs"),
    [
        ("", []),
        ("a=1", [("a", "1")]),
        ("a=1&b=2&a=3", [("a", "1"), ("b", "2"), ("a", "3")]),
        ("a", [("a", "")]),
        ("a=", [("a", "")]),
        ("a=b=c", [("a", "b=c")]),
        ("a+b=c+d", [("a b", "c d")]),
        ("a=%2B%26%3D%25", [("a", "+&=%")]),
        ("a=1;b=2", [("a", "1;b=2")]),
        ("%61=%C3%A9", [("a", "é")]),
        ("a=é", [("a", "é")]),
        ("a=%2561", [("a", "%61")]),
        ("&".join(["a=1"] * 32), [("a", "1")] * 32),
    ],
)
def test_splits_and_decodes_once(raw: str, pairs: list[tuple[str, str]]) -> None:
    assert parse_query(raw) == pairs


@pytest.mark.parametrize(
    "raw",
    [
        *("a=%", "a=%4", "a=%zz", "a=%%31", "%=a", "a=%+1"),
        *("a=%FF", "a=%C0%AE", "a=%ED%A0%80", "a=\udcff", "%FF=1"),
        *("a=%00", "a=%0d%0aX", "a=%7F", "a=\x00", "%09=1", "a=%C2%85"),
        *("=1", "&", "a=1&", "&a=1", "a=1&&b=2"),
        "&".join(["a=1"] * 33),
        "&" * 100_000,
    ],
)
def test_refuses_a_raw_query(raw: str) -> None:
    with pytest.raises(Violations) as caught:
        parse_query(raw)
    assert tuple(caught.value.invalid) == ("query",)


def test_an_empty_query_asks_for_everything() -> None:
    assert list_query([]) == ListQuery(None, None, ())


def test_a_list_query_is_canonical() -> None:
    pairs = [
        ("until", "2024-02-01T00:00:00+03:00"),
        ("limit", "100"),
        ("type", "deposit"),
        ("status", "pending"),
        ("cursor", "ab.c~d=-_"),
        ("currency", "BTC"),
        ("since", "2024-01-01T00:00:00Z"),
    ]
    query = list_query(pairs)
    assert query.limit == 100
    assert query.cursor == "ab.c~d=-_"
    assert query.filters == (
        ("currency", "BTC"),
        ("since", "2024-01-01T00:00:00Z"),
        ("status", "pending"),
        ("type", "deposit"),
        ("until", "2024-02-01T00:00:00+03:00"),
    )
    assert list_query(pairs[::-1]) == query


@pytest.mark.parametrize("limit", [1, 9, 10, 999, 1000])
def test_a_limit_in_range_is_an_integer(limit: int) -> None:
    assert list_query([("limit", str(limit))]).limit == limit


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("limit", value)
            for value in ("0", "1001", "9999", "-1", "+1", "01", "1_0", " 1", "1.0")
        ),
        *(("limit", value) for value in ("", "x", "\u0661", "1\n", "1e2", "9" * 10_000)),
        *(("cursor", value) for value in ("", "a b", "a/b", "a+b", "é", "a\n", "a" * 4097)),
        *(("type", value) for value in ("", "a-b", "a" * 65, "é", "a\n")),
        *(("currency", value) for value in ("", "A/B", "BRL\n", "A" * 33)),
        *(("status", value) for value in ("", "done", "PENDING")),
        *(("since", value) for value in ("", "2024-01-01", "yesterday", "2023-02-29T00:00:00Z")),
        ("until", "2024-01-01T00:00:00 03:00"),
    ],
)
def test_a_value_out_of_range_is_invalid(name: str, value: str) -> None:
    with pytest.raises(Violations) as caught:
        list_query([(name, value)])
    assert tuple(caught.value.invalid) == (name,)


@pytest.mark.parametrize("name", ["offset", "Limit", "username", "", "__proto__", "metadata.a"])
def test_an_unknown_parameter_is_unexpected(name: str) -> None:
    with pytest.raises(Violations) as caught:
        list_query([("limit", "1"), (name, "1")])
    assert caught.value.unexpected == (name,)


@pytest.mark.parametrize("values", [("1", "1"), ("1", "2")])
def test_a_parameter_given_twice_is_refused(values: tuple[str, str]) -> None:
    with pytest.raises(Violations) as caught:
        list_query([("limit", value) for value in values])
    assert caught.value.invalid == {"limit": "is given more than once"}


def test_a_route_without_a_query_refuses_any_parameter() -> None:
    no_query([])
    with pytest.raises(Violations) as caught:
        no_query([("limit", "1"), ("x", "")])
    assert caught.value.unexpected == ("limit", "x")


def test_both_ways_to_ask_for_metadata_are_one_question() -> None:
    plain = [
        ("metadata.b", "2"),
        ("source", "x"),
        ("baseInstrumentCode", "BRL"),
        ("metadata.a", "1"),
    ]
    as_json = [("metadata", '{"b":"2","a":1}'), ("baseInstrumentCode", "BRL"), ("source", "x")]
    canonical = (
        ("baseInstrumentCode", "BRL"),
        ("metadata.a", "1"),
        ("metadata.b", "2"),
        ("source", "x"),
    )
    assert rate_filters(plain) == rate_filters(as_json) == canonical
    assert rate_filters([]) == rate_filters([("metadata", "{}")]) == ()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('"x y"', "x y"),
        ("true", "true"),
        ("false", "false"),
        ("null", "null"),
        ("1", "1"),
        ("1.10", "1.10"),
        ("-0", "-0"),
        ("1E+2", "1E+2"),
        ("12345678901234567890.123", "12345678901234567890.123"),
        ('"1.10"', "1.10"),
    ],
)
def test_a_metadata_value_is_its_text(written: str, value: str) -> None:
    assert rate_filters([("metadata", f'{{"k":{written}}}')]) == (("metadata.k", value),)


@given(st.dictionaries(short, short, max_size=10))
def test_metadata_of_strings_round_trips(wanted: dict[str, str]) -> None:
    pairs = parse_query(urlencode([("metadata", json.dumps(wanted))]))
    expected = sorted((f"metadata.{key}", value) for key, value in wanted.items())
    assert rate_filters(pairs) == tuple(expected)
    assert rate_filters(parse_query(urlencode(expected))) == tuple(expected)


@pytest.mark.parametrize(
    "raw",
    [
        *("", "x", "[]", '"a"', "null", "{", '{"a":NaN}', '{"a":1,"a":1}', '{"a":1e400}'),
        *('{"a":{}}', '{"a":["b"]}', '{"a":"\\ud800"}', "\ud800", '{"a":' * 100),
    ],
)
def test_metadata_that_is_no_flat_json_object_is_refused(raw: str) -> None:
    with pytest.raises(Violations) as caught:
        rate_filters([("metadata", raw)])
    assert tuple(caught.value.invalid) == ("metadata",)


@pytest.mark.parametrize(
    ("key", "value"),
    [("", "1"), ("k" * 101, "1"), ("a\n", "1"), ("a", ""), ("a", "x" * 2001), ("a", "x\ny")],
)
def test_a_metadata_filter_out_of_bounds_is_refused(key: str, value: str) -> None:
    for pairs in ([(f"metadata.{key}", value)], [("metadata", json.dumps({key: value}))]):
        with pytest.raises(Violations) as caught:
            rate_filters(pairs)
        assert len(caught.value.invalid) == 1


def test_one_metadata_key_asked_for_twice_is_refused() -> None:
    for pairs in (
        [("metadata.a", "1"), ("metadata", '{"a":"1"}')],
        [("metadata.a", "1"), ("metadata.a", "1")],
        [("metadata", "{}"), ("metadata", "{}")],
    ):
        with pytest.raises(Violations) as caught:
            rate_filters(pairs)
        assert "is given more than once" in caught.value.invalid.values()


def test_metadata_in_json_counts_towards_the_32_filters() -> None:
    many = {str(number): 1 for number in range(33)}
    with pytest.raises(Violations) as caught:
        rate_filters([("metadata", json.dumps(many))])
    assert tuple(caught.value.invalid) == ("query",)
    del many["0"]
    assert len(rate_filters([("metadata", json.dumps(many))])) == 32


@pytest.mark.parametrize(
    ("name", "value"),
    [("baseInstrumentCode", "brl"), ("counterInstrumentCode", ""), ("source", "x" * 201)],
)
def test_a_rate_filter_out_of_range_is_invalid(name: str, value: str) -> None:
    with pytest.raises(Violations) as caught:
        rate_filters([(name, value)])
    assert tuple(caught.value.invalid) == (name,)


@pytest.mark.parametrize("name", ["limit", "amount", "Metadata.a", "metadataX"])
def test_an_unknown_rate_filter_is_unexpected(name: str) -> None:
    with pytest.raises(Violations) as caught:
        rate_filters([(name, "1")])
    assert caught.value.unexpected == (name,)


def test_the_document_lists_the_parameters() -> None:
    spec = APISpec("t", "1", "3.1.0", plugins=[MarshmallowPlugin()])
    queries = {"get": ListQuerySchema, "put": RateListQuerySchema}
    operations = {
        method: {"parameters": [{"in": "query", "schema": schema}], "responses": {}}
        for method, schema in queries.items()
    }
    spec.path("/x", operations=operations)
    path = spec.to_dict()["paths"]["/x"]
    shapes = {parameter["name"]: parameter["schema"] for parameter in path["get"]["parameters"]}
    assert list(shapes) == ["limit", "cursor", "type", "currency", "status", "since", "until"]
    assert shapes["limit"] == {"type": "integer", "minimum": 1, "maximum": 1000}
    assert [parameter["name"] for parameter in path["put"]["parameters"]] == [
        "baseInstrumentCode",
        "counterInstrumentCode",
        "source",
        "metadata",
    ]
