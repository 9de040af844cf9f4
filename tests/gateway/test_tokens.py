"""What a token says is read strictly: one spelling, one meaning, or a refusal."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from gateway import tokens
from gateway.authz import Role
from gateway.errors import Forbidden, TokenInvalid, TokenMissing

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def headers(*values: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict([("Authorization", value) for value in values]))


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def refused(error: TokenInvalid) -> None:
    """A refusal is a 401 with a challenge that quotes nothing of what came."""
    assert error.status == 401
    challenge = error.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="ledger", error="invalid_token"')
    assert challenge == f"{challenge.split('error_description')[0]}error_description=" + (
        f'"{error.detail}"'
    )
    assert error.detail.isascii()
    assert '"' not in error.detail


# credentials


@pytest.mark.parametrize(
    "value",
    ["a.b.c", "Bearer a.b.c", "bearer a.b.c", "BEARER a.b.c", "bEaReR a.b.c", "Bearer   a.b.c"],
)
def test_a_token_comes_bare_or_as_bearer_in_any_case(value: str) -> None:
    assert tokens.credentials(headers(value)) == "a.b.c"


def test_the_whole_token_is_taken() -> None:
    whole = f"{ALPHABET}.{ALPHABET}.{ALPHABET}"
    assert tokens.credentials(headers(f"Bearer {whole}")) == whole


@pytest.mark.parametrize("values", [(), ("",)], ids=["no header", "an empty one"])
def test_no_credentials_are_missing_ones(values: tuple[str, ...]) -> None:
    with pytest.raises(TokenMissing) as missing:
        tokens.credentials(headers(*values))
    assert missing.value.status == 401
    assert missing.value.headers == {"WWW-Authenticate": 'Bearer realm="ledger"'}


@pytest.mark.parametrize(
    "values",
    [("a.b.c", "a.b.c"), ("a.b.c", ""), ("", "a.b.c"), ("Basic x", "a.b.c"), ("", "")],
)
def test_two_headers_are_refused_also_when_they_agree(values: tuple[str, ...]) -> None:
    with pytest.raises(TokenInvalid, match="more than one") as error:
        tokens.credentials(headers(*values))
    refused(error.value)


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        " ",
        "Bearer Bearer a.b.c",
        "Bearer,a.b.c",
        "Bearer:a.b.c",
        "Bearer\ta.b.c",
        "Bearera.b.c.d",
        "Token a.b.c",
        "Basic a.b.c",
        "JWT a.b.c",
        "Negotiate a.b.c",
        "a.b.c, a.b.c",
        "a.b.c a.b.c",
        "Bearer a.b.c x",
        "a.b.c\n",
        "a.b.c ",
        " a.b.c",
        "a.b.c\r\nX: y",
        "a.b.c\x00",
        "a",
        "a.b",
        "a.b.",
        ".b.c",
        "a..c",
        "..",
        "a.b.c.d",
        "a.b.c.d.e",
        "a.b.c.",
        "a=.b.c",
        "a.b=.c",
        "a.b.c=",
        "a.b.c==",
        "a+.b.c",
        "a.b/.c",
        "a.b.c%3D",
        "\u017f.b.c",  # the long s, which folds to s
        "\u212a.b.c",  # the Kelvin sign, which folds to k
        "a.\uff42.c",  # full width
        "bea\u0280er a.b.c",
        "a.b.\udce9",  # a byte that was not UTF-8
        "a.b\u200b.c",
        '"a.b.c"',
        "{a.b.c}",
    ],
)
def test_anything_else_holds_no_token(value: str) -> None:
    with pytest.raises(TokenInvalid) as error:
        tokens.credentials(headers(value))
    refused(error.value)


@given(st.text(max_size=30))
def test_what_is_taken_for_a_token_has_three_parts_of_the_alphabet(value: str) -> None:
    try:
        token = tokens.credentials(headers(value))
    except (TokenInvalid, TokenMissing):
        return
    parts = token.split(".")
    assert len(parts) == 3
    assert all(part and set(part) <= set(ALPHABET) for part in parts)


# octets


@given(st.binary(max_size=200))
def test_what_base64url_encodes_is_read_back(data: bytes) -> None:
    assert tokens.octets(b64(data)) == data


@given(st.text(ALPHABET + "+/= .\n\u017f", max_size=12))
def test_octets_have_one_spelling(part: str) -> None:
    try:
        data = tokens.octets(part)
    except TokenInvalid:
        return
    assert b64(data) == part


@pytest.mark.parametrize(
    "part",
    [
        "A",  # six bits are no octet
        "AAAAA",
        "AB",  # unused bits set
        "AAB",
        "AA==",
        "AAA=",
        "AAAA====",
        "A A",
        "AA\n",
        "A\tAAA",
        "++++",
        "////",
        "AA.A",
        "AAAÄ",
        "\u212aAAA",
        "%41A",
    ],
)
def test_another_spelling_of_octets_is_refused(part: str) -> None:
    with pytest.raises(TokenInvalid) as error:
        tokens.octets(part)
    refused(error.value)


# segment


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("{}", {}),
        (' {"alg" : "HS256"}\r\n', {"alg": "HS256"}),
        ('{"sub":"al\\u0069ce"}', {"sub": "alice"}),
        ('{"name":"\N{LATIN SMALL LETTER E WITH ACUTE}"}', {"name": "é"}),
        ('{"a":{"b":[1,2.5,true,null]}}', {"a": {"b": [1, 2.5, True, None]}}),
    ],
)
def test_a_segment_is_a_json_object(text: str, claims: dict[str, Any]) -> None:
    assert tokens.segment(b64(text.encode())) == claims


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1",
        b"null",
        b"true",
        b'"alice"',
        b"[]",
        b'[{"sub":"alice"}]',
        b"hello world",
        b"{",
        b'{"sub":"alice"',
        b'{"sub":"alice"}{}',
        b'{"sub":"alice"} x',
        b'{"sub":"alice"}\x00',
        b'{sub:"alice"}',
        b"{'sub':'alice'}",
        b'{"sub":"alice",}',
        b'{"sub":"alice","sub":"bob"}',
        b'{"role":"user","r\\u006fle":"admin"}',
        b'{"a":{"exp":1,"exp":2}}',
        b'\xef\xbb\xbf{"sub":"alice"}',
        b'{"sub":"al\xe9ice"}',
        b'{"sub":"\xc0\xae"}',
        b'{"sub":"\xed\xa0\x80"}',
        b'{"sub":"\\ud800"}',
        '{"sub":"alice"}'.encode("utf-16"),
        '{"sub":"alice"}'.encode("utf-32"),
        b'{"exp":NaN}',
        b'{"exp":Infinity}',
        b'{"exp":-Infinity}',
        b'{"exp":1e400}',
        b'{"exp":' + b"9" * 5000 + b"}",
        b'{"exp":01}',
        b'{"exp":+1}',
        b'{"exp":.5}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
    ],
)
def test_a_segment_that_is_not_one_is_refused(data: bytes) -> None:
    with pytest.raises(TokenInvalid, match="malformed") as error:
        tokens.segment(b64(data))
    refused(error.value)


def test_a_refusal_quotes_nothing_of_the_token() -> None:
    with pytest.raises(TokenInvalid) as error:
        tokens.segment(b64(b'{"secret":"hunter2","secret":"hunter2"}'))
    assert "hunter2" not in str(error.value) + str(error.value.headers)
    assert "secret" not in str(error.value) + str(error.value.headers)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=6,
)


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_a_segment_of_any_bytes_is_an_object_or_a_refusal(data: bytes) -> None:
    try:
        claims = tokens.segment(b64(data))
    except TokenInvalid:
        return
    assert claims == json.loads(data)
    assert isinstance(claims, dict)


@given(st.dictionaries(st.text("abc", max_size=3), VALUES, max_size=4), st.booleans())
def test_every_unambiguous_object_is_read(value: dict[str, Any], escaped: bool) -> None:
    data = json.dumps(value, ensure_ascii=escaped).encode()
    assert tokens.segment(b64(data)) == value


# check_parameters


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"alg": "HS256"},
        {"typ": "JWT"},
        {"typ": "jwt"},
        {"typ": "at+jwt"},
        {"typ": "AT+JWT"},
        {"typ": "application/at+jwt"},
        {"kid": "key-1"},
        {"kid": "2026-11.a_b~c+d=e:f@g"},
        {"kid": "k" * 256},
        {"cty": "x", "x5t": "abc", "unknown": [1, 2]},
    ],
)
def test_harmless_parameters_pass(header: dict[str, Any]) -> None:
    before = json.dumps(header)
    tokens.check_parameters(header)
    assert json.dumps(header) == before


@pytest.mark.parametrize(
    "header",
    [
        *({name: "x"} for name in ("jku", "jwk", "x5u", "x5c", "crit", "b64")),
        {"jku": "https://evil.example/keys"},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"x5u": None},
        {"x5c": []},
        {"crit": []},
        {"crit": ["exp"]},
        {"crit": None},
        {"b64": True},
        {"b64": False},
        {"b64": 0},
        {"kid": ""},
        {"kid": None},
        {"kid": 1},
        {"kid": True},
        {"kid": ["key-1"]},
        {"kid": {"key": 1}},
        {"kid": "../../etc/passwd"},
        {"kid": "/dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "key 1"},
        {"kid": "key-1\n"},
        {"kid": "key\x00"},
        {"kid": "kéy"},
        {"kid": "k" * 257},
        {"typ": None},
        {"typ": 1},
        {"typ": ["JWT"]},
        {"typ": ""},
        {"typ": "JWE"},
        {"typ": "dpop+jwt"},
        {"typ": "logout+jwt"},
        {"typ": "application/jwt "},
        {"typ": "\u017fwt"},
    ],
)
def test_parameters_that_would_have_a_say_are_refused(header: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid) as error:
        tokens.check_parameters({"alg": "HS256"} | header)
    refused(error.value)


# instant


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1, 1.0),
        (1.5, 1.5),
        (1e9, 1e9),
        (1_800_000_000, 1.8e9),
        (99_999_999_999, 1e11 - 1),
    ],
)
def test_a_time_is_a_json_number(value: float, seconds: float) -> None:
    found = tokens.instant({"exp": value}, "exp")
    assert found == seconds
    assert isinstance(found, float)


def test_an_absent_time_is_none() -> None:
    assert tokens.instant({"exp": 1}, "nbf") is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        "",
        "1800000000",
        "\u0661\u0662\u0663",  # Arabic digits
        "2030-01-01T00:00:00Z",
        [1_800_000_000],
        {"seconds": 1},
        -1,
        -0.001,
        1e11,
        10**30,
        1e308,
        float("nan"),
        float("inf"),
        float("-inf"),
    ],
)
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_a_time_that_is_none_is_refused(name: str, value: object) -> None:
    with pytest.raises(TokenInvalid, match=name) as error:
        tokens.instant({name: value}, name)
    refused(error.value)


# token_id


@pytest.mark.parametrize(
    ("claims", "found"),
    [({}, None), ({"jti": None}, None), ({"jti": ""}, ""), ({"jti": "a b\n"}, "a b\n")],
)
def test_a_token_id_is_a_string_as_it_stands(claims: dict[str, Any], found: str | None) -> None:
    assert tokens.token_id(claims) == found


@pytest.mark.parametrize("value", [0, 1, True, False, 1.5, [], ["one"], {}, {"a": 1}])
def test_another_token_id_is_refused(value: object) -> None:
    with pytest.raises(TokenInvalid, match="jti") as error:
        tokens.token_id({"jti": value})
    refused(error.value)


# checked_username


@pytest.mark.parametrize(
    "name", ["a", "7", "alice", "Alice", "al.ice_1-2+3", "alice@example.com", "a" * 64]
)
def test_a_user_name_is_taken_as_it_stands(name: str) -> None:
    assert tokens.checked_username(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        ".alice",
        "-alice",
        "_alice",
        "@alice",
        "+alice",
        "../alice",
        "a/b",
        "a\\b",
        "%61lice",
        "alice?x=",
        "alice#f",
        "alice;x=1",
        "alice bob",
        "alice,bob",
        "alice\n",
        "\nalice",
        "alice\r\nX: y",
        "alice\x00",
        "alice\u200b",
        "\uff41lice",
        "alicé",
        "alice\u0301",
        "\u0661",
        "\udce9",
        "a" * 65,
        "a" * 10_000,
        None,
        True,
        7,
        1.0,
        ["alice"],
        {"name": "alice"},
    ],
)
def test_another_user_name_is_refused(name: object) -> None:
    with pytest.raises(TokenInvalid, match="user name") as error:
        tokens.checked_username(name)
    refused(error.value)


# role_of


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"role": "user"}, Role.USER),
        ({"role": "service"}, Role.SERVICE),
        ({"role": "admin"}, Role.ADMIN),
        ({"roles": ["user"]}, Role.USER),
        ({"roles": ["user", "service"]}, Role.SERVICE),
        ({"roles": ["admin", "user", "service"]}, Role.ADMIN),
        ({"roles": ["reader", "user", "offline_access"]}, Role.USER),
        ({"roles": ["user", "user"]}, Role.USER),
        ({"role": "user", "roles": ["admin"]}, Role.USER),
        ({"role": "user", "roles": 7}, Role.USER),
    ],
)
def test_the_strongest_known_role_counts_and_role_goes_before_roles(
    claims: dict[str, Any], role: Role
) -> None:
    assert tokens.role_of(claims) is role


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"role": None},
        {"role": ""},
        {"role": "Admin"},
        {"role": "ADMIN"},
        {"role": "admin "},
        {"role": "admin\x00"},
        {"role": "root"},
        {"role": "USER"},
        {"role": "admin,user"},
        {"role": 3},
        {"role": True},
        {"role": ["admin"]},
        {"role": {"admin": True}},
        {"role": None, "roles": ["admin"]},
        {"role": "unknown", "roles": ["admin"]},
        {"roles": None},
        {"roles": []},
        {"roles": "admin"},
        {"roles": ["root", ""]},
        {"roles": ["admin", 1]},
        {"roles": ["admin", None]},
        {"roles": [["admin"]]},
        {"roles": {"admin": True}},
        {"Role": "admin"},
        {"scope": "admin"},
    ],
)
def test_without_a_known_role_there_is_no_default(claims: dict[str, Any]) -> None:
    with pytest.raises(Forbidden, match="no known role") as error:
        tokens.role_of(claims)
    assert error.value.status == 403


@given(
    st.dictionaries(
        st.sampled_from(["role", "roles"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.sampled_from(["admin", "user", "x", ""]),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=4,
        ),
    )
)
def test_any_claims_give_a_role_that_was_named_or_none(claims: dict[str, Any]) -> None:
    try:
        role = tokens.role_of(claims)
    except Forbidden:
        return
    named = [claims["role"]] if "role" in claims else claims["roles"]
    assert role.label in named
