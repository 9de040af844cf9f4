"""Where the time of the gateway goes: samples of its Python frames, by py-spy."""

import subprocess
import threading
from collections import Counter
from collections.abc import Callable

from bench.figures import Result
from bench.processes import BenchError, Server, cpu_split, on_cores
from bench.stage import Stage
from bench.wrk import Load

_RATE_HZ = 250
_SECONDS = 3
_SHOWN = 12


def profile(stage: Stage, result: Result, what: str, server: Server, load: Load) -> None:
    """Loads a server once more, outside of the rounds, and notes what it does."""
    if stage.profiling:
        record(stage, result, what, server, lambda: stage.shot(server, load, _SECONDS + 1))


def record(
    stage: Stage, result: Result, what: str, server: Server, work: Callable[[], object]
) -> None:
    """Notes what a server does while it is given some work."""
    target = stage.folder / "profile.txt"
    command = [str(stage.tools.py_spy), "record", "--pid", str(server.popen.pid)]
    command += ["--rate", str(_RATE_HZ), "--duration", str(_SECONDS), "--format", "raw"]
    worker = threading.Thread(target=work)
    before = cpu_split(server.pids)
    with on_cores(stage.loading):
        worker.start()
        done = subprocess.run(
            [*command, "--output", str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS + 30,
        )
    worker.join()
    if done.returncode:
        raise BenchError(f"py-spy failed; it may need to run as root:\n{done.stdout}")
    user, kernel = (after - at for after, at in zip(cpu_split(server.pids), before, strict=True))
    shares = [("(the kernel's part of its time)", kernel / ((user + kernel) or 1))]
    result.profiles[what] = shares + by_function(target.read_text())[:_SHOWN]


def by_function(collapsed: str) -> list[tuple[str, float]]:
    """Functions by the part of the samples in which they were the innermost, most first."""
    counts: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[_function(stack.rpartition(";")[2])] += int(count)
    total = counts.total()
    return [(name, count / total) for name, count in counts.most_common()]


def _function(frame: str) -> str:
    """`name (folder/file.py:12)` without the line: the parts of a function belong together."""
    name, _, place = frame.partition(" (")
    file = "/".join(place.rstrip(")").rpartition(":")[0].split("/")[-2:])
    return f"{name} ({file})" if file else frame
