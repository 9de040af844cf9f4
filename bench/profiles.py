"""Where the time of the gateway goes: samples of its Python frames, by py-spy."""

import subprocess
import threading
from collections import Counter
from collections.abc import Callable

from bench.figures import Profile, Result
from bench.processes import BenchError, Server, cpu_split, on_cores
from bench.stage import Stage
from bench.wrk import Load

_RATE_HZ = 250
_SECONDS = 3
_SHOWN = 12
_LEAST = 0.01
# A thread that has nothing to do.
_IDLE = "_worker (concurrent/futures/thread.py:"


def profile(stage: Stage, result: Result, server: Server, load: Load) -> None:
    """Loads a server once more, outside of the rounds, and notes what it does."""
    if stage.profiling:
        record(stage, result, server, lambda: stage.shot(server, load, _SECONDS + 1))


def record(stage: Stage, result: Result, server: Server, work: Callable[[], object]) -> None:
    """Notes what a server does while it is given some work."""
    worker = threading.Thread(target=work)
    before = cpu_split(server.pids)
    with on_cores(stage.loading):
        worker.start()
        collapsed = _sampled(stage, server.popen.pid)
    worker.join()
    user, kernel = (after - at for after, at in zip(cpu_split(server.pids), before, strict=True))
    functions, packages = shares(collapsed, _function), shares(collapsed, _package)
    result.profile = Profile(kernel / ((user + kernel) or 1), packages, functions[:_SHOWN])


def _sampled(stage: Stage, pid: int) -> str:
    target = stage.folder / "profile.txt"
    command = [str(stage.tools.py_spy), "record", "--pid", str(pid), "--rate", str(_RATE_HZ)]
    command += ["--duration", str(_SECONDS), "--format", "raw", "--output", str(target)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS + 30,
    )
    if done.returncode:
        raise BenchError(f"py-spy failed; it may need to run as root:\n{done.stdout}")
    return target.read_text()


def shares(collapsed: str, name_of: Callable[[str], str]) -> list[tuple[str, float]]:
    """What the innermost frames belong to, by the part of the samples, most first."""
    counts: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        innermost = stack.rpartition(";")[2]
        if not innermost.startswith(_IDLE):
            counts[name_of(innermost)] += int(count)
    total = counts.total()
    found = ((name, count / total) for name, count in counts.most_common())
    return [(name, share) for name, share in found if share >= _LEAST]


def _function(frame: str) -> str:
    """`name (folder/file.py:12)` without the line: the parts of a function belong together."""
    return frame.rpartition(":")[0] + ")" if frame.endswith(")") else frame


def _package(frame: str) -> str:
    """The outermost folder of the file, or the file of a module that stands alone."""
    return frame.rpartition(" (")[2].partition("/")[0].partition(":")[0].rstrip(")")
