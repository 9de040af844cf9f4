"""Measures how a long list is streamed: speed, first byte, and how much memory the gateway takes.

Starts a sandbox ledger with generated rows and a gateway before it, each a process of its own on
loopback, and reads `GET /ledger` without a limit as an admin and as a user who owns a tenth of the
rows. In a third run the ledger is killed as soon as the first byte has come: that the answer then
breaks off proves that the last page had not been fetched, and it must not look complete.

Exit status 1 if the gateway's memory grew by 32 MiB or more, or if a proof failed. Linux only: the
memory is read from /proc.
"""

import argparse
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_GROWTH_MIB = 32.0
# A first byte that comes later than this part of the whole time was not streamed.
MAX_FIRST_BYTE = 0.5
# Of a list of a few pages, the first is a good part.
_MANY_ROWS = 10_000
_ROW_MARK = b'"id":'
_READ_BYTES = 1 << 16
_PATIENCE_S = 60.0

Environment = dict[str, str]


@dataclass(frozen=True)
class Figures:
    """One run. Times in seconds; memory in MiB, resident before and at its peak."""

    who: str
    rows: int
    size: int
    seconds: float
    first_byte: float
    before: float
    peak: float

    @property
    def growth(self) -> float:
        """How much more memory the gateway held at its peak than before."""
        return self.peak - self.before


@dataclass(frozen=True)
class Process:
    """A process started here, and the port it listens on."""

    popen: "subprocess.Popen[bytes]"
    port: int

    def memory(self, name: str) -> float:
        """A size from /proc/<pid>/status (VmRSS, VmHWM), in MiB."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in status.splitlines())
        return int(lines[name].split()[0]) / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything and prints a table; the exit status."""
    parser = argparse.ArgumentParser(description="Measure the streaming of a long list.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: 1000000")
    rows: int = parser.parse_args(arguments).rows
    environment = _environment()
    admin = _measured(environment, rows, "admin", "admin")
    alice = _measured(environment, rows, "alice", "user")
    print(_table([admin, alice]))
    received = _broken_off(environment, rows)
    how = "complete" if received is None else f"broken off after {len(received)} bytes"
    print(f"\nthe answer, its ledger killed at the first byte: {how}")
    problems = [
        *_problems(admin, rows),
        *_problems(alice, -(-rows // 10)),
        *_problems_of_the_break(received),
    ]
    print("\n".join(f"FAILED: {problem}" for problem in problems) or "all proofs hold")
    return 1 if problems else 0


def _problems(figures: Figures, expected: int) -> Iterator[str]:
    if figures.rows != expected:
        yield f"{figures.who} got {figures.rows} rows and not {expected}"
    if figures.growth >= MAX_GROWTH_MIB:
        yield f"the gateway grew by {figures.growth:.1f} MiB for {figures.who}"
    many = figures.rows >= _MANY_ROWS
    if many and figures.first_byte > figures.seconds * MAX_FIRST_BYTE:
        yield f"the first byte for {figures.who} came when most of the time was over"


def _problems_of_the_break(received: bytes | None) -> Iterator[str]:
    if received is None:
        yield "the whole list had been fetched before its first byte was sent"
        return
    try:
        json.loads(received)
    except ValueError:
        return
    yield "what had come when the ledger was killed is a whole JSON document"


def _table(runs: Sequence[Figures]) -> str:
    """A line per run; memory in MiB."""
    head = ("reader", "rows", "MB", "s", "MB/s", "first byte ms", "RSS before", "peak", "growth")
    lines = [head, *(_cells(run) for run in runs)]
    return "\n".join("".join(f"{cell:>14}" for cell in line) for line in lines)


def _cells(run: Figures) -> tuple[str, ...]:
    megabytes, first_byte_ms = run.size / 1e6, run.first_byte * 1000
    figures = (megabytes / run.seconds, first_byte_ms, run.before, run.peak, run.growth)
    size = (str(run.rows), f"{megabytes:.1f}", f"{run.seconds:.3f}")
    return (run.who, *size, *(f"{figure:.1f}" for figure in figures))


# The three runs.


def _measured(environment: Environment, rows: int, username: str, role: str) -> Figures:
    """A whole list, counted and not kept."""
    token = _token(environment, username, role)
    with _both(environment, rows) as (_, gateway):
        before = gateway.memory("VmRSS")
        started = time.perf_counter()
        with _asked(gateway, username, token) as response:
            first = response.read(1)
            first_byte = time.perf_counter() - started
            found, size = _counted(response, first)
        seconds = time.perf_counter() - started
        peak = gateway.memory("VmHWM")
    return Figures(username, found, size, seconds, first_byte, before, peak)


def _counted(response: http.client.HTTPResponse, tail: bytes) -> tuple[int, int]:
    """How many rows and bytes come, those in `tail` already among them."""
    rows, size = 0, len(tail)
    while chunk := response.read1(_READ_BYTES):
        size += len(chunk)
        chunk = tail + chunk
        rows += chunk.count(_ROW_MARK)
        # A mark may be cut in two; a tail shorter than it holds none that was counted.
        tail = chunk[-len(_ROW_MARK) + 1 :]
    return rows, size


def _broken_off(environment: Environment, rows: int) -> bytes | None:
    """What came of a list whose ledger was killed at the first byte; None if all of it did."""
    token = _token(environment, "admin", "admin")
    with (
        _both(environment, rows) as (ledger, gateway),
        _asked(gateway, "admin", token) as response,
    ):
        # No more is read yet: the gateway can send ahead what the kernel's buffers hold, not all.
        received = response.read(1)
        ledger.popen.kill()
        ledger.popen.wait()
        try:
            while chunk := response.read1(_READ_BYTES):
                received += chunk
        except (http.client.IncompleteRead, ConnectionError):
            return received
    return None


@contextmanager
def _asked(gateway: Process, username: str, token: str) -> Iterator[http.client.HTTPResponse]:
    """The answer to `GET /ledger`, its body still to be read."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=_PATIENCE_S)
    headers = {"Authorization": f"Bearer {token}", "username": username}
    try:
        connection.request("GET", "/ledger", headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"the gateway answered {response.status}: {response.read(500)!r}")
        yield response
    finally:
        connection.close()


# Processes.


def _environment() -> Environment:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return kept | {
        "GATEWAY_AUTH__SECRET": secrets.token_hex(32),
        "GATEWAY_LEDGER__TOKEN": secrets.token_hex(32),
        "GATEWAY_LEDGER__BASE_URL": "http://127.0.0.1",
    }


@contextmanager
def _both(environment: Environment, rows: int) -> Iterator[tuple[Process, Process]]:
    """A sandbox ledger and a gateway before it, both answering."""
    with ExitStack() as stack:
        port = _free_port()
        command = ["sandbox", "--port", str(port), "--rows", str(rows)]
        ledger = stack.enter_context(_running(command, environment, port, "/health"))
        port = _free_port()
        settings = {
            "GATEWAY_LEDGER__BASE_URL": f"http://127.0.0.1:{ledger.port}",
            "GATEWAY_SERVER__PORT": str(port),
            "GATEWAY_OPS__PORT": str(_free_port()),
            "GATEWAY_SERVER__DRAIN_S": "0",
        }
        gateway = _running(["serve"], environment | settings, port, "/health/ready")
        yield ledger, stack.enter_context(gateway)


@contextmanager
def _running(
    command: Sequence[str], environment: Environment, port: int, health: str
) -> Iterator[Process]:
    """A command of the gateway's that answers on a port; it is ended on leaving."""
    popen = subprocess.Popen(
        [sys.executable, "-m", "gateway", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        _await_answer(popen, port, health)
        yield Process(popen, port)
    finally:
        popen.kill()
        popen.wait()


def _await_answer(popen: "subprocess.Popen[bytes]", port: int, path: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and popen.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.02)
        finally:
            connection.close()
    raise RuntimeError(f"nothing of ours answers on port {port}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _token(environment: Environment, username: str, role: str) -> str:
    command = [sys.executable, "-m", "gateway", "token", "--username", username, "--role", role]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
