"""Several processes on one port: the parent forks and watches them, and never serves."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NoReturn

import structlog

# A worker that dies younger than this will not live longer the next time.
_INFANCY_S = 2.0
_STOPS = (signal.SIGTERM, signal.SIGINT)
_AWAITED = (*_STOPS, signal.SIGCHLD, signal.SIGALRM)
# When there was no room for a worker, it is tried again after so many seconds.
_RETRY_S = 1


class Workers:
    """Keeps `count` processes alive that each run `work`; its return value is their exit status.

    `bury` is told the id of each that has died.
    """

    def __init__(
        self, count: int, work: Callable[[], int], bury: Callable[[int], None] = lambda _: None
    ) -> None:
        self._count = count
        self._work = work
        self._bury = bury
        self._born: dict[int, float] = {}
        self._stopping = False
        # Only the parent keeps the end that is written to: a worker reads the end of it when the
        # parent is gone, however it went.
        self._leash = (-1, -1)

    def run(self) -> int:
        """Until SIGTERM or SIGINT, which every worker gets too. The exit status of it all."""
        # Blocked and waited for: no signal comes between a fork and the note of it, none is lost.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        self._leash = os.pipe()
        for _ in range(self._count):
            self._fork()
        status = 0
        while self._born or not self._stopping:
            number = signal.sigwait(_AWAITED)
            if number in _STOPS:
                self._stop(number)
            for process, code in self._dead():
                status = max(status, self._buried(process, code))
            self._replace()
        return status

    def _replace(self) -> None:
        while len(self._born) < self._count and not self._stopping:
            try:
                self._fork()
            except OSError as error:
                structlog.get_logger().error("worker not started", error=type(error).__name__)
                signal.alarm(_RETRY_S)
                return

    def _fork(self) -> None:
        process = os.fork()
        if process == 0:
            self._live()
        self._born[process] = time.monotonic()

    def _live(self) -> NoReturn:
        for number in _AWAITED:
            signal.signal(number, signal.SIG_DFL)
        reading, writing = self._leash
        os.close(writing)
        # Begun while the signals are blocked, so that none is ever delivered to it.
        threading.Thread(target=_follow, args=(reading,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        status = 1
        try:
            status = self._work()
        except BaseException:
            with suppress(OSError):
                traceback.print_exc()
        # Nothing may be raised from here: the worker would go on as the supervisor.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)

    def _dead(self) -> Iterator[tuple[int, int]]:
        """The workers that have died, each with its exit code."""
        for process in list(self._born):
            found, code = os.waitpid(process, os.WNOHANG)
            if found:
                yield process, os.waitstatus_to_exitcode(code)

    def _buried(self, process: int, code: int) -> int:
        """What a dead worker leaves behind; nobody is replaced if it died in infancy."""
        born = self._born.pop(process)
        self._bury(process)
        if self._stopping:
            # Told to stop before it listened for that, it died of the signal: as good as an exit.
            return 0 if -code in _STOPS else abs(code)
        structlog.get_logger().error("worker died", process=process, exit_code=code)
        if time.monotonic() - born < _INFANCY_S:
            self._stop(signal.SIGTERM)
            return 1
        return 0

    def _stop(self, number: int) -> None:
        self._stopping = True
        for process in self._born:
            os.kill(process, number)


def _follow(leash: int) -> None:
    """Stops this process when its parent is gone: nobody would, and it would serve for ever."""
    os.read(leash, 1)
    os.kill(os.getpid(), signal.SIGTERM)
