"""Starts servers on chosen cores, knows what they use, and ends what it started."""

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Cores = frozenset[int]
HOST = "127.0.0.1"
PATIENCE_S = 20.0
_GOODBYE_S = 5.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """Why it cannot be measured, for a person to read."""


@dataclass(frozen=True)
class Server:
    """A process started here that listens on a port."""

    name: str
    popen: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://{HOST}:{self.port}"

    @property
    def pids(self) -> list[int]:
        """The process and all that descend from it."""
        return list(family(self.popen.pid))

    def cpu_seconds(self) -> float:
        """Time on a core until here, of it and its descendants."""
        return sum(cpu_split(self.pids))

    def memory(self) -> float:
        """Resident memory, in MiB."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in status.splitlines())
        return int(lines["VmRSS"].split()[0]) / 1024


def cpu_split(pids: Sequence[int]) -> tuple[float, float]:
    """Seconds on a core, in user code and in the kernel."""
    user = kernel = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name stands in brackets and may hold anything.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user += int(fields[11])
            kernel += int(fields[12])
    return user * _TICK_S, kernel * _TICK_S


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in listing.read_text().split():
                yield from family(int(child))


@contextmanager
def on_cores(cores: Cores) -> Iterator[None]:
    """What is started within runs on these cores, and its children too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    cores: Cores,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    health: str = "/",
) -> Iterator[Server]:
    """A server that answers; it and its children are ended on leaving."""
    log = folder / f"{name}.log"
    # Appended to, so that it can be emptied while it is written.
    with log.open("ab") as output, on_cores(cores):
        popen = spawn(command, cwd or folder, output, subprocess.STDOUT, environment)
    server = Server(name, popen, port, log)
    try:
        await_answer(server, health)
        yield server
    finally:
        end(popen)


def spawn(
    command: Sequence[str],
    cwd: Path,
    stdout: int | IO[bytes],
    stderr: int,
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Starts a process in a session of its own, which is told to end if this one is killed."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end(popen: "subprocess.Popen[bytes]") -> None:
    """Asks it to end, and after a while makes it; its session was made for it alone."""
    popen.terminate()
    try:
        popen.wait(_GOODBYE_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)


def await_answer(server: Server, path: str, interval: float = 0.01) -> None:
    """Returns at the first answer that is not an error of the server's own."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if server.popen.poll() is not None:
            break
        with suppress(OSError, http.client.HTTPException):
            if ask(server.port, path)[0] < 500:
                return
        time.sleep(interval)
    told = server.log.read_text(errors="replace")[-2000:]
    raise BenchError(f"{server.name} does not answer on port {server.port}:\n{told}")


def ask(port: int, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of one answer."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()


def whole_answer(port: int, path: str, headers: Mapping[str, str]) -> bytes:
    """The head of one answer and its body."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        lines = [f"HTTP/1.1 {response.status} {response.reason}"]
        lines += [f"{name}: {value}" for name, value in response.getheaders()]
        return "\r\n".join([*lines, "", ""]).encode() + response.read()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
