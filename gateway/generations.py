"""A number per tag that changes with every write; shared with processes forked later."""

import mmap
import secrets
import zlib

_SLOTS = 1 << 16


class Generations:
    """The generations of all tags, in memory that forked processes share.

    Tags share a slot when their hashes meet: that costs a refetch, never a stale reply.
    """

    def __init__(self) -> None:
        self._slots = memoryview(mmap.mmap(-1, _SLOTS * 8)).cast("Q")

    def of(self, tag: str) -> int:
        """The tag's generation."""
        return int(self._slots[_slot(tag)])

    def bump(self, tag: str) -> None:
        """Gives the tag a generation that it never had."""
        self._slots[_slot(tag)] = secrets.randbits(64)


def _slot(tag: str) -> int:
    return zlib.crc32(tag.encode()) % _SLOTS
