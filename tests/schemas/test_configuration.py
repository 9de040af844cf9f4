"""The shape of the configuration: types, ranges and defaults, and its twin in dataclasses."""

import typing
from collections.abc import Iterator
from dataclasses import fields as fields_of
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import Schema, ValidationError, fields
from yarl import URL

from gateway import config
from schemas.configuration import ALGORITHMS, SECRETS, SECTIONS

URL_OF_LEDGER = "http://ledger.example"
REQUIRED = {"ledger": {"base_url": URL_OF_LEDGER}}

BOUNDED = settings(max_examples=60, deadline=None)
KEYS = [(section, key) for section, schema in SECTIONS.items() for key in schema.fields]


def of_type(kind: type[fields.Field[Any]]) -> list[tuple[str, str]]:
    return [(section, key) for section, key in KEYS if isinstance(field_of(section, key), kind)]


def field_of(section: str, key: str) -> Any:
    return SECTIONS[section].fields[key]


def load(section: str, key: str, value: Any) -> Any:
    return SECTIONS[section].load({**REQUIRED.get(section, {}), key: value})[key]


def reasons(section: str, key: str, value: Any) -> Any:
    """What is said against a value; it must be about this key alone."""
    with pytest.raises(ValidationError) as refusal:
        load(section, key, value)
    assert set(refusal.value.messages) == {key}
    return refusal.value.messages[key]


@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_has_the_keys_of_its_dataclass(section: str) -> None:
    twin: Any = {field.name: field.type for field in fields_of(config.Config)}[section]
    assert {field.name for field in fields_of(twin)} == set(SECTIONS[section].fields)


def test_the_dataclass_has_the_sections_of_the_schema_in_their_order() -> None:
    assert [field.name for field in fields_of(config.Config)] == list(SECTIONS)


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_each_default_is_of_the_type_that_the_dataclass_states(section: str, key: str) -> None:
    effective = config.read(
        None, {"GATEWAY_LEDGER__BASE_URL": URL_OF_LEDGER, "GATEWAY_AUTH__SECRET": "s" * 32}
    )
    twin = getattr(effective, section)
    stated = typing.get_type_hints(type(twin))[key]
    kinds = [typing.get_origin(kind) or kind for kind in typing.get_args(stated) or (stated,)]
    if typing.get_origin(stated) is tuple:
        kinds = [tuple]
    assert type(getattr(twin, key)) in kinds


def test_the_secrets_are_keys_that_exist_and_are_optional() -> None:
    assert {(section, key) for section, key in KEYS if (section, key) in SECRETS} == SECRETS
    for section, key in SECRETS:
        assert load(section, key, None) is None


def test_only_the_address_of_the_ledger_has_no_default() -> None:
    required = {(section, key) for section, key in KEYS if field_of(section, key).required}
    assert required == {("ledger", "base_url")}


@pytest.mark.parametrize(
    ("section", "key", "default"),
    [
        ("server", "port", 8080),
        ("server", "workers", 1),
        ("server", "fast_path", True),
        ("ops", "host", "127.0.0.1"),
        ("ops", "port", 8081),
        ("auth", "algorithms", ["HS256"]),
        ("auth", "leeway_s", 0),
        ("cache", "enabled", True),
        ("coherence", "redis_url", None),
        ("limits", "requests_per_s", 0),
    ],
)
def test_a_default_is_the_one_that_tools_rely_on(section: str, key: str, default: object) -> None:
    assert SECTIONS[section].load(REQUIRED.get(section, {}))[key] == default


def test_a_default_list_is_nobody_elses_list() -> None:
    SECTIONS["auth"].load({})["algorithms"].append("none")
    assert SECTIONS["auth"].load({})["algorithms"] == ["HS256"]


NOT_A_NUMBER: list[Any] = ["8080", "", "1e3", True, False, None, [1], {"a": 1}, "x"]


@pytest.mark.parametrize("value", [*NOT_A_NUMBER, 8080.0, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize(("section", "key"), of_type(fields.Integer))
def test_a_count_is_a_whole_number_and_nothing_like_one(
    section: str, key: str, value: object
) -> None:
    assert reasons(section, key, value)


@pytest.mark.parametrize("value", [*NOT_A_NUMBER, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("section", "key"), of_type(fields.Float))
def test_a_time_is_a_finite_number_and_nothing_like_one(
    section: str, key: str, value: object
) -> None:
    assert reasons(section, key, value)


@pytest.mark.parametrize("value", ["true", "no", "", 0, 1, None, [True]])
@pytest.mark.parametrize(("section", "key"), of_type(fields.Boolean))
def test_a_flag_is_true_or_false_and_nothing_like_it(section: str, key: str, value: object) -> None:
    assert reasons(section, key, value)


@pytest.mark.parametrize("value", [1, 1.5, True, ["x"], {"x": 1}, "", " ", "\t\n", "\udcff" * 64])
@pytest.mark.parametrize(("section", "key"), of_type(fields.String))
def test_a_text_is_a_string_and_not_blank(section: str, key: str, value: object) -> None:
    assert reasons(section, key, value)


@pytest.mark.parametrize("value", ["HS256", 1, None, True, {"0": "x"}, [1], [""], [None], [["x"]]])
@pytest.mark.parametrize(("section", "key"), of_type(fields.List))
def test_a_list_is_a_list_of_texts(section: str, key: str, value: object) -> None:
    assert reasons(section, key, value)


def bounds() -> Iterator[tuple[str, str, float, float]]:
    """Every number with its lowest and its highest value."""
    for section, key in of_type(fields.Number):
        (validator,) = field_of(section, key).validators
        yield section, key, validator.min, validator.max


@pytest.mark.parametrize(("section", "key", "low", "high"), list(bounds()))
def test_a_number_may_be_its_bounds_and_not_beyond(
    section: str, key: str, low: float, high: float
) -> None:
    assert load(section, key, low) == low
    assert load(section, key, high) == high
    assert reasons(section, key, low - 1)
    assert reasons(section, key, high + 1)


@BOUNDED
@given(st.sampled_from(of_type(fields.Float)), st.integers(400, 4000))
def test_an_endless_number_of_seconds_is_refused_not_an_overflow(
    place: tuple[str, str], digits: int
) -> None:
    assert reasons(*place, 10**digits)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_of_the_list_may_be_configured(algorithm: str) -> None:
    assert load("auth", "algorithms", [algorithm]) == [algorithm]


@pytest.mark.parametrize("algorithm", ["none", "hs256", "RS512", "PS256", "HS256 ", "ES256K"])
def test_no_other_algorithm_may(algorithm: str) -> None:
    assert reasons("auth", "algorithms", ["HS256", algorithm])


@pytest.mark.parametrize("key", ["algorithms", "username_claims"])
def test_a_list_that_decides_who_one_is_may_not_be_empty(key: str) -> None:
    assert reasons("auth", key, [])


def test_nothing_at_all_may_be_hidden() -> None:
    assert load("visibility", "hidden_fields", []) == []


@pytest.mark.parametrize("token", ["two words", "a\r", "a\nb: c", "a\x00", "päss", "a\x7f"])
def test_a_credential_that_cannot_stand_in_a_header_is_refused(token: str) -> None:
    assert reasons("ledger", "token", token) == ["Not visible ASCII."]


URLS = [("ledger", "base_url"), ("auth", "jwks_url")]


@pytest.mark.parametrize(
    "url",
    [
        "http://ledger",
        "https://ledger.internal",
        "http://127.0.0.1:8090",
        "http://[::1]:8090",
        "https://ledger.internal/a/prefix",
        "https://ledger.internal/",
    ],
)
@pytest.mark.parametrize(("section", "key"), URLS)
def test_an_http_url_is_taken_as_it_stands(section: str, key: str, url: str) -> None:
    assert load(section, key, url) == url


@pytest.mark.parametrize(
    "url",
    [
        "ledger.internal",
        "//ledger",
        "/ledger",
        "ftp://ledger",
        "HTTP://ledger",
        "http://",
        "http:///ledger",
        "http://me:password@ledger",
        "http://ledger?a=b",
        "http://ledger#a",
        "http://ledger/a b",
        "http://ledger\n",
        "http://ledger\\a",
        "http://ledger:eighty",
        "http://:8090",
        "http://[::1",
        "http://ledger:99999",
    ],
)
@pytest.mark.parametrize(("section", "key"), URLS)
def test_what_is_no_http_url_is_refused(section: str, key: str, url: str) -> None:
    assert reasons(section, key, url) == ["Not an http(s) URL."]


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache",
        "redis://cache:6379/0",
        "redis://[::1]:6379",
        "redis://:p%40ss@cache",
        "rediss://user:password@cache.internal:6380/",
        "rediss://cache?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/etc/c.pem&ssl_keyfile=/etc/k.pem",
        "unix:///run/redis/redis.sock",
        "unix://user:password@/run/redis.sock",
    ],
)
def test_a_redis_url_is_taken_as_it_stands(url: str) -> None:
    assert load("coherence", "redis_url", url) == url


@pytest.mark.parametrize(
    "url",
    [
        "cache:6379",
        "http://cache",
        "redis://",
        "redis:///0",
        "redis://cache:0",
        "redis://cache:99999",
        "redis://cache/zero",
        "redis://cache\n",
        "redis://:two words@cache",
        "redis://:pass/word@cache",
        "redis://:pässword@cache",
        "redis://cache#a",
        "redis://cache?socket_timeout=600",
        "rediss://cache?ssl_cert_reqs=none",
        "rediss://cache?ssl_ca_certs=/a&ssl_check_hostname=no",
        "unix://",
        "unix:///",
        "unix://run/redis.sock?",
    ],
)
def test_what_is_no_redis_url_is_refused(url: str) -> None:
    assert reasons("coherence", "redis_url", url) == ["Not a redis, rediss or unix URL."]


@BOUNDED
@given(st.from_regex(r"https?://[A-Za-z0-9.:\[\]-]{1,20}(/[a-z]{0,5})?", fullmatch=True))
def test_every_url_that_is_taken_has_a_host_and_can_be_called(url: str) -> None:
    try:
        taken = load("ledger", "base_url", url)
    except ValidationError:
        return
    called = URL(taken + "/ledger", encoded=True)
    assert called.host
    assert called.port is not None


@BOUNDED
@given(
    st.sampled_from(KEYS),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_any_value_is_taken_unchanged_or_refused_under_its_key(
    place: tuple[str, str], value: Any
) -> None:
    section, key = place
    problems = SECTIONS[section].validate({**REQUIRED.get(section, {}), key: value})
    assert set(problems) <= {key}
    if not problems:
        assert load(section, key, value) == value


@pytest.mark.parametrize("schema", list(SECTIONS.values()))
def test_a_key_that_is_not_known_is_refused_beside_the_other_mistakes(schema: Schema) -> None:
    assert set(schema.validate({"nonsense": 1})) >= {"nonsense"}
