"""What a token says, read strictly; who may be believed is for `authn` to decide.

Everything that RFC 7519 leaves to the reader is decided here, on the strict side (RFC 8725): every
segment is canonical base64url of unambiguous JSON, times are JSON numbers, names are names.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

from multidict import CIMultiDictProxy

from gateway.authz import ROLES, Role
from gateway.errors import Forbidden, TokenInvalid, TokenMissing
from schemas import strict_json
from schemas.fields import USERNAME

_CREDENTIALS = re.compile(
    r"(?:bearer +)?([A-Z0-9_-]+\.[A-Z0-9_-]+\.[A-Z0-9_-]+)", re.IGNORECASE | re.ASCII
)
_KEY_ID = re.compile(r"[A-Za-z0-9._~+=:@-]{1,256}")
_TYPES = {"jwt", "at+jwt", "application/at+jwt"}
# Parameters that would let a token choose its key, or change what is signed (RFC 7515, RFC 7797).
_FORBIDDEN_PARAMETERS = {"jku", "jwk", "x5u", "x5c", "crit", "b64"}
# RFC 7519 NumericDate; later than the year 5000 is nobody's clock.
_LATEST = 1e11

Claims = dict[str, Any]


def invalid(detail: str) -> TokenInvalid:
    """The refusal of credentials, with its challenge (RFC 6750 section 3)."""
    challenge = f'Bearer realm="ledger", error="invalid_token", error_description="{detail}"'
    return TokenInvalid(detail, headers={"WWW-Authenticate": challenge})


def credentials(headers: CIMultiDictProxy[str]) -> str:
    """The token in the one `Authorization` header, bare or `Bearer`. `Unauthenticated`."""
    values = headers.getall("Authorization", [])
    if not values or values == [""]:
        challenge = {"WWW-Authenticate": 'Bearer realm="ledger"'}
        raise TokenMissing("There is no token.", headers=challenge)
    if len(values) > 1:
        raise invalid("There is more than one Authorization header.")
    match = _CREDENTIALS.fullmatch(values[0])
    if match is None:
        raise invalid("The Authorization header holds no token.")
    return match[1]


def segment(part: str) -> Claims:
    """The JSON object in one segment of a token."""
    try:
        value = strict_json.parse(octets(part))
    except ValueError as error:
        raise invalid("The token is malformed.") from error
    if not isinstance(value, dict):
        raise invalid("The token is malformed.")
    return value


def octets(part: str) -> bytes:
    """What a segment encodes, if it is in the one spelling that base64url has for it."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError as error:
        raise invalid("The token is malformed.") from error
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        raise invalid("The token is malformed.")
    return data


def check_parameters(header: Claims) -> None:
    """Refuses header parameters that would have a say in how the token is verified."""
    if _FORBIDDEN_PARAMETERS & header.keys():
        raise invalid("The token's header holds a parameter that is not accepted.")
    key_id = header.get("kid", "none")
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise invalid("The token's key id is malformed.")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise invalid("The token is of another type.")


def instant(claims: Claims, name: str) -> float | None:
    """A NumericDate claim in seconds since the epoch, None if it is absent (RFC 7519 section 2)."""
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _LATEST:
        raise invalid(f"The token's {name} is not a point in time.")
    return float(value)


def token_id(claims: Claims) -> str | None:
    """The `jti`, None if it is absent."""
    value = claims.get("jti")
    if value is not None and not isinstance(value, str):
        raise invalid("The token's jti is not a string.")
    return value


def checked_username(value: object) -> str:
    """A claim as a user name, if it is one that a path could hold."""
    if not isinstance(value, str) or not USERNAME.fullmatch(value):
        raise invalid("The token's user name is malformed.")
    return value


def role_of(claims: Mapping[str, Any]) -> Role:
    """The role in `role`, else the strongest known one in `roles`; `Forbidden` if there is none."""
    names = [claims["role"]] if "role" in claims else claims.get("roles")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        known = [ROLES[name] for name in names if name in ROLES]
        if known:
            return max(known)
    raise Forbidden("The token carries no known role.")
