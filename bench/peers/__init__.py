"""The peers: the same job done by other servers, each as well set up as it honestly can be."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench.machine import program
from bench.processes import HOST, Server, free_port, running
from bench.rows import SECRET, identity, secret_base64
from bench.stage import PATH, Stage, expect, expect_refusals, nginx

NGINX = "nginx proxy_cache, no auth"
NGINX_PLAIN = "nginx proxy_cache, plain configuration"
HAPROXY = "HAProxy JWT + cache"
ENVOY = "Envoy JWT, proxied"
FASTAPI = "FastAPI + httpx"
AIOHTTP = "aiohttp that only proxies"
ECHO = "floor: uvloop echo of the same sizes"


@contextmanager
def nginx_cache(stage: Stage, ledger: int, name: str = "nginx") -> Iterator[Server]:
    """nginx, which answers from its cache and asks nobody who they are."""
    port = free_port()
    config = stage.write(f"{name}.conf", port=port, upstream=ledger)
    command = nginx(config, stage.folder)
    with running(name, command, port=port, cores=stage.serving, folder=stage.folder) as server:
        expect(server, PATH, identity("alice"))
        yield server


def nginx_plain(stage: Stage, ledger: int) -> AbstractContextManager[Server]:
    """The same as most people configure it."""
    return nginx_cache(stage, ledger, "nginx-plain")


@contextmanager
def echo(stage: Stage, answer: bytes) -> Iterator[Server]:
    """Nothing but a loop, which gives everybody the same answer unasked."""
    port, file = free_port(), stage.folder / "answer.http"
    file.write_bytes(answer)
    script = Path(__file__).with_name("echo.py")
    command = [sys.executable, str(script), HOST, str(port), str(file)]
    with running("echo", command, port=port, cores=stage.serving, folder=stage.folder) as server:
        yield server


@contextmanager
def aiohttp_proxy(stage: Stage, ledger: int) -> Iterator[Server]:
    """aiohttp's server and client on uvloop, and nothing of ours."""
    port = free_port()
    script = Path(__file__).with_name("aiohttp_proxy.py")
    command = [sys.executable, str(script), HOST, str(port), f"http://{HOST}:{ledger}"]
    with running("aiohttp", command, port=port, cores=stage.serving, folder=stage.folder) as server:
        expect(server, PATH, identity("alice"))
        yield server


@contextmanager
def haproxy(stage: Stage, ledger: int) -> Iterator[Server]:
    """HAProxy, which checks every token and answers from its cache."""
    port = free_port()
    config = stage.write("haproxy.cfg", port=port, upstream=ledger, secret=SECRET)
    command = [program("haproxy"), "-f", str(config)]
    with running("haproxy", command, port=port, cores=stage.serving, folder=stage.folder) as server:
        expect(server, PATH, identity("alice"))
        expect_refusals(server, PATH)
        yield server


@contextmanager
def envoy(stage: Stage, ledger: int) -> Iterator[Server]:
    """Envoy, which checks tokens and proxies."""
    port = free_port()
    key = secret_base64()
    config = stage.write("envoy.yaml", port=port, upstream=ledger, secret_base64=key)
    command = [str(stage.tools.envoy), "-c", str(config), "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "error"]
    with running("envoy", command, port=port, cores=stage.serving, folder=stage.folder) as server:
        expect(server, PATH, identity("alice"))
        expect_refusals(server, PATH, username_checked=False)
        yield server


@contextmanager
def fastapi(stage: Stage, ledger: int) -> Iterator[Server]:
    """FastAPI with PyJWT and httpx on uvicorn and uvloop, one worker."""
    port = free_port()
    command = [str(stage.tools.peer_python), "-m", "uvicorn", "fastapi_gateway:app"]
    command += ["--app-dir", str(Path(__file__).parent), "--host", HOST, "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    environment = {**os.environ, "SECRET": SECRET, "LEDGER": f"http://{HOST}:{ledger}"}
    with running(
        "fastapi",
        [*command, "--log-level", "warning"],
        port=port,
        cores=stage.serving,
        folder=stage.folder,
        environment=environment,
    ) as server:
        expect(server, PATH, identity("alice"))
        expect_refusals(server, PATH)
        yield server
