"""Who asks: an `Authorization` header and a `username` header become a `Principal`.

Algorithm and key come from the configuration only (RFC 8725); what a verified token says is read in
`tokens`. The only file that imports jwt.
"""

import time
from collections.abc import Callable, Collection, MutableMapping
from typing import Any

import jwt
from multidict import CIMultiDictProxy

from gateway import tokens
from gateway.authz import Principal
from gateway.config import Auth
from gateway.errors import Forbidden, NotReady
from gateway.key_set import Keys
from gateway.keyring import Keyring
from gateway.keys import HMAC_BYTES, UNREADABLE, Key, PublicKey, fits
from gateway.revocations import Revocations
from schemas import strict_json
from schemas.fields import USERNAME

# JWK key type and curve to the algorithm they are for (RFC 7518 section 6, RFC 8037 section 2).
_ALGORITHMS = {"RSA -": "RS256", "EC P-256": "ES256", "OKP Ed25519": "EdDSA"}


class Authenticator:
    """Verifies callers. `memo` remembers verified tokens, whole, to their principals."""

    def __init__(
        self,
        auth: Auth,
        keyring: Keyring,
        revocations: Revocations,
        memo: MutableMapping[str, Principal],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._auth = auth
        self._keyring = keyring
        self._revocations = revocations
        self._memo = memo
        self._now = now
        self._signatures = jwt.PyJWS(algorithms=list(auth.algorithms))

    async def authenticate(
        self, headers: CIMultiDictProxy[str], *, username_required: bool
    ) -> Principal:
        """The principal behind a request's headers.

        Raises `Unauthenticated` (401), `Forbidden` (403) or `NotReady` (503, there are no keys).
        """
        principal = await self._verified(tokens.credentials(headers))
        names = headers.getall("username", [])
        if len(names) > 1:
            raise tokens.invalid("There is more than one username header.")
        if username_required and not names:
            raise tokens.invalid("The username header is missing.")
        if names and names[0] != principal.username:
            raise Forbidden("The username header is not the token's user name.")
        return principal

    @property
    def edition(self) -> object:
        """Something else whenever other keys are trusted."""
        return self._keyring.edition

    def stands(self, principal: Principal, edition: object) -> bool:
        """Whether a token that was verified with that edition of the keys is still good."""
        return (
            self._keyring.ready
            and self._keyring.edition is edition
            and self._now() < principal.expires_at
            and not self._revocations.covers(principal)
        )

    async def _verified(self, token: str) -> Principal:
        known: Principal | None = self._memo.get(token) if self._keyring.ready else None
        principal = known if known is not None else await self._verify(token)
        if self._now() >= principal.expires_at:
            raise tokens.invalid("The token has expired.")
        if self._revocations.covers(principal):
            raise tokens.invalid("The token is revoked.")
        if known is None:
            self._memo[token] = principal
        return principal

    async def _verify(self, token: str) -> Principal:
        claims = await self._signed_claims(token)
        expires_at = self._lifetime(claims)
        self._addressed_here(claims)
        return Principal(
            username=self._username(claims),
            role=tokens.role_of(claims),
            expires_at=expires_at,
            issued_at=tokens.instant(claims, "iat"),
            token_id=tokens.token_id(claims),
        )

    async def _signed_claims(self, token: str) -> tokens.Claims:
        """The claims of a token whose signature holds."""
        first, second, signature = token.split(".")
        header, claims = tokens.segment(first), tokens.segment(second)
        tokens.octets(signature)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._auth.algorithms:
            raise tokens.invalid("The token's algorithm is not accepted.")
        tokens.check_parameters(header)
        key = await self._key(algorithm, header.get("kid"))
        try:
            self._signatures.decode(token, key, algorithms=[algorithm])
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise tokens.invalid("The token's signature does not hold.") from error
        return claims

    async def _key(self, algorithm: str, key_id: str | None) -> Any:
        key = self._keyring.find(algorithm, key_id)
        if key is None:
            await self._keyring.refetch(algorithm)
            key = self._keyring.find(algorithm, key_id)
        if key is not None:
            return key
        if not self._keyring.ready:
            raise NotReady("There are no verification keys yet.", headers={"Retry-After": "5"})
        raise tokens.invalid("The token's key is not known.")

    def _lifetime(self, claims: tokens.Claims) -> float:
        """When the token stops being accepted, in seconds since the epoch."""
        now, leeway = self._now(), self._auth.leeway_s
        expires = tokens.instant(claims, "exp")
        if expires is None:
            raise tokens.invalid("The token has no expiry.")
        if expires > now + leeway + self._auth.max_lifetime_s:
            raise tokens.invalid("The token lives too long.")
        for name in ("nbf", "iat"):
            if (tokens.instant(claims, name) or 0.0) > now + leeway:
                raise tokens.invalid("The token is not valid yet.")
        return expires + leeway

    def _addressed_here(self, claims: tokens.Claims) -> None:
        issuer, audience = self._auth.issuer, self._auth.audience
        if issuer is not None and claims.get("iss") != issuer:
            raise tokens.invalid("The token's issuer is not accepted.")
        audiences = claims.get("aud")
        if not isinstance(audiences, list):
            audiences = [audiences]
        if audience is not None and audience not in audiences:
            raise tokens.invalid("The token is for another audience.")

    def _username(self, claims: tokens.Claims) -> str:
        for name in self._auth.username_claims:
            if name in claims:
                return tokens.checked_username(claims[name])
        raise tokens.invalid("The token names no user.")


def read_key_set(document: bytes, algorithms: Collection[str]) -> Keys:
    """The usable keys of a JWK set (RFC 7517 section 5), each pinned to one algorithm.

    A key that is not for verifying, of an unknown type, too weak or secret is passed over.
    ValueError if the document is no key set.
    """
    value = strict_json.parse(document)
    entries = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a key set")
    found: dict[tuple[str, str], Key] = {}
    for entry in entries:
        algorithm = _pinned_algorithm(entry)
        if algorithm is None or algorithm not in algorithms:
            continue
        key = _public_key(entry, algorithm)
        if key is not None:
            found.setdefault((algorithm, entry.get("kid", "")), key)
    return found


def _pinned_algorithm(entry: object) -> str | None:
    """The one algorithm that a JWK is for, None if it is not for verifying with one we know."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid", ""), str):
        return None
    algorithm = _ALGORITHMS.get(f"{entry.get('kty')} {entry.get('crv', '-')}")
    named = entry.get("alg", algorithm) == algorithm
    operations = entry.get("key_ops", ["verify"])
    meant = isinstance(operations, list) and "verify" in operations
    return algorithm if named and meant and entry.get("use", "sig") == "sig" else None


def _public_key(entry: dict[str, Any], algorithm: str) -> PublicKey | None:
    try:
        key = jwt.PyJWK.from_dict(entry, algorithm).key
    except (jwt.PyJWTError, *UNREADABLE):
        return None
    return key if fits(key, algorithm) else None


def development_token(auth: Auth, username: str, role: str, ttl_s: int) -> str:
    """A token that a gateway with this configuration accepts. ValueError if there can be none."""
    algorithm = next((name for name in auth.algorithms if name in HMAC_BYTES), None)
    if algorithm is None or auth.secret is None:
        raise ValueError("tokens can be made only with a secret and HS256, HS384 or HS512")
    if not USERNAME.fullmatch(username):
        raise ValueError("this is no user name that the gateway accepts")
    if ttl_s > auth.max_lifetime_s:
        raise ValueError("this is longer than auth.max_lifetime_s lets a token live")
    now = int(time.time())
    claims: tokens.Claims = {
        "sub": username,
        **dict.fromkeys(auth.username_claims, username),
        "role": role,
        "iat": now,
        "exp": now + ttl_s,
    }
    if auth.issuer is not None:
        claims["iss"] = auth.issuer
    if auth.audience is not None:
        claims["aud"] = auth.audience
    return jwt.encode(claims, auth.secret.encode(), algorithm=algorithm)
