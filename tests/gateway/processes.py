"""Starts commands as an operator would, each in a process of its own, and waits for what they say.

Nothing waits for a stretch of time: always for a line, an answer or an end, and never for ever.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE_S = 15.0
_reserved: list[socket.socket] = []


class Running:
    """A process under way. What it prints is read all the while, so that it never has to wait."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self._lines: list[str] = []
        self._looked_at = 0
        self._news = asyncio.Event()
        self._out = asyncio.create_task(self._read(process.stdout))
        self._err = asyncio.create_task(process.stderr.read())

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            self._lines.append(line.decode())
            self._news.set()

    async def line(self, text: str) -> str:
        """The next line that holds the text; `AssertionError` if it ends without one."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for line in self._lines[self._looked_at :]:
                    self._looked_at += 1
                    if text in line:
                        return line
                assert not self._out.done(), f"ended without {text!r}: {await self.ended()}"
                self._news.clear()
                news = asyncio.create_task(self._news.wait())
                await asyncio.wait([news, self._out], return_when=asyncio.FIRST_COMPLETED)
                news.cancel()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop_reading(self) -> None:
        """Closes the end of standard output that is read from."""
        transport: Any = self.process._transport  # type: ignore[attr-defined]
        transport.get_pipe_transport(1).close()

    async def ended(self) -> tuple[int, str, str]:
        """The exit status, and all that was printed and complained."""
        async with asyncio.timeout(PATIENCE_S):
            status = await self.process.wait()
            await self._out
            return status, "".join(self._lines), (await self._err).decode()


@asynccontextmanager
async def python(*arguments: str, cwd: Path, **environ: str) -> AsyncIterator[Running]:
    """A Python process with the given variables and no others of the gateway's."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=cwd,
        env=environment(environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=1 << 24,
    )
    running = Running(process)
    try:
        yield running
    finally:
        # All of its session: what it started may have outlived it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await running.ended()


@asynccontextmanager
async def command(*arguments: str, cwd: Path, **environ: str) -> AsyncIterator[Running]:
    """`ledger-gateway` with the given arguments."""
    async with python("-m", "gateway", *arguments, cwd=cwd, **environ) as running:
        yield running


async def result(*arguments: str, cwd: Path, **environ: str) -> tuple[int, str, str]:
    """Exit status, output and complaints of `ledger-gateway` with the given arguments."""
    async with command(*arguments, cwd=cwd, **environ) as running:
        return await running.ended()


def environment(settings: dict[str, str]) -> dict[str, str]:
    """This process's environment with `GATEWAY_` settings, named without it, for its own."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    if "TEST_FAST_PATH" in os.environ:
        others["GATEWAY_SERVER__FAST_PATH"] = os.environ["TEST_FAST_PATH"]
    path = os.pathsep.join([str(ROOT), *filter(None, [others.get("PYTHONPATH")])])
    prefixed = {f"GATEWAY_{name}": value for name, value in settings.items() if "__" in name}
    plain = {name: value for name, value in settings.items() if "__" not in name}
    return {**others, "PYTHONPATH": path, **plain, **prefixed}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different, which nobody is given who asks for any port.

    They stay bound, without a listener, until this process ends: who names one can listen there.
    """
    reserved = [socket.socket() for _ in range(count)]
    for one in reserved:
        one.bind(("127.0.0.1", 0))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _reserved.extend(reserved)
    return [one.getsockname()[1] for one in reserved]


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
