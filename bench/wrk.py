"""Runs wrk and reads what it says."""

import json
import re
import resource
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Shot
from bench.processes import HOST, BenchError, Cores, Server, on_cores

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("requests.lua")
# Where a request shall have another trace every time.
TRACE_MARK = "{trace}"


@dataclass(frozen=True)
class Load:
    """What is asked, again and again: one URL with headers, or the prepared heads of a file."""

    path: str
    headers: Mapping[str, str]
    script_data: Path | None = None

    def command(self, server: Server, seconds: int) -> list[str]:
        """wrk with one thread, so that it fits on one core."""
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s"]
        if self.script_data is not None:
            return [*command, "-s", str(_SCRIPT), server.url, "--", str(self.script_data)]
        for name, value in self.headers.items():
            command += ["-H", f"{name}: {value}"]
        return [*command, server.url + self.path]


def shoot(load: Load, server: Server, seconds: int, cores: Cores) -> Shot:
    """Answers per second, and what it took of the cores."""
    served, loaded = server.cpu_seconds(), _children_seconds()
    with on_cores(cores):
        done = subprocess.run(
            load.command(server, seconds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds + 30,
        )
    if done.returncode:
        raise BenchError(f"wrk failed at {server.name}:\n{done.stdout}")
    served, loaded = server.cpu_seconds() - served, _children_seconds() - loaded
    return Shot(rate(done.stdout, server.name), served / seconds, loaded / seconds)


def _children_seconds() -> float:
    """Time on a core of all children that have ended: of those, wrk is the only one in between."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rate(output: str, name: str) -> float:
    """Answers per second from what wrk printed; a run with wrong answers counts for nothing."""
    for complaint in (r"Non-2xx or 3xx responses: \d+", r"Socket errors: .*"):
        found = re.search(complaint, output)
        if found:
            raise BenchError(f"{name} did not answer as it should: {found[0]}")
    found = re.search(r"^Requests/sec:\s+([\d.]+)$", output, re.MULTILINE)
    if found is None or float(found[1]) == 0:
        raise BenchError(f"wrk got no answer from {name}:\n{output}")
    return float(found[1])


def head(path: str, headers: Mapping[str, str]) -> str:
    """The bytes of a request."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""])


def prepared(path: Path, heads: Sequence[str], order: Sequence[int]) -> Load:
    """A load of several heads in a given order (of their indices), written where wrk finds it.

    A head may hold `TRACE_MARK` once, which is then another trace in every request.
    """
    parts = [[json.dumps(part) for part in one.split(TRACE_MARK)] for one in heads]
    texts = ", ".join("{" + ", ".join(part) + "}" for part in parts)
    numbers = ", ".join(str(index + 1) for index in order)
    path.write_text(f"heads = {{{texts}}}\norder = {{{numbers}}}\n")
    return Load("/", {}, path)
