"""Two workers over one ledger, and all that can come to pass with them, one step at a time.

Nothing is left to the clock or to the loop: a schedule is a list of choices, each run from the
beginning, and all of them are run. The ledger's state is a number that each write raises by one. It
tells a reader the number at the moment it is asked: a reply can be no older.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gateway.cache import CachedLedger
from gateway.calls import LedgerCall, LedgerReply
from gateway.config import Cache
from gateway.errors import LedgerTimeout
from gateway.freshness import NO_WISHES, Lifetime, Wishes
from gateway.generations import Generations
from gateway.kept import Found, Kept, Outcome

TAG = "ledger"
TTL = 10.0
ROWS = Lifetime(TTL, max_stale_s=50.0)
READ = LedgerCall("GET", "/ledger", (), "alice", "r-1")
WRITE = LedgerCall("POST", "/ledger", (), "root", "r-2", b"{}", "key-1")
SETTINGS = Cache(True, 1 << 20, rates_ttl_s=TTL, ledger_ttl_s=TTL, max_stale_s=0.0)


class Loop(asyncio.BaseEventLoop):
    """An event loop that goes on when it is told to, as far as it can."""

    def __init__(self) -> None:
        super().__init__()
        # A worker that dies leaves tasks behind, and nobody hears of it.
        self.set_exception_handler(lambda _loop, _context: None)

    def go_on(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        asyncio._set_running_loop(self)
        try:
            while ready:
                ready.popleft()._run()
        finally:
            asyncio._set_running_loop(None)


@dataclass(eq=False)
class Asked:
    """One question to the ledger: whose, when, and what it will be answered."""

    worker: "Worker"
    at: int
    version: int
    reply: asyncio.Future[LedgerReply]


@dataclass(eq=False)
class Worker:
    """A process: a cache, a loop, and perhaps an end."""

    cached: CachedLedger
    loop: Loop = field(default_factory=Loop)
    alive: bool = True
    learned: Kept | None = None

    def begin(self, work: Any, done: Callable[[asyncio.Task[Any]], None]) -> None:
        """Goes on with some work as far as it can."""
        self.loop.create_task(work).add_done_callback(done)
        self.loop.go_on()


@dataclass(frozen=True)
class Reader:
    """A read on a worker; `shortcut` goes by an entry that was used before, if it is good."""

    worker: int
    wish: Wishes = NO_WISHES
    shortcut: bool = False


@dataclass(frozen=True)
class Writer:
    """A write on a worker: it is sent, carried out, answered."""

    worker: int


@dataclass(frozen=True)
class Scenario:
    """What comes to pass, in any order. `passes` is how far the clock is put on, if it is; `dies`
    names a worker; where the ledger is `failing` each of its answers may be a failure instead.
    Where it is `filled`, both workers have a reply before it begins.
    """

    parts: tuple[Reader | Writer, ...]
    passes: float | None = None
    dies: int | None = None
    failing: bool = False
    lifetime: Lifetime = ROWS
    filled: bool = False


@dataclass(eq=False)
class Write:
    """A write: the state that it led to, when it was sent and when its sender was told."""

    worker: Worker
    sent: int = 0
    version: int = 0
    told: int | None = None
    asked: Asked | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """Something that may come to pass; by a worker, if it is one's."""

    name: str
    take: Callable[[], None]
    worker: "Worker | None" = None


class World:
    """One run of a scenario: two workers over one ledger and the same generations."""

    def __init__(self, scenario: Scenario, kind: type[CachedLedger]) -> None:
        self.scenario = scenario
        self.now, self.at, self.version = 0.0, 0, 0
        self.asked: list[Asked] = []
        self.writes: list[Write] = []
        self.history: list[str] = []
        self.given: list[tuple[int, int]] = []
        self.violation: str | None = None
        generations = Generations()
        self.workers = [
            Worker(kind(self, SETTINGS, generations, now=lambda: self.now))  # type: ignore[arg-type]
            for _ in range(2)
        ]
        if scenario.filled:
            self._read_all()
        # Each is a list of steps that come in this order.
        self._left = [self._steps(number, part) for number, part in enumerate(scenario.parts)]
        if scenario.passes is not None:
            self._left.append([Step("time passes", self._pass)])
        if scenario.dies is not None:
            self._left.append([Step(f"{scenario.dies} dies", self._die)])

    async def send(self, call: LedgerCall) -> LedgerReply:
        """The ledger, asked by the cache of the worker that is going on; answers when it is let."""
        loop = asyncio.get_running_loop()
        worker = next(worker for worker in self.workers if worker.loop is loop)
        asked = Asked(worker, self.at, self.version, loop.create_future())
        if call.is_write:
            self.writes[-1].asked = asked
        else:
            self.asked.append(asked)
        return await asked.reply

    def choices(self) -> list[Step]:
        """What can come next."""
        found = [steps[0] for steps in self._left if steps]
        for number, asked in enumerate(self.asked):
            if not asked.reply.done():
                answer = partial(self._answer, asked)
                found.append(Step(f"answer {number}", answer, asked.worker))
                if self.scenario.failing:
                    found.append(Step(f"fail {number}", partial(self._fail, asked), asked.worker))
        return [step for step in found if step.worker is None or step.worker.alive]

    def take(self, step: Step) -> None:
        """Lets it come to pass."""
        self.at += 1
        self.history.append(step.name)
        step.take()
        for steps in self._left:
            if steps and steps[0] is step:
                del steps[0]

    def end(self) -> None:
        """A last read on each worker that is left; then all is let go."""
        self.at += 1
        self._read_all()
        for worker in self.workers:
            worker.loop.close()

    def _read_all(self) -> None:
        """A read on each worker, answered at once."""
        for worker in self.workers:
            if worker.alive:
                self._read(worker, Reader(0))
        for asked in self.asked:
            if asked.worker.alive and not asked.reply.done():
                self._answer(asked)

    def _steps(self, number: int, part: Reader | Writer) -> list[Step]:
        worker = self.workers[part.worker]
        if isinstance(part, Reader):
            read = partial(self._read, worker, part)
            return [Step(f"read {number} on {part.worker}", read, worker)]
        write = Write(worker)
        return [
            Step(f"write {number} on {part.worker}", partial(self._write, write), worker),
            # What was sent is carried out, whatever has become of the sender.
            Step(f"carry out {number}", partial(self._carry_out, write)),
            Step(f"tell {number}", partial(self._tell, write), worker),
        ]

    def _read(self, worker: Worker, reader: Reader) -> None:
        learned = worker.learned
        if reader.shortcut and learned and worker.cached.age_if_fresh(learned) is not None:
            value: Any = learned.reading.value
            self._check(self.at, value)
            return
        reading = worker.cached.read(READ, _parse, TAG, self.scenario.lifetime, reader.wish)
        worker.begin(reading, partial(self._heard, worker, self.at))

    def _heard(self, worker: Worker, begun: int, task: asyncio.Task[Found[Any]]) -> None:
        if task.exception() is None:
            found = task.result()
            worker.learned = found.kept or worker.learned
            assert found.reading.value is not None
            # One that is old, and given because the ledger fails, must be good as it is given.
            since = self.at if found.outcome is Outcome.STALE else begun
            self._check(since, found.reading.value)

    def _write(self, write: Write) -> None:
        write.sent = self.at
        self.writes.append(write)

        def told(_task: object) -> None:
            write.told = self.at

        write.worker.begin(write.worker.cached.write(WRITE, TAG), told)

    def _carry_out(self, write: Write) -> None:
        self.version += 1
        write.version = self.version

    def _tell(self, write: Write) -> None:
        assert write.asked is not None
        write.asked.reply.set_result(LedgerReply(201, b""))
        write.worker.loop.go_on()

    def _answer(self, asked: Asked) -> None:
        asked.reply.set_result(LedgerReply(200, f"{asked.version} {asked.at}".encode()))
        asked.worker.loop.go_on()

    def _fail(self, asked: Asked) -> None:
        asked.reply.set_exception(LedgerTimeout("late"))
        asked.worker.loop.go_on()

    def _pass(self) -> None:
        self.now += self.scenario.passes or 0.0

    def _die(self) -> None:
        """At once: what it was doing is not even cancelled."""
        self.workers[self.scenario.dies or 0].alive = False

    def _check(self, begun: int, value: tuple[int, int]) -> None:
        """What must hold of each read, by when it began and what it got."""
        version, said_at = value
        self.given.append((begun, version))
        for write in self.writes:
            if write.told is not None and write.told < begun and version < write.version:
                self._violated("a read after an acknowledged write got an older state")
            # Acknowledged or not, it may have been carried out: who reads after it was sent is told
            # what the ledger says after that.
            if said_at < write.sent < begun:
                self._violated("a read after a write was sent got what was said before it")

    def _violated(self, what: str) -> None:
        self.violation = self.violation or f"{what}: {', '.join(self.history)}"


async def _parse(body: bytes) -> tuple[int, int]:
    version, at = body.split()
    return int(version), int(at)
