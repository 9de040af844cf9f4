"""Verification keys from the configuration: which key verifies which algorithm (RFC 7518)."""

from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
Key = bytes | PublicKey

# What a key that cannot be read raises.
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)
# RFC 7518 section 3.2: an HMAC key is at least as long as the hash it feeds.
HMAC_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
# RFC 7518 section 3.3.
RSA_BITS = 2048


def load_keys(
    algorithms: Sequence[str], secret: str | None, public_key_file: str | None
) -> dict[str, Key]:
    """Algorithm to the one key that verifies it, of the algorithms that have one."""
    public = _read_public_key(public_key_file) if public_key_file else None
    keys: dict[str, Key] = {}
    for algorithm in algorithms:
        if algorithm in HMAC_BYTES and secret:
            keys[algorithm] = secret.encode()
        elif public is not None and fits(public, algorithm):
            keys[algorithm] = public
    return keys


def key_problems(
    algorithms: Sequence[str], secret: str | None, public_key_file: str | None, jwks_url: str | None
) -> list[str]:
    """What keeps the configured algorithms from being verified, one line each."""
    problems = [
        problem for algorithm in algorithms for problem in _hmac_problems(algorithm, secret)
    ]
    asymmetric = [algorithm for algorithm in algorithms if algorithm not in HMAC_BYTES]
    if asymmetric and public_key_file:
        problems += _file_problems(asymmetric, public_key_file)
    elif asymmetric and not jwks_url:
        names = ", ".join(asymmetric)
        problems.append(f"auth.public_key_file: {names} needs this or auth.jwks_url")
    return problems


def fits(key: object, algorithm: str) -> bool:
    """Whether a public key is of the type, curve and size that the algorithm needs."""
    match key:
        case RSAPublicKey():
            return algorithm == "RS256" and key.key_size >= RSA_BITS
        case EllipticCurvePublicKey():
            return algorithm == "ES256" and isinstance(key.curve, SECP256R1)
        case Ed25519PublicKey():
            return algorithm == "EdDSA"
    return False


def _hmac_problems(algorithm: str, secret: str | None) -> list[str]:
    needed = HMAC_BYTES.get(algorithm, 0)
    if needed and secret is None:
        return [f"auth.secret: {algorithm} needs one"]
    if secret is not None and len(secret.encode()) < needed:
        return [f"auth.secret: {algorithm} needs at least {needed} bytes"]
    return []


def _file_problems(algorithms: Sequence[str], path: str) -> list[str]:
    try:
        key = _read_public_key(path)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        return [f"auth.public_key_file: {error}"]
    return [
        f"auth.public_key_file: does not hold a key for {algorithm}"
        for algorithm in algorithms
        if not fits(key, algorithm)
    ]


def _read_public_key(path: str) -> PublicKey:
    """The public key in a PEM file. Raises OSError, ValueError or UnsupportedAlgorithm."""
    try:
        key = load_pem_public_key(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError("not a public key in PEM form") from error
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise ValueError("a key of an unsupported type")
    return key
