"""Tokens: what is accepted, and the long list of what is not."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.authn import Authenticator, development_token
from gateway.authz import Principal, Role
from gateway.config import Auth
from gateway.endpoints import ENDPOINTS
from gateway.errors import Forbidden, NotReady, TokenInvalid, TokenMissing, Unauthenticated
from gateway.keyring import Keyring
from gateway.keys import load_keys
from gateway.revocations import Revocations
from tests.conftest import RATES, SECRET, MakeClient, caller, config_for
from tests.fakes import FakeLedger
from tests.gateway.test_edge import Client, exchange, first_status, lines, parsed, raw

NOW = int(time.time())
DAY = 86_400
HEADER = {"alg": "HS256", "typ": "JWT"}
CLAIMS = {"sub": "alice", "role": "user", "iat": NOW, "exp": NOW + DAY}
DIGESTS = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


# Tokens forged by hand: the signature holds, so that only the thing under test can be refused.


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def segment(value: Any) -> str:
    """A segment of a token; bytes and strings are taken as they are."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    return encoded(value if isinstance(value, bytes) else json.dumps(value).encode())


def signed(signing_input: str, secret: str | bytes = SECRET, algorithm: str = "HS256") -> str:
    key = secret.encode() if isinstance(secret, str) else secret
    mac = hmac.digest(key, signing_input.encode(), DIGESTS[algorithm])
    return f"{signing_input}.{encoded(mac)}"


def forged(header: Any = HEADER, claims: Any = CLAIMS, **how: Any) -> str:
    return signed(f"{segment(header)}.{segment(claims)}", **how)


def header(**changes: Any) -> str:
    return forged(header=HEADER | changes)


def claims(*dropped: str, **changes: Any) -> str:
    changed = CLAIMS | changes
    return forged(claims={name: value for name, value in changed.items() if name not in dropped})


def members(**pairs: str) -> str:
    """A JSON object of members written by hand; a key ending in `_` stands there a second time."""
    return "{" + ",".join(f'"{key.rstrip("_")}":{value}' for key, value in pairs.items()) + "}"


def with_claims(**pairs: str) -> str:
    """A token whose claims are written by hand."""
    base = {name: json.dumps(value) for name, value in CLAIMS.items()}
    return forged(claims=members(**(base | pairs)))


def with_unused_bits(part: str) -> str:
    """The same bytes spelt differently: base64url leaves bits of the last character unused."""
    assert len(part) % 4 != 0, "this segment has no unused bits"
    return part[:-1] + ALPHABET[ALPHABET.index(part[-1]) ^ 1]


def tampered(part: str) -> str:
    return ("B" if part[0] == "A" else "A") + part[1:]


GOOD = forged()
HEAD, BODY, SIGNATURE = GOOD.split(".")
OTHER_BODY = segment(CLAIMS | {"role": "admin"})
# Segments whose last character has unused bits.
ODD_HEADER, ODD_CLAIMS = (
    next(part for part in (segment(one | {"x": "x" * n}) for n in range(3)) if len(part) % 4)
    for one in (HEADER, CLAIMS)
)
DEEP = "[" * 100_000 + "]" * 100_000
NUMBER = "9" * 5000

NOT_INSTANTS: dict[str, Any] = {
    "a string": "9999999999",
    "a string of Arabic digits": "\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669\u0660",
    "null": None,
    "true": True,
    "false": False,
    "a list": [NOW + DAY],
    "an object": {},
    "1e11": 1e11,
    "1e308": 1e308,
    "10^30": 10**30,
    "10^99": 10**99,
}
PAST_OR_TOO_LATE = {
    "zero": 0,
    "one": 1,
    "negative": -1,
    "very negative": -1e12,
    "a day ago": NOW - DAY,
    "a second ago": NOW - 1,
    "now": NOW,
    "in ten years": NOW + 3650 * DAY,
}

BAD_TOKENS: dict[str, str] = {
    # The algorithm.
    **{
        f"alg {name}, no signature": forged({"alg": name}).rsplit(".", 1)[0] + "."
        for name in ("none", "None", "NONE", "nOnE")
    },
    **{
        f"alg {name!r}": forged({"alg": name})
        for name in (
            "none",
            "None",
            "NONE",
            "nOnE",
            "hs256",
            "HS256 ",
            "",
            "RS256",
            "ES256",
            "HS1",
            "dir",
        )
    },
    "alg missing": forged({"typ": "JWT"}),
    "alg null": header(alg=None),
    "alg list": header(alg=["HS256"]),
    "alg object": header(alg={"HS256": 1}),
    "alg number": header(alg=256),
    "alg true": header(alg=True),
    "HS384, which is not in the list": forged({"alg": "HS384"}, algorithm="HS384"),
    "HS512, which is not in the list": forged({"alg": "HS512"}, algorithm="HS512"),
    # Parameters of the header.
    "kid int": header(kid=1),
    "kid list": header(kid=["a"]),
    "kid object": header(kid={}),
    "kid null": header(kid=None),
    "kid empty": header(kid=""),
    "kid path": header(kid="../../../../dev/null"),
    "kid SQL": header(kid="' UNION SELECT 'key' --"),
    "kid NUL": header(kid="a\0"),
    "kid shell": header(kid="|whoami"),
    "kid long": header(kid="k" * 257),
    "jku": header(jku="http://127.0.0.1:1/keys"),
    "x5u": header(x5u="http://127.0.0.1:1/keys"),
    "jwk": header(jwk={"kty": "oct", "k": encoded(SECRET.encode())}),
    "x5c": header(x5c=["MIIB"]),
    **{f"crit {value!r}": header(crit=value) for value in ([], ["exp"], ["b64"], "b64", None, {})},
    **{f"b64 {value!r}": header(b64=value) for value in (True, False, 0, 1, "true", None)},
    "crit and b64": header(crit=["b64"], b64=False),
    **{
        f"typ {value!r}": header(typ=value) for value in ("JWE", "", 1, None, ["JWT"], "logout+jwt")
    },
    # The segments are not unambiguous JSON objects.
    **{
        f"{where} {name}": make(value)
        for where, make in (
            ("header", lambda value: forged(header=value)),
            ("claims", lambda value: forged(claims=value)),
        )
        for name, value in {
            "list": [CLAIMS],
            "string": '"text"',
            "null": "null",
            "number": "1",
            "empty object": "{}",
            "empty": "",
            "no JSON": "alice",
            "bad UTF-8": b'{"alg":"HS256","sub":"\xff"}',
            "overlong UTF-8": b'{"alg":"HS256","sub":"\xc0\xae"}',
            "BOM": b"\xef\xbb\xbf" + json.dumps(HEADER | CLAIMS).encode(),
            "UTF-16": json.dumps(HEADER | CLAIMS).encode("utf-16-le"),
            "trailing data": json.dumps(HEADER | CLAIMS) + "{}",
            "trailing NUL": json.dumps(HEADER | CLAIMS) + "\0",
            "trailing comma": json.dumps(HEADER | CLAIMS)[:-1] + ",}",
            "deep": DEEP,
            "deep value": json.dumps(HEADER | CLAIMS)[:-1] + f',"x":{DEEP}' + "}",
            "5000 digits": json.dumps(HEADER | CLAIMS)[:-1] + f',"x":{NUMBER}' + "}",
            "NaN": json.dumps(HEADER | CLAIMS)[:-1] + ',"x":NaN}',
            "lone surrogate": json.dumps(HEADER | CLAIMS)[:-1] + ',"x":"\\ud800"}',
        }.items()
    },
    "header with alg twice": forged(members(alg='"none"', alg_='"HS256"')),
    "header with alg twice, the good one first": forged(members(alg='"HS256"', alg_='"none"')),
    "header with alg twice, once escaped": forged('{"alg":"HS256","\\u0061lg":"HS256"}'),
    "claims with sub twice": with_claims(sub='"bob"', sub_='"alice"'),
    "claims with sub twice, the same": with_claims(sub_='"alice"'),
    "claims with sub twice, once escaped": with_claims(**{"\\u0073ub": '"bob"'}),
    "claims with role twice": with_claims(role='"user"', role_='"admin"'),
    "claims with exp twice": with_claims(exp="1", exp_=str(NOW + DAY)),
    "claims with a nested key twice": with_claims(x='{"a":1,"a":2}'),
    # The user name.
    **{
        f"sub {value!r:.30}": claims(sub=value)
        for value in (
            "",
            " ",
            "alice\0",
            "al ice",
            " alice",
            "alice ",
            "alice\n",
            "a" * 65,
            "a" * 10_000,
            "../alice",
            "..",
            ".",
            "-alice",
            "%61lice",
            "alice?x=",
            "alice#f",
            "alice;x=1",
            "alice/..",
            "alice\\",
            "\uff41lice",
            "alice\u200b",
            "\u0430lice",
            "ali\u0301ce",
            "\u00e1lice",
            "alice, bob",
            "{alice}",
            1,
            1.5,
            True,
            None,
            ["alice"],
            {"a": 1},
        )
    },
    "sub lone surrogate": with_claims(sub='"\\ud800"'),
    "sub missing": claims("sub"),
    **{
        f"username {value!r} before a good sub": claims(username=value)
        for value in ("", None, "../alice", 1, ["alice"])
    },
    # The lifetime.
    "exp missing": claims("exp"),
    **{
        f"{name} {what}": claims(**{name: value})
        for name in ("exp", "nbf", "iat")
        for what, value in NOT_INSTANTS.items()
    },
    **{f"exp {what}": claims(exp=value) for what, value in PAST_OR_TOO_LATE.items()},
    "exp NaN": with_claims(exp="NaN"),
    "exp Infinity": with_claims(exp="Infinity"),
    "exp 1e400": with_claims(exp="1e400"),
    "exp of 5000 digits": with_claims(exp=NUMBER),
    "nbf in a day": claims(nbf=NOW + DAY),
    "iat in a day": claims(iat=NOW + DAY),
    # The signature.
    "signature of another secret": forged(secret="another secret, which is long enough for HS256"),
    "signature of an empty secret": forged(secret=""),
    "signature of other claims": f"{HEAD}.{OTHER_BODY}.{SIGNATURE}",
    "signature cut": GOOD[:-1],
    "signature longer": GOOD + "AAAA",
    "signature of one character": f"{HEAD}.{BODY}.A",
    "signature tampered with": f"{HEAD}.{BODY}.{tampered(SIGNATURE)}",
    "signature missing": f"{HEAD}.{BODY}.",
    "claims tampered with": f"{HEAD}.{tampered(BODY)}.{SIGNATURE}",
    # The spelling.
    "unused bits in the header": signed(f"{with_unused_bits(ODD_HEADER)}.{BODY}"),
    "unused bits in the claims": signed(f"{HEAD}.{with_unused_bits(ODD_CLAIMS)}"),
    "unused bits in the signature": f"{HEAD}.{BODY}.{with_unused_bits(SIGNATURE)}",
    "padding after the signature": GOOD + "=",
    "padding after the header": signed(f"{ODD_HEADER}=.{BODY}"),
    "padding after the claims": signed(f"{HEAD}.{ODD_CLAIMS}="),
    "a space at the end of a segment": signed(f"{HEAD} .{BODY}"),
    "a tab in a segment": signed(f"{HEAD}.{BODY[:8]}\t{BODY[8:]}"),
    "alphabet of plain base64": signed(f"{HEAD}.{BODY[:8]}+/{BODY[8:]}"),
    "one part": HEAD,
    "two parts": f"{HEAD}.{BODY}",
    "four parts": f"{GOOD}.{SIGNATURE}",
    "five parts": f"{GOOD}.{SIGNATURE}.{SIGNATURE}",
    "an empty part first": f".{GOOD}",
    "an empty header": signed(f".{BODY}"),
    "empty claims": signed(f"{HEAD}."),
    "two dots": "..",
    "a JWE": ".".join([segment({"alg": "dir", "enc": "A256GCM"}), "", "AAAA", "AAAA", "AAAA"]),
    "two tokens": f"{GOOD},{GOOD}",
    "a name": "alice",
}

# The whole header value; `{}` is where a good token stands.
BAD_CREDENTIALS = [
    "Bearer",
    "Bearer ",
    "bearer",
    "Bearer Bearer {}",
    "Bearer  Bearer {}",
    "Token {}",
    "Basic {}",
    "Basic YWxpY2U6YWxpY2U=",
    "Digest username=alice",
    "JWT {}",
    "Bearer:{}",
    "Bearer={}",
    "Bearer\t{}",
    "Bearer\u00a0{}",
    "Bearer{}",
    "Bearer {}, Bearer {}",
    "{} {}",
    "{},{}",
    '"{}"',
    "<{}>",
    "Bearer {};",
    "Bearer {}\x00",
    "\u0392earer {}",
    "Bearer {}\udce9",
    "\udce9",
    "é",
    "null",
    "undefined",
]

# A known role is needed; without one the token is good, and its bearer may do nothing.
NO_ROLES: dict[str, str] = {
    "no role": claims("role"),
    **{
        f"role {value!r}": claims(role=value)
        for value in (
            *("", "root", "Admin", "ADMIN", "admin ", " admin", "admin\0", "admin,user", "users"),
            *("\uff41dmin", 1, 3, True, None, [], ["admin"], {"admin": True}, 1.5),
        )
    },
    **{
        f"roles {value!r}": claims("role", roles=value)
        for value in ([], ["root"], ["Admin"], "admin", None, 3, {"admin": 1}, [["admin"]], [None])
    },
    "roles known and of a wrong type": claims("role", roles=["user", 1]),
    "an unknown role beside known roles": claims(role="root", roles=["admin"]),
}


class Clock:
    """A clock that is driven by hand."""

    def __init__(self, time: float = NOW) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


def auth(**settings: str) -> Auth:
    return config_for("http://127.0.0.1", **settings).auth


def at_once(entering: Coroutine[Any, Any, Principal]) -> Principal:
    """The result of a coroutine that has nothing to wait for: the keys are there."""
    try:
        entering.send(None)
    except StopIteration as end:
        principal: Principal = end.value
        return principal
    raise AssertionError("it waited for something")


def who(principal: Principal) -> tuple[str, Role, float]:
    """Who it is, in which role and until when."""
    return principal.username, principal.role, principal.expires_at


class Door:
    """An authenticator with its clock and its memory in sight."""

    def __init__(self, keyring: Keyring | None = None, **settings: str) -> None:
        self.auth = auth(**settings)
        keys = load_keys(self.auth.algorithms, self.auth.secret, self.auth.public_key_file)
        self.clock = Clock()
        self.memo: dict[str, Principal] = {}
        self.authenticator = Authenticator(
            self.auth, keyring or Keyring(keys), Revocations(None), self.memo, self.clock
        )

    def enter(
        self,
        authorization: str | list[str],
        username: str | list[str] = "alice",
        *,
        username_required: bool = True,
    ) -> Principal:
        headers: CIMultiDict[str] = CIMultiDict()
        for name, values in (("Authorization", authorization), ("username", username)):
            for value in [values] if isinstance(values, str) else values:
                headers.add(name, value)
        entering = self.authenticator.authenticate(
            CIMultiDictProxy(headers), username_required=username_required
        )
        return at_once(entering)


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture(params=["cold", "hot"])
def tried_door(request: pytest.FixtureRequest, door: Door) -> Door:
    """A door that nobody, or the bearer of the good token, has come through."""
    if request.param == "hot":
        assert door.enter(f"Bearer {GOOD}").username == "alice"
    return door


# What is accepted.


@pytest.mark.parametrize("prefix", ["", "Bearer ", "bearer ", "BEARER ", "bEaReR ", "Bearer   "])
def test_a_good_token_comes_bare_or_as_bearer_in_any_case(tried_door: Door, prefix: str) -> None:
    principal = tried_door.enter(prefix + GOOD)
    assert (principal.username, principal.role) == ("alice", Role.USER)
    assert principal.expires_at == NOW + DAY


GOOD_TOKENS = {
    "a header with unused bits": signed(f"{ODD_HEADER}.{BODY}"),
    "claims with unused bits": signed(f"{HEAD}.{ODD_CLAIMS}"),
    "a key id": header(kid="2024-01.a_b~c+d=e:f@g"),
    "the type of access tokens": header(typ="at+jwt"),
    "no type": forged({"alg": "HS256"}),
    "no iat": claims("iat"),
    "nbf now": claims(nbf=NOW),
    "claims of others": claims(aud="whoever", iss="whoever", jti="1", scope=["a"], x={"a": [1]}),
    "a fraction of a second": with_claims(exp=f"{NOW + DAY}.5"),
    "one second left": claims(exp=NOW + 1),
    "a year left": claims(exp=NOW + 366 * DAY),
    "white space": forged(claims=b" \n" + json.dumps(CLAIMS).encode() + b" "),
}


@pytest.mark.parametrize("name", GOOD_TOKENS)
def test_the_forger_makes_good_tokens_too(tried_door: Door, name: str) -> None:
    assert tried_door.enter(GOOD_TOKENS[name]).username == "alice"


@pytest.mark.parametrize("name", ["a", "A9", "al.ice_B@c+d-e", "a" * 64, "0"])
def test_a_user_name_within_its_alphabet_is_accepted(door: Door, name: str) -> None:
    assert door.enter(claims(sub=name), name).username == name


@pytest.mark.parametrize(
    ("settings", "found", "username"),
    [
        ({}, {"sub": "alice"}, "alice"),
        ({}, {"username": "bob"}, "bob"),
        ({}, {"sub": "alice", "username": "bob"}, "bob"),
        ({"auth__username_claims": "sub, username"}, {"sub": "alice", "username": "bob"}, "alice"),
        ({"auth__username_claims": "login"}, {"sub": "alice", "login": "carol"}, "carol"),
    ],
)
def test_the_user_name_is_the_first_claim_of_the_configured_ones(
    settings: dict[str, str], found: dict[str, str], username: str
) -> None:
    others = {name: value for name, value in CLAIMS.items() if name != "sub"}
    door = Door(**settings)
    assert door.enter(forged(claims=others | found), username).username == username


def test_a_token_without_any_of_the_configured_claims_names_nobody() -> None:
    with pytest.raises(TokenInvalid):
        Door(auth__username_claims="login").enter(GOOD)


@pytest.mark.parametrize(
    ("found", "role"),
    [
        ({"role": "user"}, Role.USER),
        ({"role": "service"}, Role.SERVICE),
        ({"role": "admin"}, Role.ADMIN),
        ({"roles": ["user"]}, Role.USER),
        ({"roles": ["user", "service"]}, Role.SERVICE),
        ({"roles": ["service", "user"]}, Role.SERVICE),
        ({"roles": ["user", "admin", "service"]}, Role.ADMIN),
        ({"roles": ["root", "user", "Admin"]}, Role.USER),
        ({"roles": ["user", "user"]}, Role.USER),
    ],
)
def test_the_strongest_known_role_counts(door: Door, found: dict[str, Any], role: Role) -> None:
    without = {name: value for name, value in CLAIMS.items() if name != "role"}
    assert door.enter(forged(claims=without | found)).role is role


# What is not.


@pytest.mark.parametrize("prefix", ["", "Bearer "])
@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_bad_token_is_refused(tried_door: Door, prefix: str, name: str) -> None:
    remembered = dict(tried_door.memo)
    with pytest.raises(Unauthenticated) as refusal:
        tried_door.enter(prefix + BAD_TOKENS[name])
    assert refusal.value.headers["WWW-Authenticate"].startswith("Bearer ")
    assert tried_door.memo == remembered
    assert tried_door.enter(GOOD).username == "alice"


@pytest.mark.parametrize("value", BAD_CREDENTIALS)
def test_what_is_not_one_token_is_refused(tried_door: Door, value: str) -> None:
    with pytest.raises(TokenInvalid) as refusal:
        tried_door.enter(value.replace("{}", GOOD))
    assert refusal.value.headers["WWW-Authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("value", ["", []])
def test_no_credentials_are_told_apart_from_bad_ones(tried_door: Door, value: Any) -> None:
    with pytest.raises(TokenMissing) as refusal:
        tried_door.enter(value)
    assert refusal.value.headers["WWW-Authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("name", NO_ROLES)
def test_a_token_without_a_known_role_may_do_nothing(tried_door: Door, name: str) -> None:
    for _ in range(2):
        with pytest.raises(Forbidden):
            tried_door.enter(NO_ROLES[name])


DOOR = Door()


@given(st.text(max_size=80) | st.text(ALPHABET + ". =\udce9", max_size=80))
def test_any_other_text_is_refused_in_good_order(text: str) -> None:
    with pytest.raises(Unauthenticated):
        DOOR.enter(text)


@given(st.integers(0, len(GOOD) - 1), st.sampled_from(ALPHABET + ".=+/ "))
def test_a_token_with_one_character_changed_is_refused(index: int, char: str) -> None:
    changed = GOOD[:index] + char + GOOD[index + 1 :]
    assume(changed != GOOD)
    assert DOOR.enter(GOOD).username == "alice"
    with pytest.raises(Unauthenticated):
        DOOR.enter(changed)


@pytest.mark.parametrize("same", ["{}", "Bearer {}", "", "x"])
def test_two_authorization_headers_are_refused_even_if_they_agree(
    tried_door: Door, same: str
) -> None:
    other = same.replace("{}", GOOD)
    for values in ([GOOD, other], [other, GOOD]):
        with pytest.raises(TokenInvalid):
            tried_door.enter(values)


# The `username` header.

NOT_ALICE = [
    *("bob", "Alice", "ALICE", "alice ", " alice", "alic", "alicee", "alice,alice", "alice, bob"),
    *(
        "%61lice",
        "\uff41lice",
        "alice\u200b",
        "\u200balice",
        "\u0430lice",
        "al\u0131ce",
        "alice\u0301",
    ),
    *("alice\0", "alice\udce9", '"alice"', "../alice", "alice@", ""),
]


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("name", NOT_ALICE)
def test_a_username_header_that_differs_is_forbidden(
    tried_door: Door, name: str, required: bool
) -> None:
    with pytest.raises(Forbidden):
        tried_door.enter(GOOD, name, username_required=required)


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    "names", [["alice", "alice"], ["alice", "bob"], ["bob", "alice"], ["", ""]]
)
def test_two_username_headers_are_refused_even_if_they_agree(
    tried_door: Door, names: list[str], required: bool
) -> None:
    with pytest.raises(TokenInvalid):
        tried_door.enter(GOOD, names, username_required=required)


def test_the_username_header_may_be_missing_only_where_it_is_optional(tried_door: Door) -> None:
    assert tried_door.enter(GOOD, [], username_required=False).username == "alice"
    with pytest.raises(TokenInvalid):
        tried_door.enter(GOOD, [])


def test_a_username_header_does_not_make_up_for_a_token(door: Door) -> None:
    with pytest.raises(TokenInvalid):
        door.enter(BAD_TOKENS["sub missing"], "alice")


# Time, and what is remembered.


def test_a_remembered_token_is_refused_from_its_expiry_on(door: Door) -> None:
    assert door.enter(GOOD) == door.enter(f"Bearer {GOOD}")
    door.clock.time = NOW + DAY - 0.001
    assert door.enter(GOOD).username == "alice"
    for late in (NOW + DAY, NOW + DAY + 1, NOW + 10 * DAY):
        door.clock.time = late
        with pytest.raises(TokenInvalid, match="expired"):
            door.enter(GOOD)


def test_a_token_expires_the_same_remembered_or_not(door: Door) -> None:
    for at in (NOW + DAY - 1, NOW + DAY):
        fresh = Door()
        fresh.clock.time = door.clock.time = at
        outcomes = []
        for one in (fresh, door):
            try:
                outcomes.append(one.enter(GOOD).username)
            except TokenInvalid:
                outcomes.append("refused")
        assert outcomes == (["alice"] * 2 if at < NOW + DAY else ["refused"] * 2)


@pytest.mark.parametrize(("leeway", "tolerated"), [("0", 0), ("30", 30), ("300", 300)])
def test_clocks_may_differ_by_the_leeway_and_no_more(leeway: str, tolerated: int) -> None:
    door = Door(auth__leeway_s=leeway)
    for claim in ("nbf", "iat"):
        assert door.enter(claims(**{claim: NOW + tolerated})).username == "alice"
        with pytest.raises(TokenInvalid):
            door.enter(claims(**{claim: NOW + tolerated + 1}))
    door.clock.time = NOW + DAY + tolerated - 1
    assert door.enter(GOOD).username == "alice"
    door.clock.time = NOW + DAY + tolerated
    with pytest.raises(TokenInvalid):
        door.enter(GOOD)


def test_a_token_that_lives_too_long_is_refused() -> None:
    door = Door(auth__max_lifetime_s="7200")
    assert door.enter(claims(exp=NOW + 7200)).username == "alice"
    with pytest.raises(TokenInvalid):
        door.enter(claims(exp=NOW + 7201))


def test_a_token_that_is_not_valid_yet_is_accepted_when_its_time_has_come(door: Door) -> None:
    early = claims(nbf=NOW + 60)
    with pytest.raises(TokenInvalid):
        door.enter(early)
    door.clock.time = NOW + 60
    assert door.enter(early).username == "alice"


def test_the_whole_token_is_what_is_remembered(door: Door) -> None:
    door.enter(GOOD)
    assert list(door.memo) == [GOOD]
    admins = claims(role="admin", jti="2")
    assert door.enter(admins).role is Role.ADMIN
    assert set(door.memo) == {GOOD, admins}
    assert door.enter(GOOD).role is Role.USER


def test_the_username_header_is_checked_though_the_token_is_remembered(door: Door) -> None:
    door.enter(GOOD, "alice")
    with pytest.raises(Forbidden):
        door.enter(GOOD, "bob")


# Issuer and audience.


@pytest.mark.parametrize("issuer", [None, "", "other", "issue", ["issuer"], {"issuer": 1}, True, 1])
def test_another_issuer_is_refused_when_one_is_configured(issuer: Any) -> None:
    door = Door(auth__issuer="issuer")
    assert door.enter(claims(iss="issuer")).username == "alice"
    for bad in (GOOD, claims(iss=issuer)):
        with pytest.raises(TokenInvalid):
            door.enter(bad)


@pytest.mark.parametrize("audience", ["ledger", ["ledger"], ["a", "ledger"]])
def test_an_audience_is_named_alone_or_among_others(audience: Any) -> None:
    assert Door(auth__audience="ledger").enter(claims(aud=audience)).username == "alice"


@pytest.mark.parametrize(
    "audience", [None, "", "ledgers", "led", [], ["other"], [["ledger"]], {"ledger": 1}, 1, True]
)
def test_another_audience_is_refused_when_one_is_configured(audience: Any) -> None:
    door = Door(auth__audience="ledger")
    for bad in (GOOD, claims(aud=audience)):
        with pytest.raises(TokenInvalid):
            door.enter(bad)


# Algorithms and keys.


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_each_hmac_algorithm_is_accepted_where_it_is_configured(algorithm: str) -> None:
    door = Door(auth__algorithms=algorithm)
    good = forged({"alg": algorithm}, algorithm=algorithm)
    assert door.enter(good).username == "alice"
    for other in DIGESTS.keys() - {algorithm}:
        for header_says in (algorithm, other):
            with pytest.raises(TokenInvalid):
                door.enter(forged({"alg": header_says}, algorithm=other))


PRIVATE_KEYS: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@pytest.fixture(scope="module")
def private_keys() -> dict[str, Any]:
    return {algorithm: make() for algorithm, make in PRIVATE_KEYS.items()}


def pem(private_key: Any) -> bytes:
    public: bytes = private_key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return public


@pytest.fixture(params=list(PRIVATE_KEYS))
def public(
    request: pytest.FixtureRequest, tmp_path: Path, private_keys: dict[str, Any]
) -> SimpleNamespace:
    """A door that opens to a public key in a file, and the private key that belongs to it."""
    key, file = private_keys[request.param], tmp_path / "public.pem"
    file.write_bytes(pem(key))
    door = Door(auth__algorithms=request.param, auth__public_key_file=str(file))
    return SimpleNamespace(algorithm=request.param, key=key, file=file, door=door)


def test_a_token_signed_with_the_private_key_is_accepted(public: SimpleNamespace) -> None:
    good = jwt.encode(CLAIMS, public.key, algorithm=public.algorithm)
    for credentials in (good, f"Bearer {good}"):
        principal = public.door.enter(credentials)
        assert (principal.username, principal.role) == ("alice", Role.USER)


def test_a_token_signed_with_another_private_key_is_refused(public: SimpleNamespace) -> None:
    stranger = PRIVATE_KEYS[public.algorithm]()
    with pytest.raises(TokenInvalid):
        public.door.enter(jwt.encode(CLAIMS, stranger, algorithm=public.algorithm))


def test_a_token_of_another_type_of_key_is_refused(
    public: SimpleNamespace, private_keys: dict[str, Any]
) -> None:
    for algorithm, key in private_keys.items():
        if algorithm != public.algorithm:
            other = jwt.encode(CLAIMS, key, algorithm=algorithm)
            _, body, signature = other.split(".")
            for bad in (other, f"{segment({'alg': public.algorithm})}.{body}.{signature}"):
                with pytest.raises(TokenInvalid):
                    public.door.enter(bad)


def test_a_changed_or_empty_asymmetric_signature_is_refused(public: SimpleNamespace) -> None:
    good = jwt.encode(CLAIMS, public.key, algorithm=public.algorithm)
    public.door.enter(good)
    signing_input, signature = good.rsplit(".", 1)
    length = len(base64.urlsafe_b64decode(signature + "=="))
    for bad in ("", "AA", encoded(bytes(length)), tampered(signature), signature[:-4]):
        with pytest.raises(TokenInvalid):
            public.door.enter(f"{signing_input}.{bad}")


@pytest.mark.parametrize("algorithm", list(DIGESTS))
def test_the_public_key_is_never_taken_for_a_secret(
    public: SimpleNamespace, algorithm: str
) -> None:
    text = pem(public.key)
    der = public.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    both = Door(
        auth__algorithms=f"{algorithm},{public.algorithm}",
        auth__public_key_file=str(public.file),
    )
    for secret in (text, text.strip(), text.replace(b"\n", b"\r\n"), der):
        for named in (algorithm, public.algorithm):
            bad = forged({"alg": named}, secret=secret, algorithm=algorithm)
            for door in (public.door, both):
                with pytest.raises(TokenInvalid):
                    door.enter(bad)
    assert both.enter(forged({"alg": algorithm}, algorithm=algorithm)).username == "alice"
    assert both.enter(jwt.encode(CLAIMS, public.key, algorithm=public.algorithm)).role is Role.USER


def test_an_algorithm_without_a_key_of_its_type_is_refused(private_keys: dict[str, Any]) -> None:
    keys = Keyring({"RS256": private_keys["RS256"].public_key()})
    door = Door(keys, auth__algorithms="RS256,ES256", auth__jwks_url="http://127.0.0.1:1/keys")
    assert door.enter(jwt.encode(CLAIMS, private_keys["RS256"], algorithm="RS256")).username
    with pytest.raises(TokenInvalid):
        door.enter(jwt.encode(CLAIMS, private_keys["ES256"], algorithm="ES256"))


def test_without_any_key_nobody_is_let_in() -> None:
    door = Door(Keyring({}))
    for credentials in (GOOD, forged(secret=""), forged(secret="another")):
        with pytest.raises(NotReady) as refusal:
            door.enter(credentials)
        assert int(refusal.value.headers["Retry-After"]) > 0
    with pytest.raises(TokenInvalid):
        door.enter(BAD_TOKENS["alg 'none'"])
    assert door.memo == {}


# Development tokens.


@pytest.mark.parametrize("algorithm", list(DIGESTS))
def test_a_development_token_is_accepted_by_the_configuration_that_made_it(algorithm: str) -> None:
    door = Door(auth__algorithms=algorithm, auth__issuer="issuer", auth__audience="ledger")
    door.clock.time = time.time()
    made = development_token(door.auth, "carol", "service", 60)
    principal = door.enter(made, "carol")
    assert (principal.username, principal.role) == ("carol", Role.SERVICE)
    assert door.clock.time + 55 < principal.expires_at <= door.clock.time + 61


def test_a_development_token_needs_a_secret(public: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="secret"):
        development_token(public.door.auth, "carol", "service", 60)


# The same over HTTP: the status, the challenge, and what the ledger saw.


def over_http(credentials: str) -> bytes:
    """A request for alice's rows with some credentials, exactly as they are."""
    value = credentials.encode("utf-8", "surrogateescape")
    return (
        b"GET /ledger HTTP/1.1\r\nHost: g\r\nConnection: close\r\nusername: alice\r\n"
        b"Authorization: " + value + b"\r\n\r\n"
    )


@pytest.mark.parametrize("seen_before", [False, True], ids=["cold", "hot"])
@pytest.mark.parametrize("fast_path", ["true", "false"])
async def test_bad_credentials_get_a_401_and_leave_no_trace_at_the_ledger(
    make_client: MakeClient, ledger: FakeLedger, fast_path: str, seen_before: bool
) -> None:
    client = await make_client(server__fast_path=fast_path)
    if seen_before:
        assert (await raw(client, "GET /ledger HTTP/1.1", *lines(alices(GOOD)))).status == 200
        ledger.calls.clear()
    tokens = [prefix + bad for bad in BAD_TOKENS.values() for prefix in ("", "Bearer ")]
    values = [value.replace("{}", GOOD) for value in BAD_CREDENTIALS if "\0" not in value]
    for value in tokens + values:
        answer = parsed(await exchange(client.port, over_http(value)))
        if len(value) > 8000:
            assert 400 <= answer.status < 500
        else:
            assert answer.status == 401, value
            assert answer.headers["WWW-Authenticate"].startswith("Bearer "), value
            assert answer.headers["Cache-Control"] == "no-store"
            body = json.loads(answer.body)
            assert body["api_message"] == "TOKEN_INVALID"
            assert body["api_data"]["origin"] == "gateway"
    assert ledger.calls == []
    assert (await raw(client, "GET /ledger HTTP/1.1", *lines(alices(GOOD)))).status == 200


@pytest.mark.parametrize(("fast_path", "looked_up"), [("true", 1), ("false", 3)])
async def test_a_signature_is_checked_once_or_on_every_request_without_the_fast_path(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, fast_path: str, looked_up: int
) -> None:
    algorithms: list[str] = []
    find = Keyring.find

    def noted(keyring: Keyring, algorithm: str, key_id: str | None) -> Any:
        algorithms.append(algorithm)
        return find(keyring, algorithm, key_id)

    monkeypatch.setattr(Keyring, "find", noted)
    client = await make_client(server__fast_path=fast_path)
    for _ in range(3):
        assert (await client.get("/ledger", headers=alices(GOOD))).status == 200
    assert algorithms == ["HS256"] * looked_up


def alices(credentials: str) -> dict[str, str]:
    return {"Authorization": credentials, "username": "alice"}


@pytest.mark.parametrize("name", NO_ROLES)
async def test_a_token_without_a_known_role_is_403_on_every_route(
    client: Client, ledger: FakeLedger, name: str
) -> None:
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{username}", "alice").replace("{order_id}", "1")
        answer = await client.request(endpoint.method, path, headers=alices(NO_ROLES[name]))
        assert answer.status == 403
    assert ledger.calls == []


@pytest.mark.parametrize("size", [9_000, 100_000, 1_000_000, 5_000_000])
async def test_a_huge_token_is_refused_at_the_header_limit(
    client: Client, ledger: FakeLedger, size: int
) -> None:
    huge = claims(x="y" * (size * 3 // 4))
    assert 400 <= await first_status(client.port, over_http(f"Bearer {huge}")) < 500
    assert ledger.calls == []
    assert (await client.get("/ledger", headers=caller())).status == 200


@pytest.mark.parametrize(
    "header_lines",
    [
        [b"Authorization: Bearer \xe9"],
        [b"Authorization: \xff\xfe"],
        [b"Authorization: Bearer " + GOOD.encode() + b"\xe9"],
        [b"Authorization: Bearer \xc3\xa9." + BODY.encode() + b"." + SIGNATURE.encode()],
        [b"Authorization: Bearer " + GOOD.encode(), b"Authorization: Bearer " + GOOD.encode()],
        [b"Authorization: Bearer " + GOOD.encode(), b"Authorization: x"],
        [b"Authorization: x", b"Authorization: Bearer " + GOOD.encode()],
        [b"Authorization: Bearer " + GOOD.encode(), b"authorization: Bearer " + GOOD.encode()],
        [b"Authorization: Bearer " + GOOD.encode(), b"AUTHORIZATION:"],
    ],
)
async def test_credentials_that_no_client_library_sends_are_401(
    client: Client, ledger: FakeLedger, header_lines: list[bytes]
) -> None:
    answer = await raw(client, "GET /ledger HTTP/1.1", *header_lines, b"username: alice")
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert ledger.calls == []


@pytest.mark.parametrize(
    ("header_lines", "status"),
    [
        ([b"username: alice", b"username: alice"], 401),
        ([b"username: alice", b"username: bob"], 401),
        ([b"username: bob", b"username: alice"], 401),
        ([b"username: alice", b"USERNAME: alice"], 401),
        ([b"username: alice", b"username:"], 401),
        ([b"username: alice, bob"], 403),
        ([b"username: alice,alice"], 403),
        ([b"username: \xe9"], 403),
        ([b"username: alice\xe9"], 403),
        ([b"username: \xef\xbd\x81lice"], 403),
        ([b"username: alice\xe2\x80\x8b"], 403),
        ([b"username: %61lice"], 403),
        ([b"username: Alice"], 403),
        ([b'username: "alice"'], 403),
    ],
)
@pytest.mark.parametrize("target", ["/ledger", "/ledger/alice", RATES])
async def test_username_lines_that_no_client_library_sends_are_refused(
    client: Client, ledger: FakeLedger, target: str, header_lines: list[bytes], status: int
) -> None:
    credentials = b"Authorization: Bearer " + GOOD.encode()
    answer = await raw(client, f"GET {target} HTTP/1.1", credentials, *header_lines)
    assert answer.status == status
    assert ledger.calls == []


async def test_a_token_anywhere_but_in_its_header_is_no_token(
    client: Client, ledger: FakeLedger
) -> None:
    for name in ("token", "access_token", "jwt", "Authorization", "authorization"):
        for where in (
            {"params": {name: GOOD}},
            {"headers": {"Cookie": f"{name}={GOOD}"}},
            {"json": {name: GOOD}},
            {"headers": {f"X-{name}": GOOD, "Proxy-Authorization": f"Bearer {GOOD}"}},
        ):
            headers = {"username": "alice", **where.pop("headers", {})}
            answer = await client.get("/ledger", headers=headers, **where)
            assert answer.status == 401
            assert (await answer.json())["api_message"] == "TOKEN_MISSING"
            assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert ledger.calls == []


async def test_a_key_that_a_token_points_at_is_never_fetched(
    client: Client, ledger: FakeLedger
) -> None:
    for parameter in ("jku", "x5u"):
        for spelling in ({parameter: f"{ledger.url}/keys"}, {"kid": f"{ledger.url}/keys"}):
            bad = forged(
                HEADER | spelling, secret="the secret behind that address, chosen by mallory"
            )
            assert (await client.get("/ledger", headers=alices(bad))).status == 401
    assert ledger.calls == []


async def test_the_rates_answer_in_their_own_codes(client: Client, ledger: FakeLedger) -> None:
    answers = [
        await client.get(RATES),
        await client.get(RATES, headers={"Authorization": "Bearer x"}),
        await client.get(RATES, headers=alices(NO_ROLES["no role"])),
    ]
    assert [answer.status for answer in answers] == [401, 401, 403]
    assert [(await answer.json())["code"] for answer in answers] == ["0041", "0042", "0043"]
    assert ledger.calls == []


async def test_without_keys_the_gateway_is_not_ready_and_never_open(
    make_client: MakeClient, ledger: FakeLedger, private_keys: dict[str, Any]
) -> None:
    client = await make_client(
        auth__algorithms="RS256,ES256", auth__jwks_url="http://127.0.0.1:1/keys"
    )
    assert (await client.get("/health/ready")).status == 503
    assert (await client.get("/health/live")).status == 200
    for algorithm in ("RS256", "ES256"):
        good = jwt.encode(CLAIMS, private_keys[algorithm], algorithm=algorithm)
        for target, code in (("/ledger", "api_message"), (RATES, "code")):
            answer = await client.get(target, headers=alices(good))
            assert answer.status == 503
            assert (await answer.json())[code] == "NOT_READY"
            assert int(answer.headers["Retry-After"]) > 0
    for credentials in (GOOD, BAD_TOKENS["alg 'none'"]):
        assert (await client.get("/ledger", headers=alices(credentials))).status == 401
    assert ledger.calls == []


async def test_a_kept_answer_does_not_outlive_the_token_that_asked_for_it(
    make_client: MakeClient, ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("gateway.app.Authenticator", partial(Authenticator, now=clock))
    client = await make_client(cache__ledger_ttl_s="86400")
    for at, status in ((NOW, 200), (NOW + DAY - 1, 200), (NOW + DAY, 401), (NOW + 2 * DAY, 401)):
        clock.time = at
        answer = await client.get("/ledger", headers=alices(GOOD))
        assert answer.status == status
    assert len(ledger.calls) == 1, "all that was answered came from one reading"
