"""Time that passes only when everybody waits, and then at once; and something in Redis' place."""

import asyncio
import functools
import inspect
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.coherence import CHANNEL


class _Selector(selectors.DefaultSelector):
    """Does not wait: the time that it would have waited has passed."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for ever"
        self.passed += max(timeout, 0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._passed = _Selector()
        super().__init__(self._passed)

    def time(self) -> float:
        return 1000.0 + self._passed.passed


Test = Callable[..., Coroutine[Any, Any, None]]


def in_no_time(test: Test) -> Callable[..., None]:
    """Runs a test in a time of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(test(*args, **kwargs))

    assert not inspect.iscoroutinefunction(run)
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


class Lost(Exception):
    """The link is over."""


@dataclass
class Link:
    """One process's link to the hub."""

    hub: "Hub"
    channels: tuple[str, ...]
    queue: asyncio.Queue[tuple[str, str] | Lost] = field(default_factory=asyncio.Queue)

    async def publish(self, channel: str, text: str) -> None:
        await self.hub.take(self, channel, text)

    async def receive(self) -> tuple[str, str]:
        message = await self.queue.get()
        if isinstance(message, Exception):
            raise message
        return message


@dataclass
class Hub:
    """In the place of Redis. `said` is what was published, without the beats."""

    down: Exception | None = None
    mute: Exception | None = None
    stalled: bool = False
    delay_s: float = 0.0
    takes: asyncio.Event = field(default_factory=asyncio.Event)
    links: list[Link] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    attempts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.takes.set()

    @asynccontextmanager
    async def connect(self, *channels: str) -> AsyncIterator[Any]:
        self.attempts.append(now())
        if self.down is not None:
            raise self.down
        link = Link(self, channels)
        self.links.append(link)
        try:
            yield link
        finally:
            self.links.remove(link)

    async def take(self, link: Link, channel: str, text: str) -> None:
        if self.stalled:
            await asyncio.Event().wait()
        await self.takes.wait()
        if self.mute is not None:
            raise self.mute
        if channel == CHANNEL:
            self.said.append(text)
        for listener in self.links:
            if channel in listener.channels:
                self.deliver(listener, channel, text)

    def deliver(self, listener: Link, channel: str, text: str) -> None:
        asyncio.get_running_loop().call_later(
            self.delay_s, listener.queue.put_nowait, (channel, text)
        )

    def drop(self) -> None:
        """Every link is over."""
        for link in self.links:
            link.queue.put_nowait(Lost())
