"""Gateways on several machines hear of each other's writes, by way of Redis or Valkey.

A write announces the slots of its tags (`generations`), and every gateway that hears of it takes
what it has kept under them for old. Nothing else travels: no row, no name. What was announced while
a gateway did not listen it has missed; so when it begins to listen it distrusts all that it has
kept, and while it does not it trusts what it has kept for a moment only.

Each process now and then sends itself a message, a beat. When one comes back, everything that was
announced before it was sent has been heard.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from gateway.generations import SLOTS, Generations, slot_of

if TYPE_CHECKING:
    from gateway.redis_link import RedisLink

# Its number changes with the way in which tags are put into slots.
CHANNEL = "ledger-gateway:1"
_BEAT_S = 0.5
# Redis that has not returned a beat for so long is away.
_DEAF_S = 1.5
_RETRY_S = 0.5
# A write waits no longer than this for its announcement to be taken.
_PATIENCE_S = 0.1
EVERYTHING = "*"
_ANNOUNCEMENT = re.compile(r"([0-9a-f]{16}) (\*|[0-9]{1,5}(?: [0-9]{1,5})*)")

Connect = Callable[[str, str], AbstractAsyncContextManager["RedisLink"]]


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a process has written to: slots, or everything if that is None."""

    sender: str
    slots: frozenset[int] | None


def announcement(sender: str, words: Collection[str]) -> str:
    """The announcement of some slots, or of everything, as it travels."""
    return f"{sender} {EVERYTHING if EVERYTHING in words else ' '.join(words)}"


def announced(text: str) -> Announcement:
    """What an announcement says; one that cannot be read may be about anything."""
    found = _ANNOUNCEMENT.fullmatch(text)
    if found is None or found[2] == EVERYTHING:
        return Announcement(found[1] if found else "", None)
    slots = frozenset(int(word) for word in found[2].split(" "))
    return Announcement(found[1], slots if max(slots) < SLOTS else None)


@dataclass(slots=True)
class _Turn:
    """What is announced together: words of an announcement. `told` is set when it was tried."""

    words: set[str] = field(default_factory=set)
    told: asyncio.Event = field(default_factory=asyncio.Event)


class Coherence:
    """One process's part in it. `connect` opens a link that listens to two channels; `trust_s` is
    how long something kept may be used while nothing is heard; `now` is a monotonic clock in
    seconds.
    """

    def __init__(
        self,
        generations: Generations,
        connect: Connect,
        trust_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generations = generations
        self._connect = connect
        self.trust_s = trust_s
        self._now = now
        self._id = secrets.token_hex(8)
        self._beats = f"{CHANNEL}:{self._id}"
        # What this process's predecessor did not get to announce is not known.
        self._turn = _Turn({EVERYTHING})
        self._news = asyncio.Event()
        self._confirmed = float("-inf")
        self._since = now()
        self._trouble: str | None = None

    @property
    def connected(self) -> bool:
        """Whether all that was announced until a moment ago has been heard."""
        return self._now() - self._confirmed < _DEAF_S

    def state(self) -> dict[str, Any]:
        """Whether it is connected, and for how many seconds that has been so. JSON-ready."""
        return {"connected": self.connected, "since_s": round(self._now() - self._since, 3)}

    async def announce(self, tag: str) -> None:
        """Tells the others of a write. Returns when Redis knows of it, and soon in any case."""
        turn = self._turn
        turn.words.add(str(slot_of(tag)))
        self._news.set()
        if self.connected:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await turn.told.wait()

    async def run(self) -> None:
        """Listens and announces, again whenever that has failed, until it is cancelled."""
        while True:
            try:
                async with self._connect(CHANNEL, self._beats) as link:
                    await self._converse(link)
            except Exception as error:
                self._lost(type(error).__name__)
            await asyncio.sleep(_RETRY_S)

    async def _converse(self, link: "RedisLink") -> None:
        # From here on nothing is missed; what was kept before may have been.
        self._generations.bump_all()
        both = [asyncio.create_task(part(link)) for part in (self._speak, self._listen)]
        try:
            over, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            over.pop().result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _speak(self, link: "RedisLink") -> None:
        """Announces what there is as it comes, and sends a beat now and then."""
        due = self._now()
        while True:
            self._news.clear()
            await self._tell(link)
            if self._now() >= due:
                due = self._now() + _BEAT_S
                await link.publish(self._beats, repr(self._now()))
            with suppress(TimeoutError):
                async with asyncio.timeout(due - self._now()):
                    await self._news.wait()

    async def _tell(self, link: "RedisLink") -> None:
        turn, self._turn = self._turn, _Turn()
        try:
            if turn.words:
                await link.publish(CHANNEL, announcement(self._id, turn.words))
        except BaseException:
            self._turn.words |= turn.words
            raise
        finally:
            turn.told.set()

    async def _listen(self, link: "RedisLink") -> None:
        began = self._now()
        while True:
            left = max(self._confirmed, began) + _DEAF_S - self._now()
            async with asyncio.timeout(left):
                channel, text = await link.receive()
            if channel == self._beats:
                self._confirm(float(text))
            else:
                self._heed(announced(text))

    def _heed(self, said: Announcement) -> None:
        if said.sender == self._id:
            return
        if said.slots is None:
            self._generations.bump_all()
        for slot in said.slots or ():
            self._generations.bump_slot(slot)

    def _confirm(self, sent: float) -> None:
        if not self.connected:
            self._since, self._trouble = self._now(), None
            structlog.get_logger().info("coherence established")
        self._confirmed = sent

    def _lost(self, trouble: str) -> None:
        if self._confirmed > float("-inf"):
            self._confirmed, self._since = float("-inf"), self._now()
        if trouble != self._trouble:
            self._trouble = trouble
            structlog.get_logger().warning("coherence lost", error=trouble)
