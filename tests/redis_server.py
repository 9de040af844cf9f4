"""A real Redis or Valkey server for a test, and a wire to it that can be cut or stall."""

import asyncio
import datetime
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests import listeners
from tests.gateway.processes import PATIENCE_S, Running, free_ports

SERVERS = ("redis-server", "valkey-server")


class RedisServer:
    """A server that keeps nothing, on a port of its own, which it has again when it comes back."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder, self._options = folder, options
        self._running: Running | None = None
        self.port = free_ports(1)[0]
        self.url = f"redis://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def run(self) -> AsyncIterator["RedisServer"]:
        """There is one; it is gone on leaving."""
        await self.start()
        try:
            yield self
        finally:
            await self.kill()

    async def start(self) -> None:
        """Returns when it takes connections."""
        program = next(filter(None, map(shutil.which, SERVERS)), None)
        assert program is not None, "install redis-server or valkey-server: make redis"
        process = await asyncio.create_subprocess_exec(
            program,
            *("--bind", "127.0.0.1", "--port", str(self.port)),
            *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
            *self._options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._running = Running(process)
        await self._running.line("eady to accept connections")

    async def kill(self) -> None:
        """Ends it at once, if there is one."""
        running, self._running = self._running, None
        if running is not None:
            with suppress(ProcessLookupError):
                running.process.kill()
            await running.ended()

    async def ask(self, *words: str) -> str:
        """What it answers to a command, as it stands on the line."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(PATIENCE_S):
                writer.write(" ".join(words).encode() + b"\r\nQUIT\r\n")
                return (await reader.read()).decode().removesuffix("+OK\r\n")
        finally:
            writer.close()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[list[str]]:
        """The commands that it is sent meanwhile, as MONITOR shows them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"MONITOR\r\n")
        assert await reader.readline() == b"+OK\r\n"
        seen: list[str] = []

        async def read() -> None:
            async for line in reader:
                seen.append(line.decode())

        reading = asyncio.create_task(read())
        try:
            yield seen
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            writer.close()


class Wire:
    """Passes bytes on to a port. While it stalls none comes through, and no end is told of it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._sound = asyncio.Event()
        self._sound.set()
        self._server: asyncio.Server | None = None
        self.url = ""

    @asynccontextmanager
    async def run(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Wire"]:
        """Listens on a free port; on leaving, no connection is left open."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        scheme = "redis" if tls is None else "rediss"
        self.url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            await listeners.close(self._server)
            await self.cut()

    async def cut(self) -> None:
        """Ends every connection; more may come."""
        for writer in self._open.values():
            writer.transport.abort()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def stall(self) -> None:
        """From here on nothing comes through."""
        self._sound.clear()

    def resume(self) -> None:
        """What was held up comes through, where there is still somebody to read it."""
        self._sound.set()

    def forget(self) -> None:
        """What was held up never comes through; connections made from here on are sound."""
        self._sound = asyncio.Event()
        self._sound.set()

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._open)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        far, sound = None, self._sound
        try:
            await sound.wait()
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._port)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass(reader, far, sound))
                both.create_task(_pass(far_reader, writer, sound))
        except* (OSError, asyncio.CancelledError, _Ended):
            pass
        finally:
            del self._open[task]
            for one in filter(None, (writer, far)):
                one.transport.abort()


def certified(host: str, folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS with a certificate for a host, and the file of who vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = (
        builder.not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private, public = folder / f"{host}.key", folder / f"{host}.crt"
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    public.write_bytes(certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sound: asyncio.Event
) -> None:
    while data := await reader.read(1 << 16):
        await sound.wait()
        writer.write(data)
        await writer.drain()
    raise _Ended


class _Ended(Exception):
    """One end has left."""
