"""Verification keys: which key fits which algorithm, and what is said of those that do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.keyring import Keyring
from gateway.keys import HMAC_BYTES, fits, key_problems, load_keys
from schemas.configuration import ALGORITHMS

KINDS: dict[str, Callable[[], Any]] = {
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA 1024": lambda: rsa.generate_private_key(65537, 1024),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "DSA": lambda: dsa.generate_private_key(1024),
}
FITTING = {"RS256": "RSA 2048", "ES256": "P-256", "EdDSA": "Ed25519"}
SUPPORTED = set(KINDS) - {"Ed448", "DSA"}


@pytest.fixture(scope="module")
def private() -> dict[str, Any]:
    return {name: make() for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def files(private: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Kind of key to the path of a file that holds the public one."""
    folder = tmp_path_factory.mktemp("keys")
    paths = {name: folder / f"{name}.pem" for name in private}
    for name, path in paths.items():
        path.write_bytes(public_pem(private[name]))
    return {name: str(path) for name, path in paths.items()}


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def private_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem


@pytest.mark.parametrize("algorithm", sorted(FITTING))
@pytest.mark.parametrize("kind", sorted(SUPPORTED))
def test_a_key_fits_the_one_algorithm_of_its_type_curve_and_size(
    private: dict[str, Any], files: dict[str, str], algorithm: str, kind: str
) -> None:
    fitting = FITTING[algorithm] == kind
    assert fits(private[kind].public_key(), algorithm) is fitting
    problems = key_problems([algorithm], None, files[kind], None)
    complaint = f"auth.public_key_file: does not hold a key for {algorithm}"
    assert problems == ([] if fitting else [complaint])
    assert set(load_keys([algorithm], None, files[kind])) == ({algorithm} if fitting else set())


@pytest.mark.parametrize("algorithm", sorted(HMAC_BYTES))
def test_a_public_key_never_verifies_an_hmac(files: dict[str, str], algorithm: str) -> None:
    assert load_keys([algorithm], None, files["RSA 2048"]) == {}
    assert key_problems([algorithm], None, files["RSA 2048"], None) == [
        f"auth.secret: {algorithm} needs one"
    ]


@pytest.mark.parametrize("kind", ["Ed448", "DSA"])
def test_a_key_of_an_unsupported_type_is_refused(files: dict[str, str], kind: str) -> None:
    for algorithm in FITTING:
        assert key_problems([algorithm], None, files[kind], None) == [
            "auth.public_key_file: a key of an unsupported type"
        ]


def test_a_private_key_in_the_file_is_refused_and_not_shown(
    private: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "private.pem"
    for kind, algorithm in (("RSA 2048", "RS256"), ("P-256", "ES256"), ("Ed25519", "EdDSA")):
        path.write_bytes(private_pem(private[kind]))
        assert key_problems([algorithm], None, str(path), None) == [
            "auth.public_key_file: not a public key in PEM form"
        ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key at all",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"\xff\x00" * 100,
    ],
)
def test_a_file_that_holds_no_public_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    assert key_problems(["RS256"], None, str(path), None) == [
        "auth.public_key_file: not a public key in PEM form"
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", tmp_path):
        (problem,) = key_problems(["RS256"], None, str(path), None)
        assert problem.startswith("auth.public_key_file: ")
        assert str(path) in problem


def test_every_algorithm_that_a_file_does_not_serve_is_named(files: dict[str, str]) -> None:
    algorithms = ["RS256", "ES256", "EdDSA"]
    assert key_problems(algorithms, None, files["P-256"], None) == [
        "auth.public_key_file: does not hold a key for RS256",
        "auth.public_key_file: does not hold a key for EdDSA",
    ]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(HMAC_BYTES)), st.integers(0, 80))
def test_a_secret_is_as_long_as_the_hash_or_refused(algorithm: str, length: int) -> None:
    needed = HMAC_BYTES[algorithm]
    problems = key_problems([algorithm], "s" * length, None, None)
    complaint = f"auth.secret: {algorithm} needs at least {needed} bytes"
    assert problems == ([] if length >= needed else [complaint])


@pytest.mark.parametrize(("algorithm", "needed"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_the_least_length_is_that_of_the_rfc_and_counts_bytes(algorithm: str, needed: int) -> None:
    assert HMAC_BYTES[algorithm] == needed
    assert key_problems([algorithm], "é" * (needed // 2), None, None) == []
    assert key_problems([algorithm], "é" * (needed // 2 - 1), None, None) != []


def test_a_secret_must_do_for_every_hmac_algorithm() -> None:
    assert key_problems(["HS256", "HS384", "HS512"], "s" * 40, None, None) == [
        "auth.secret: HS384 needs at least 48 bytes",
        "auth.secret: HS512 needs at least 64 bytes",
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_without_anything_to_verify_it_is_a_problem(algorithm: str) -> None:
    (problem,) = key_problems([algorithm], None, None, None)
    assert algorithm in problem


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_secret_does_not_stand_in_for_a_public_key(algorithm: str) -> None:
    (problem,) = key_problems([algorithm], "s" * 64, None, None)
    assert problem == f"auth.public_key_file: {algorithm} needs this or auth.jwks_url"
    assert load_keys([algorithm], "s" * 64, None) == {}


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_key_server_may_stand_in_for_the_file(algorithm: str) -> None:
    assert key_problems([algorithm], None, None, "https://keys.example") == []


def test_a_key_server_does_not_stand_in_for_a_secret() -> None:
    assert key_problems(["HS256"], None, None, "https://keys.example") == [
        "auth.secret: HS256 needs one"
    ]


def test_a_secret_and_a_public_key_each_verify_their_own(files: dict[str, str]) -> None:
    keys = load_keys(["HS256", "RS256"], "s" * 32, files["RSA 2048"])
    assert set(keys) == {"HS256", "RS256"}
    assert keys["HS256"] == b"s" * 32
    assert isinstance(keys["RS256"], rsa.RSAPublicKey)


def test_an_algorithm_that_is_not_configured_has_no_key() -> None:
    assert set(load_keys(["HS256"], "s" * 64, None)) == {"HS256"}


@pytest.mark.parametrize("key_id", [None, "", "a", "anything at all"])
def test_a_configured_key_answers_to_any_key_id(key_id: str | None) -> None:
    keyring = Keyring({"HS256": b"key"})
    assert keyring.find("HS256", key_id) == b"key"
    assert keyring.find("HS384", key_id) is None


def test_a_keyring_is_ready_when_it_has_a_key() -> None:
    assert Keyring({"HS256": b"key"}).ready
    assert not Keyring({}).ready


def test_a_keyring_knows_how_old_its_keys_are() -> None:
    clock = [1000.0]
    keyring = Keyring({"HS256": b"key"}, now=lambda: clock[0])
    assert keyring.age() == 0.0
    clock[0] += 90.5
    assert keyring.age() == 90.5
