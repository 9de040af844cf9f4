"""Keys from the configuration and from a key set, and whose signatures hold with them."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jwt as jose
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.authn import Authenticator, development_token, read_key_set
from gateway.authz import Principal, Role
from gateway.config import Auth, read
from gateway.errors import Forbidden, NotReady, TokenInvalid
from gateway.key_set import Keys, KeySet, KeySetRules
from gateway.keyring import Keyring
from gateway.keys import Key, load_keys
from gateway.revocations import Revocations
from tests.conftest import SECRET, config_for

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
SIGNERS = {
    "HS256": OctKey.import_key(SECRET),
    "RS256": RSAKey.generate_key(2048),
    "ES256": ECKey.generate_key("P-256"),
    "EdDSA": OKPKey.generate_key("Ed25519"),
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """A key set whose document is in the hand; it fails while there is none."""

    def __init__(self, clock: Clock, keys: Keys | None = None) -> None:
        self.keys = keys
        self.fetches = 0
        rules = KeySetRules(refresh_s=300.0, max_age_s=3600.0)
        self.set = KeySet(self._fetch, lambda _: self.keys or {}, rules, lambda: None, now=clock)

    async def _fetch(self) -> bytes:
        self.fetches += 1
        return b""


@pytest.fixture
def clock() -> Clock:
    return Clock()


def auth(**settings: str) -> Auth:
    named = {f"auth__{name}": value for name, value in settings.items()}
    named.setdefault("auth__jwks_url", "https://keys.example/jwks")
    return config_for("http://127.0.0.1:1", **named).auth


def authenticator(
    keyring: Keyring,
    memo: dict[str, Principal] | None = None,
    now: float | None = None,
    **rest: str,
) -> Authenticator:
    settings = {"algorithms": ",".join(ALGORITHMS)} | rest
    return Authenticator(
        auth(**settings),
        keyring,
        Revocations(None),
        {} if memo is None else memo,
        now=time.time if now is None else lambda: now,
    )


async def verdict(verifier: Authenticator, token: str) -> Principal:
    headers = CIMultiDictProxy(CIMultiDict({"Authorization": token}))
    return await verifier.authenticate(headers, username_required=False)


def signed(algorithm: str, key: Any = None, **header: Any) -> str:
    """A good token, made by another library than the one that verifies it."""
    claims = {"sub": "alice", "role": "user", "exp": int(time.time()) + 600}
    parameters = {"alg": algorithm, **header}
    with old_names():
        return jose.encode(parameters, claims, key or SIGNERS[algorithm], algorithms=[algorithm])


@contextmanager
def old_names() -> Iterator[None]:
    """Lets the other library use the name EdDSA, which it warns of: RFC 9864 has newer ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)
        yield


def forged(made_with: str, header: dict[str, Any]) -> str:
    """A token with any header, signed with our key and algorithm of that name."""
    claims = {"sub": "alice", "role": "user", "exp": int(time.time()) + 600}
    parts = ".".join(b64(json.dumps(part).encode()) for part in (header, claims))
    algorithm = jwt.get_algorithm_by_name(made_with)
    signer = SIGNERS[made_with]
    material = SECRET.encode() if made_with == "HS256" else signer.as_pem(private=True)
    return f"{parts}.{b64(algorithm.sign(parts.encode(), algorithm.prepare_key(material)))}"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def published(*entries: Mapping[str, Any]) -> Keys:
    return read_key_set(json.dumps({"keys": entries}).encode(), ALGORITHMS)


def public(algorithm: str, **members: Any) -> dict[str, Any]:
    plain = dict(SIGNERS[algorithm].as_dict(private=False))
    plain.pop("kid", None)
    return plain | members


# Which key is found.


def test_configured_keys_are_found_under_any_id(clock: Clock) -> None:
    keyring = Keyring({"HS256": b"secret"}, None, clock)
    assert keyring.find("HS256", None) == b"secret"
    assert keyring.find("HS256", "any") == b"secret"
    assert keyring.find("RS256", None) is None
    assert keyring.ready


def test_without_any_key_it_is_not_ready(clock: Clock) -> None:
    keyring = Keyring({}, None, clock)
    assert not keyring.ready
    assert keyring.find("HS256", None) is None


async def test_without_a_key_set_there_is_nothing_to_fetch(clock: Clock) -> None:
    keyring = Keyring({"HS256": b"secret"}, None, clock)
    await keyring.refetch("RS256")
    clock.now += 50.0
    assert keyring.age() == 50.0


async def test_a_secret_and_a_key_set_stand_side_by_side(clock: Clock) -> None:
    source = Source(clock, {("RS256", "one"): b"public"})
    keyring = Keyring({"HS256": b"secret"}, source.set, clock)
    assert keyring.find("HS256", "one") == b"secret"
    assert not keyring.ready
    assert keyring.age() is None
    await keyring.refetch("RS256")
    assert keyring.ready
    assert keyring.find("RS256", "one") == b"public"
    assert keyring.find("HS256", "one") == b"secret"
    clock.now += 20.0
    assert keyring.age() == 20.0


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_secret_is_never_looked_for_at_the_key_server(clock: Clock, algorithm: str) -> None:
    source = Source(clock, {("RS256", "one"): b"public"})
    await Keyring({}, source.set, clock).refetch(algorithm)
    assert source.fetches == 0


def test_a_key_set_that_holds_a_secret_does_not_give_it_to_anybody(clock: Clock) -> None:
    entry = {"kty": "oct", "kid": "one", "alg": "HS256", "k": "A" * 86}
    assert published(entry) == {}


# Whose signatures hold.


@pytest.fixture
async def ring(clock: Clock) -> Keyring:
    """The secret in the configuration, one key of each other kind in the set."""
    entries = [public(name, kid=f"key-{name}") for name in ALGORITHMS if name != "HS256"]
    source = Source(clock, published(*entries))
    await source.set.load()
    return Keyring({"HS256": SECRET.encode()}, source.set, clock)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_tokens_of_another_library_are_verified(ring: Keyring, algorithm: str) -> None:
    verifier = authenticator(ring)
    for token in (signed(algorithm), signed(algorithm, kid=f"key-{algorithm}")):
        principal = await verdict(verifier, token)
        assert (principal.username, principal.role) == ("alice", Role.USER)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_tokens_made_here_are_verified_by_another_library(algorithm: str) -> None:
    token = development_token(auth(algorithms=algorithm), "alice", "user", 60)
    found = jose.decode(token, SIGNERS["HS256"], algorithms=[algorithm])
    assert found.claims["sub"] == "alice"
    assert found.header["alg"] == algorithm


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_key_means_the_same_in_another_library(algorithm: str) -> None:
    """What the one library signs with the private half, the other verifies with the public one."""
    found = published(public(algorithm, kid="one"))[algorithm, "one"]
    made = jwt.encode({"sub": "alice"}, SIGNERS[algorithm].private_key, algorithm=algorithm)
    with old_names():
        decoded = jose.decode(made, SIGNERS[algorithm], algorithms=[algorithm])
    assert decoded.claims == {"sub": "alice"}
    assert jwt.decode(made, found, algorithms=[algorithm]) == {"sub": "alice"}  # type: ignore[arg-type]


@pytest.mark.parametrize("made_with", ALGORITHMS)
@pytest.mark.parametrize("claimed", ALGORITHMS)
async def test_a_key_verifies_its_own_algorithm_only(
    ring: Keyring, made_with: str, claimed: str
) -> None:
    """A signature of one kind under the name of another, with and without the first one's id."""
    verifier = authenticator(ring)
    for extra in ({}, {"kid": f"key-{made_with}"}):
        token = forged(made_with, {"alg": claimed, **extra})
        if made_with == claimed:
            assert (await verdict(verifier, token)).username == "alice"
        else:
            with pytest.raises(TokenInvalid):
                await verdict(verifier, token)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_public_key_is_no_secret(ring: Keyring, algorithm: str) -> None:
    signer = SIGNERS[algorithm]
    forms = [
        signer.as_pem(private=False),
        signer.as_der(private=False),
        json.dumps(public(algorithm)).encode(),
    ]
    for form in forms:
        token = signed("HS256", OctKey.import_key(form.hex()), kid=f"key-{algorithm}")
        with pytest.raises(TokenInvalid):
            await verdict(authenticator(ring), token)
        # The raw bytes, which a careful library does not take for a secret.
        with pytest.raises(TokenInvalid):
            await verdict(authenticator(ring), hmac_token(form))


def hmac_token(secret: bytes) -> str:
    head, claims, _ = signed("HS256").split(".")
    digest = hmac.digest(secret, f"{head}.{claims}".encode(), hashlib.sha256)
    return f"{head}.{claims}.{b64(digest)}"


async def test_the_secret_itself_makes_such_a_token_good(ring: Keyring) -> None:
    assert (await verdict(authenticator(ring), hmac_token(SECRET.encode()))).username == "alice"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_one_changed_bit_anywhere_is_refused(ring: Keyring, algorithm: str) -> None:
    token, verifier = signed(algorithm), authenticator(ring)
    for place in range(0, len(token), 7):
        if token[place] == ".":
            continue
        other = "B" if token[place] == "A" else "A"
        with pytest.raises(TokenInvalid):
            await verdict(verifier, token[:place] + other + token[place + 1 :])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("signature", ["AA", "A" * 43, "A" * 86, "A" * 342])
async def test_a_made_up_signature_is_refused(
    ring: Keyring, algorithm: str, signature: str
) -> None:
    head, claims, _ = signed(algorithm).split(".")
    with pytest.raises(TokenInvalid):
        await verdict(authenticator(ring), f"{head}.{claims}.{signature}")


async def test_a_signature_in_der_form_is_refused(ring: Keyring) -> None:
    head, claims, signature = signed("ES256").split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    der = b64(encode_dss_signature(r, s))
    with pytest.raises(TokenInvalid):
        await verdict(authenticator(ring), f"{head}.{claims}.{der}")


@pytest.mark.parametrize(
    "algorithm",
    [
        *(None, "", "none", "None", "NONE", "nOnE", "hs256", "HS384", "RS512", "PS256", "ES384"),
        *("dir", 1, True, ["HS256"], {"alg": "HS256"}),
    ],
    ids=str,
)
async def test_an_algorithm_that_is_not_configured_is_refused(
    ring: Keyring, algorithm: object
) -> None:
    _, claims, signature = signed("HS256").split(".")
    first = b64(json.dumps({"alg": algorithm}).encode())
    with pytest.raises(TokenInvalid):
        await verdict(authenticator(ring), f"{first}.{claims}.{signature}")


async def test_an_algorithm_that_is_not_configured_is_not_looked_for(clock: Clock) -> None:
    source = Source(clock, published(public("RS256", kid="one")))
    verifier = authenticator(Keyring({}, source.set, clock), algorithms="ES256")
    with pytest.raises(TokenInvalid):
        await verdict(verifier, signed("RS256", kid="one"))
    assert source.fetches == 0


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_keys_in_the_token_itself_are_not_used(ring: Keyring, algorithm: str) -> None:
    forger = type(SIGNERS[algorithm]).generate_key()
    for parameter in (
        {"jwk": forger.as_dict(private=False)},
        {"jku": "https://evil.example/jwks"},
        {"x5c": ["MIIB"]},
        {"x5u": "https://evil.example/cert"},
    ):
        claims = {"sub": "alice", "role": "admin", "exp": int(time.time()) + 600}
        headers = parameter | {"kid": f"key-{algorithm}"}
        token = jwt.encode(claims, forger.private_key, algorithm=algorithm, headers=headers)
        with pytest.raises(TokenInvalid):
            await verdict(authenticator(ring), token)


def sealed(first: str, second: str) -> str:
    """Two segments as they are, with the signature that our secret makes for them."""
    digest = hmac.digest(SECRET.encode(), f"{first}.{second}".encode(), hashlib.sha256)
    return f"{first}.{second}.{b64(digest)}"


HEAD = b64(b'{"alg":"HS256"}')
BODY = b64(b'{"sub":"alice","role":"user","exp":2000000000}')


async def test_a_sealed_token_is_good(ring: Keyring) -> None:
    assert (await verdict(authenticator(ring, now=1.99e9), sealed(HEAD, BODY))).username == "alice"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b64(b"1"), BODY),
        (b64(b'"HS256"'), BODY),
        (b64(b'["alg","HS256"]'), BODY),
        (b64(b"null"), BODY),
        (b64(b"{}"), BODY),
        (b64(b'{"ALG":"HS256"}'), BODY),
        (b64(b'{"alg":"HS256"'), BODY),
        (b64(b'{"alg":"HS256\xe9"}'), BODY),
        (b64(b'\xef\xbb\xbf{"alg":"HS256"}'), BODY),
        (b64(b'{"alg":"none","alg":"HS256"}'), BODY),
        (b64(b'{"alg":"HS256","kid":123}'), BODY),
        (b64(b'{"alg":"HS256","crit":["exp"],"exp":1}'), BODY),
        (b64(b'{"alg":"HS256","crit":[]}'), BODY),
        (b64(b'{"alg":"HS256","b64":true}'), BODY),
        (b64(b'{"alg":"HS256","b64":false,"crit":["b64"]}'), BODY),
        (b64(b'{"alg":"HS256","jwk":"dict"}'), BODY),
        (b64(b'{"alg":"HS256","typ":"JWE","enc":"A128GCM"}'), BODY),
        ("a" + HEAD, BODY),
        (HEAD + "a", BODY),
        (HEAD, "a" + BODY),
        (HEAD, BODY + "A"),
        (HEAD, b64(b"hello world")),
        (HEAD, b64(b"1")),
        (HEAD, b64(b'[{"sub":"alice","role":"user","exp":2000000000}]')),
        (HEAD, b64(b"null")),
        (HEAD, b64(b'{"sub":"bob","sub":"alice","role":"user","exp":2000000000}')),
        (HEAD, b64(b'{"sub":"alice","role":"user","exp":"2000000000"}')),
        (HEAD, b64(b'{"sub":"alice","role":"user","exp":1e400}')),
        (HEAD, b64(b'{"sub":"alice","role":"user"}')),
        (HEAD, b64(b'{"sub":1,"role":"user","exp":2000000000}')),
        (HEAD, b64(b'{"sub":"alice","role":"user","exp":2000000000,"jti":1}')),
        (HEAD, b64(b'{"sub":"alice","role":"user","exp":2000000000,"iat":"now"}')),
        (HEAD, b64(b'{"sub":"alice","role":"user","exp":2000000000,"nbf":1995000000}')),
        (HEAD, b64(b'{"role":"user","exp":2000000000}')),
    ],
)
async def test_what_is_malformed_is_refused_however_well_it_is_signed(
    ring: Keyring, first: str, second: str
) -> None:
    with pytest.raises(TokenInvalid):
        await verdict(authenticator(ring, now=1.99e9), sealed(first, second))


# Ids.


async def test_a_token_without_an_id_is_verified_by_the_only_key_it_can_be(clock: Clock) -> None:
    other = ECKey.generate_key("P-256").as_dict(private=False)
    source = Source(clock, published(public("ES256", kid="one"), public("RS256", kid="two")))
    await source.set.load()
    verifier = authenticator(Keyring({}, source.set, clock))
    assert (await verdict(verifier, signed("ES256"))).username == "alice"
    source.keys = published(public("ES256", kid="one"), other | {"kid": "three"})
    await source.set.load()
    with pytest.raises(TokenInvalid, match="not known"):
        await verdict(authenticator(Keyring({}, source.set, clock)), signed("ES256"))


async def test_an_id_chooses_among_keys_of_one_algorithm(clock: Clock) -> None:
    other = ECKey.generate_key("P-256")
    source = Source(
        clock, published(public("ES256", kid="a"), other.as_dict(private=False) | {"kid": "b"})
    )
    await source.set.load()
    verifier = authenticator(Keyring({}, source.set, clock))
    assert (await verdict(verifier, signed("ES256", kid="a"))).username == "alice"
    assert (await verdict(verifier, signed("ES256", other, kid="b"))).username == "alice"
    for token in (signed("ES256", kid="b"), signed("ES256", other, kid="a")):
        with pytest.raises(TokenInvalid, match="signature"):
            await verdict(verifier, token)


@pytest.mark.parametrize("taken", [{}, {"alg": "RS512"}, {"use": "enc"}])
async def test_a_key_for_something_else_verifies_nothing(
    clock: Clock, taken: dict[str, str]
) -> None:
    entries = [public("ES256", kid="other")]
    entries += [public("RS256", kid="one") | taken] if taken else []
    source = Source(clock, published(*entries))
    await source.set.load()
    for token in (signed("RS256", kid="one"), signed("RS256")):
        with pytest.raises(TokenInvalid, match="not known"):
            await verdict(authenticator(Keyring({}, source.set, clock)), token)


# Not ready.


async def test_no_keys_at_all_is_a_503_and_never_open(clock: Clock) -> None:
    source = Source(clock)
    verifier = authenticator(Keyring({}, source.set, clock))
    for algorithm in ("RS256", "ES256", "EdDSA"):
        with pytest.raises(NotReady) as error:
            await verdict(verifier, signed(algorithm))
        assert error.value.status == 503
        assert int(error.value.headers["Retry-After"]) > 0
    assert source.fetches == 1


async def test_a_secret_works_while_the_key_server_is_away(clock: Clock) -> None:
    ring = Keyring({"HS256": SECRET.encode()}, Source(clock).set, clock)
    assert (await verdict(authenticator(ring), signed("HS256"))).username == "alice"
    with pytest.raises(NotReady):
        await verdict(authenticator(ring), signed("RS256"))


async def test_a_malformed_token_is_a_401_also_without_keys(clock: Clock) -> None:
    source = Source(clock)
    with pytest.raises(TokenInvalid):
        await verdict(authenticator(Keyring({}, source.set, clock)), "a.b.c")
    assert source.fetches == 0


async def test_a_remembered_token_is_refused_when_the_keys_are_too_old(clock: Clock) -> None:
    source = Source(clock, published(public("RS256", kid="one")))
    await source.set.load()
    memo: dict[str, Principal] = {}
    verifier, token = authenticator(Keyring({}, source.set, clock), memo), signed("RS256")
    await verdict(verifier, token)
    assert token in memo
    source.keys = None
    clock.now += 3600.0
    with pytest.raises(NotReady):
        await verdict(verifier, token)
    source.keys = published(public("RS256", kid="one"))
    await source.set.load()
    assert (await verdict(verifier, token)).username == "alice"


async def test_callers_with_new_ids_wait_for_one_fetch_and_are_then_let_in(clock: Clock) -> None:
    source = Source(clock, published(public("RS256", kid="one")))
    verifier = authenticator(Keyring({}, source.set, clock))
    found = await asyncio.gather(
        *(verdict(verifier, signed("RS256", kid="one")) for _ in range(20))
    )
    assert {principal.username for principal in found} == {"alice"}
    assert source.fetches == 1


# Published vectors: RFC 7515 appendix A.1 to A.3. Their token expired in 2011 and names no role.

JOE = (
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
)
VECTORS: dict[str, tuple[str, str, dict[str, str]]] = {
    "HS256": (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        {
            "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T"
            "-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
        },
    ),
    "RS256": (
        "eyJhbGciOiJSUzI1NiJ9",
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7"
        "AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4"
        "BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K"
        "0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqv"
        "hJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrB"
        "p0igcN_IoypGlUPQGe77Rw",
        {
            "kty": "RSA",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-"
            "Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47s"
            "oMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg"
            "665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGN"
            "j8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
            "e": "AQAB",
        },
    ),
    "ES256": (
        "eyJhbGciOiJFUzI1NiJ9",
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        {
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        },
    ),
}


@pytest.mark.parametrize("algorithm", VECTORS)
async def test_the_published_vectors_are_verified(clock: Clock, algorithm: str) -> None:
    header, signature, key = VECTORS[algorithm]
    configured: dict[str, Key] = {}
    source = Source(clock, published(key) if "kty" in key else None)
    await source.set.load()
    if "k" in key:
        configured = {"HS256": base64.urlsafe_b64decode(key["k"] + "==")}
    verifier = authenticator(
        Keyring(configured, source.set, clock), now=1300819000.0, username_claims="iss"
    )
    # Its signature holds: what it lacks is a role.
    with pytest.raises(Forbidden, match="role"):
        await verdict(verifier, f"{header}.{JOE}.{signature}")
    with pytest.raises(TokenInvalid, match="signature"):
        await verdict(verifier, f"{header}.{JOE}.{signature[:-2]}AA")
    with pytest.raises(TokenInvalid, match="signature"):
        await verdict(verifier, f"{header}.{JOE}.A{signature[1:]}")


async def test_the_published_vectors_are_of_no_use_with_another_key(ring: Keyring) -> None:
    verifier = authenticator(ring, now=1300819000.0, username_claims="iss")
    for header, signature, _ in VECTORS.values():
        with pytest.raises(TokenInvalid, match="signature"):
            await verdict(verifier, f"{header}.{JOE}.{signature}")


# Keys from a file.


def test_a_key_file_and_a_secret_are_one_key_for_each_algorithm(tmp_path: Any) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(SIGNERS["RS256"].as_pem(private=False))
    found = load_keys(("HS256", "RS256"), SECRET, str(path))
    assert found == {"HS256": SECRET.encode(), "RS256": SIGNERS["RS256"].public_key}


async def test_tokens_are_verified_with_the_key_in_a_file(tmp_path: Any, clock: Clock) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(SIGNERS["ES256"].as_pem(private=False))
    environ = {
        "GATEWAY_LEDGER__BASE_URL": "http://127.0.0.1:1",
        "GATEWAY_AUTH__ALGORITHMS": "ES256",
        "GATEWAY_AUTH__PUBLIC_KEY_FILE": str(path),
    }
    settings = read(None, environ).auth
    keys = load_keys(settings.algorithms, settings.secret, settings.public_key_file)
    verifier = Authenticator(settings, Keyring(keys, None, clock), Revocations(None), {})
    for kid in ({}, {"kid": "any"}):
        assert (await verdict(verifier, signed("ES256", **kid))).username == "alice"
    with pytest.raises(TokenInvalid, match="signature"):
        await verdict(verifier, signed("ES256", ECKey.generate_key("P-256")))
