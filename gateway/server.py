"""Runs a gateway: its two listeners, its signals, and how it goes away."""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import structlog
from aiohttp import web

from gateway import logs
from gateway.app import Gateway, Shared, create_app
from gateway.config import Config
from gateway.connections import DEFAULTS, Connections, Limits
from gateway.fast_path import FAST_PATH
from gateway.listener import close
from gateway.middlewares import METRICS
from gateway.routing import ROUTING

_BACKLOG = 1024
# How long a body that nobody wanted is read on, so that its sender can read the answer; seconds.
_LINGER_S = 5.0
# So many more objects made than let go of begin a collection.
_COLLECT_AFTER = 10_000
# How long a request that did not finish in time may take to be cut.
_CUT_S = 0.1


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs to the end, on uvloop where there is one."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def serve(
    config: Config,
    common: Shared,
    *,
    reuse_port: bool = False,
    started: Callable[[Config], None] = lambda _: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight.

    The operators' listener closes last, so that health tells the truth all the while. `started` is
    given the configuration with the ports that were bound: 0 takes any that is free.
    """
    gateway, server, ops = create_app(config, common), config.server, config.ops
    stopping = _stop_signal()
    limits = Limits(
        server.max_connections,
        server.head_timeout_s,
        server.idle_timeout_s,
        server.shutdown_timeout_s,
    )
    log = structlog.get_logger()
    try:
        async with (
            listening(gateway.ops, ops.host, ops.port, limits, reuse_port=reuse_port) as ops_port,
            listening(gateway.api, server.host, server.port, limits, reuse_port=reuse_port) as port,
        ):
            log.info("started", host=server.host, port=port, ops_port=ops_port)
            bound = replace(server, port=port), replace(ops, port=ops_port)
            started(replace(config, server=bound[0], ops=bound[1]))
            await stopping.wait()
            log.info("stopping")
            await _drain(gateway, server.drain_s)
    finally:
        gateway.api[METRICS].settle()
        logs.flush()
    log.info("stopped")


def work(config: Config, common: Shared) -> None:
    """Serves in a process that does nothing else."""
    _collect_less()
    run(serve(config, common, reuse_port=True))


def _collect_less() -> None:
    """Has the garbage collector pass over what was made so far and lasts to the end, and look at
    the rest less often: requests leave little for it, and what is large goes without it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])


async def serve_alone(app: web.Application, host: str, port: int) -> None:
    """Serves one application until SIGTERM or SIGINT."""
    stopping = _stop_signal()
    async with listening(app, host, port) as bound:
        print(url_of(host, bound), flush=True)
        await stopping.wait()


def url_of(host: str, port: int) -> str:
    """Where a listener is, for a person to follow; an IPv6 address is bracketed (RFC 3986)."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    limits: Limits = DEFAULTS,
    *,
    reuse_port: bool = False,
) -> AsyncIterator[int]:
    """The application on a port, which is yielded; on leaving, time to finish."""
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {
        "access_log": None,
        "auto_decompress": False,
        "keepalive_timeout": limits.idle_timeout_s,
        "lingering_time": min(limits.head_timeout_s, _LINGER_S),
    }
    # Whatever could be finished is finished before the runner is told.
    runner = web.AppRunner(app, shutdown_timeout=_CUT_S, **options)
    await runner.setup()
    try:
        if runner.server is None:
            raise RuntimeError("the application was not set up")
        if ROUTING in app:
            at_once: Any = app[ROUTING](runner.server.request_handler)
            runner.server.request_handler = at_once
        connections = Connections(
            runner.server, limits, options, app.get(METRICS), app.get(FAST_PATH)
        )
        listener = await loop.create_server(
            connections, host, port, reuse_port=reuse_port or None, backlog=_BACKLOG
        )
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            try:
                await close(listener, connections)
            finally:
                await connections.settle()
    finally:
        await runner.cleanup()


async def _drain(gateway: Gateway, seconds: float) -> None:
    """Says that it is not ready, and gives who asks for that the time to notice."""
    gateway.health.draining = True
    await asyncio.sleep(seconds)


def _stop_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping
