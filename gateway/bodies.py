"""What comes with a write: its conditions, media type, JSON document and idempotency key."""

import re

from multidict import CIMultiDictProxy

from gateway.endpoints import Endpoint
from gateway.errors import (
    InvalidIdempotencyKey,
    InvalidRequest,
    MalformedBody,
    UnsupportedMediaType,
)
from gateway.exchange import Ask
from schemas import strict_json
from schemas.fields import IDEMPOTENCY_KEY
from schemas.violations import Violations

_MEDIA_TYPE = re.compile(
    r'application/json[ \t]*(;[ \t]*charset="?utf-?8"?[ \t]*)?;?', re.IGNORECASE
)
_CONDITIONS = ("If-Match", "If-Unmodified-Since")


def check_unconditional(headers: CIMultiDictProxy[str]) -> None:
    """Refuses a write that must not meet a change it does not know of (RFC 9110 section 13): the
    tags are the gateway's, and only the ledger could compare and write in one step. Raises
    `InvalidRequest`.
    """
    if any(name in headers for name in _CONDITIONS):
        raise InvalidRequest("A write cannot depend on a condition here; nothing was changed.")


async def checked_body(endpoint: Endpoint, ask: Ask) -> bytes | None:
    """The request body, byte for byte as it was sent, once it is known to be right; None if the
    endpoint takes none. Raises `UnsupportedMediaType`, `MalformedBody` or the endpoint's refusal.
    """
    if endpoint.check_body is None:
        return None
    _check_media_type(ask.headers)
    body = await ask.read_body()
    try:
        endpoint.check_body(strict_json.parse(body))
    except strict_json.DuplicateKey as error:
        raise endpoint.refuse_duplicate(error.key) from error
    except strict_json.MalformedJSON as error:
        raise MalformedBody("The body is not a JSON document.") from error
    except Violations as violations:
        raise endpoint.refuse(violations) from violations
    return body


def idempotency_key(headers: CIMultiDictProxy[str], *, required: bool) -> str | None:
    """The one `Idempotency-Key`. Raises `InvalidIdempotencyKey`."""
    keys = headers.getall("Idempotency-Key", [])
    if not keys and not required:
        return None
    if len(keys) != 1 or not IDEMPOTENCY_KEY.fullmatch(keys[0]):
        raise InvalidIdempotencyKey(
            "One Idempotency-Key header of 1 to 255 visible ASCII characters is needed."
        )
    return keys[0]


def _check_media_type(headers: CIMultiDictProxy[str]) -> None:
    types = headers.getall("Content-Type", [])
    codings = [coding.lower() for coding in headers.getall("Content-Encoding", ["identity"])]
    if len(types) != 1 or not _MEDIA_TYPE.fullmatch(types[0].strip()):
        raise UnsupportedMediaType("The body must be application/json in UTF-8.")
    if codings != ["identity"]:
        raise UnsupportedMediaType("The body must not be compressed.")
