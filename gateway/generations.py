"""A number per tag that changes with every write; shared with processes forked later."""

import mmap
import secrets
import zlib
from functools import lru_cache

SLOTS = 1 << 16
# Behind the slots of the tags stands one that is a part of every generation.
_OF_ALL = SLOTS


class Generations:
    """The generations of all tags, in memory that forked processes share.

    Tags share a slot when their hashes meet: that costs a refetch, never a stale reply.
    """

    def __init__(self) -> None:
        self._slots = memoryview(mmap.mmap(-1, (SLOTS + 1) * 8)).cast("Q")

    def of(self, tag: str) -> int:
        """The tag's generation."""
        return int(self._slots[slot_of(tag)] ^ self._slots[_OF_ALL])

    def bump(self, tag: str) -> None:
        """Gives the tag a generation that it never had."""
        self.bump_slot(slot_of(tag))

    def bump_slot(self, slot: int) -> None:
        """Does so for every tag of a slot."""
        self._slots[slot] = secrets.randbits(64)

    def bump_all(self) -> None:
        """Does so for every tag there is."""
        self._slots[_OF_ALL] = secrets.randbits(64)


@lru_cache(maxsize=1024)
def slot_of(tag: str) -> int:
    """Where a tag's generation stands: the same in every gateway."""
    return zlib.crc32(tag.encode()) % SLOTS
