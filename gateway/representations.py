"""What is sent of a reply: its bytes, their entity tag, and their codings (RFC 9110 section 8).

Each is made once, for everybody who may see the same of the same reply.
"""

import asyncio
import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext

try:
    import brotli  # type: ignore[import-untyped, import-not-found, unused-ignore]
except ImportError:  # the extra `brotli` is not there
    brotli = None

# Below this a coding saves no packet; from the second on, it is worked out in a thread; in bytes.
_WORTHWHILE = 1024
_LARGE = 64 * 1024
# What the bytes in a coding cost beside themselves, in bytes.
_CODED_OVERHEAD = 300
_ITEM = re.compile(r"\s*([\w*!#$%&'+.^`|~-]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.\d{0,3})?)\s*)?")
_ETAG = re.compile(r'(?:W/)?("[^"]*")')


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(body) + packer.flush()


def _brotli(body: bytes) -> bytes:
    return bytes(brotli.compress(body, quality=5))


# In the order of preference where the caller has none.
_CODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": _gzip}
if brotli is not None:
    _CODERS = {"br": _brotli, **_CODERS}


def one_at_a_time(length: int) -> asyncio.Lock | None:
    """What has those who want the same of a body of so many bytes wait for who makes it. Making
    the same of a small one takes no turn of the loop: nobody can come in between.
    """
    return asyncio.Lock() if length >= _LARGE else None


class Room:
    """So many bytes for what is made of one reply."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> bool:
        """Whether so many of them were left; they are taken."""
        if size > self._left:
            return False
        self._left -= size
        return True


class Representation:
    """The bytes of an answer. `dropped` is how many rows of the reply are not in it. Where `room`
    is bounded, codings are kept as long as there is some.
    """

    __slots__ = ("__weakref__", "_coded", "_coding", "body", "dropped", "etag", "room")

    def __init__(self, body: bytes, dropped: int, etag: str) -> None:
        self.body = body
        self.dropped = dropped
        self.etag = etag
        self.room: Room | None = None
        self._coded: dict[str, bytes] | None = None
        self._coding = one_at_a_time(len(body))

    async def coded(self, coding: str) -> bytes:
        """The bytes in a content coding; as they are if that is not shorter."""
        found = self.known(coding)
        if found is None:
            async with self._coding or nullcontext():
                found = self.known(coding)
                if found is None:
                    found = await self._made(coding)
        return found

    def known(self, coding: str) -> bytes | None:
        """The bytes in a coding, if they are there; as they are if that was not shorter."""
        if coding == "identity":
            return self.body
        found = self._coded.get(coding) if self._coded is not None else None
        return self.body if found == b"" else found

    async def chosen(self, accepted: Sequence[str]) -> tuple[str, bytes]:
        """The coding for a caller's `Accept-Encoding` headers, and the bytes in it."""
        if len(self.body) < _WORTHWHILE or not accepted:
            return "identity", self.body
        coding = preferred(accepted)
        body = await self.coded(coding)
        return ("identity" if body is self.body else coding), body

    async def _made(self, coding: str) -> bytes:
        code, large = _CODERS[coding], len(self.body) >= _LARGE
        coded = await asyncio.to_thread(code, self.body) if large else code(self.body)
        if len(coded) >= len(self.body):
            coded = b""
        if self.room is None or self.room.take(len(coded) + _CODED_OVERHEAD):
            self._coded = {**(self._coded or {}), coding: coded}
        return coded or self.body

    def tag(self, coding: str) -> str:
        """The entity tag of the bytes in a coding: other bytes, another strong tag."""
        return self.etag if coding == "identity" else f'{self.etag[:-1]}-{coding}"'


async def represent(body: bytes, dropped: int = 0) -> Representation:
    """The representation of these bytes; its strong entity tag is a digest of them."""
    large = len(body) >= _LARGE
    digest = await asyncio.to_thread(_digest, body) if large else _digest(body)
    return Representation(body, dropped, f'"{digest}"')


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]


def preferred(accepted: Sequence[str]) -> str:
    """The best coding that we have for `Accept-Encoding` headers (RFC 9110 section 12.5.3)."""
    weights: dict[str, float] = {}
    for item in ",".join(accepted).split(","):
        found = _ITEM.fullmatch(item)
        if found is not None:
            weights[found[1].lower()] = min(float(found[2] or 1), 1.0)
    anything = weights.get("*", 0.0)
    best, weight = "identity", 0.0
    for coding in _CODERS:
        offered = weights.get(
            coding, weights.get("x-gzip", anything) if coding == "gzip" else anything
        )
        if offered > weight:
            best, weight = coding, offered
    # Identity is as good as anything unless it is spoken of.
    return best if weight >= weights.get("identity", 0.0) else "identity"


def matches(etag: str, if_none_match: Sequence[str]) -> bool:
    """Whether a caller has this already (RFC 9110 section 13.1.2, weak comparison)."""
    value = ",".join(if_none_match).strip()
    return value == "*" or etag in _ETAG.findall(value)
