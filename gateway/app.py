"""`create_app`: the one place where everything meets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway import status
from gateway.authn import Authenticator, read_key_set
from gateway.breaker import BreakerRules
from gateway.bulkhead import BulkheadRules
from gateway.cache import CachedLedger, bounded_memo
from gateway.coherence import Coherence
from gateway.config import Auth, Config
from gateway.cursors import CursorSigner, signing_key
from gateway.edge import TRACE, ask_of, is_last, respond, stamp
from gateway.endpoints import ENDPOINTS, Api, Endpoint
from gateway.fast_path import FAST_PATH, FastPath
from gateway.freshness import Lifetime
from gateway.generations import Generations
from gateway.guard import GuardedLedger, GuardRules
from gateway.health import Health
from gateway.key_set import KEY_SET_TIMEOUT_S, MAX_KEY_SET_BYTES, KeySet, KeySetRules
from gateway.keyring import Keyring
from gateway.keys import Key, load_keys
from gateway.ledger import LedgerClient
from gateway.metrics import Metrics
from gateway.middlewares import METRICS, error_boundary, request_context
from gateway.rate_limit import MAX_USERS, RateLimit
from gateway.retries import RetryRules
from gateway.revocations import Revocations
from gateway.routing import ROUTING, Routing
from gateway.walk import Rules, Walk
from gateway.writes import Writes

_REMEMBERED_TOKENS = 10_000


@dataclass(frozen=True, slots=True)
class Gateway:
    """The two applications of a gateway, each for its own listener, and its health."""

    api: web.Application
    ops: web.Application
    health: Health


@dataclass(frozen=True, slots=True)
class Shared:
    """What the workers of a deployment have in common; made before they are forked."""

    generations: Generations
    cursor_key: bytes


def shared(config: Config) -> Shared:
    """The common part for a configuration."""
    return Shared(Generations(), signing_key(config.auth.secret, config.ledger.token))


def create_app(config: Config, common: Shared) -> Gateway:
    """A gateway for a configuration; nothing is opened before it is started."""
    client, writes = LedgerClient(config.ledger), Writes()
    guarded = GuardedLedger(client, guard_rules(config))
    coherence = _coherence(config, common.generations)
    cached = CachedLedger(guarded, config.cache, common.generations, coherence=coherence)
    memo = bounded_memo(_REMEMBERED_TOKENS if config.server.fast_path else 0)
    key_set = _key_set(config.auth, client, memo.clear)
    keyring = Keyring(_configured_keys(config.auth), key_set)
    revocations = Revocations(_path(config.auth.revocation_file))
    authenticator = Authenticator(config.auth, keyring, revocations, memo)
    rate_limit = RateLimit(config.limits.requests_per_s, bounded_memo(MAX_USERS))
    walk = Walk(
        authenticator,
        rate_limit,
        cached,
        writes,
        CursorSigner(common.cursor_key),
        _rules(config),
    )
    health = Health(keyring, revocations, client, guarded, cached, coherence=coherence)
    metrics = Metrics()
    api = _application(metrics, health, config.server.max_body_bytes)
    if config.server.fast_path:
        api[FAST_PATH] = FastPath(authenticator, cached, rate_limit, health, metrics)
        api.on_response_prepare.append(api[FAST_PATH].learn)
    api.on_response_prepare.append(_release)
    api.cleanup_ctx.append(_running(client, guarded, writes, key_set, coherence))
    routing = api[ROUTING] = Routing(api)
    for endpoint in ENDPOINTS:
        handler = _handler(walk, endpoint, config.server.body_timeout_s)
        # Any segment matches, so that it is the endpoint that refuses it.
        routing.add(endpoint.method, endpoint.path, handler, _expect)
    status.add_probes(api, health)
    status.add_docs(api)
    ops = _application(metrics, health, config.server.max_body_bytes)
    status.add_probes(ops, health)
    status.add_ops(ops, health, metrics)
    return Gateway(api, ops, health)


def _configured_keys(auth: Auth) -> dict[str, Key]:
    return load_keys(auth.algorithms, auth.secret, auth.public_key_file)


def _key_set(auth: Auth, client: LedgerClient, changed: Callable[[], None]) -> KeySet | None:
    if auth.jwks_url is None:
        return None
    return KeySet(
        fetch=partial(client.fetch, auth.jwks_url, MAX_KEY_SET_BYTES, KEY_SET_TIMEOUT_S),
        parse=partial(read_key_set, algorithms=auth.algorithms),
        rules=KeySetRules(auth.jwks_refresh_s, auth.jwks_max_age_s),
        changed=changed,
    )


def _coherence(config: Config, generations: Generations) -> Coherence | None:
    url = config.coherence.redis_url
    if url is None:
        return None
    # Not installed unless it is used.
    from gateway.redis_link import redis_link

    return Coherence(generations, partial(redis_link, url), config.coherence.trust_s)


def guard_rules(config: Config) -> GuardRules:
    """What the configuration says of how the ledger is treated."""
    ledger, breaker = config.ledger, config.breaker
    return GuardRules(
        total_timeout_s=ledger.total_timeout_s,
        bulkhead=BulkheadRules(ledger.max_in_flight, ledger.max_waiting, ledger.max_wait_s),
        breaker=BreakerRules(
            breaker.window_s,
            breaker.min_calls,
            breaker.failure_ratio,
            breaker.open_s,
            breaker.max_open_s,
        ),
        retries=RetryRules(ledger.retry_ratio, ledger.retry_floor),
    )


def _rules(config: Config) -> Rules:
    cache = config.cache
    return Rules(
        hidden_fields=frozenset(config.visibility.hidden_fields),
        page_size=config.ledger.page_size,
        total_s=config.ledger.total_timeout_s,
        lifetimes={
            Api.LEDGER: Lifetime(cache.ledger_ttl_s, max_stale_s=cache.max_stale_s),
            # An old price with its age beats none.
            Api.RATES: Lifetime(
                cache.rates_ttl_s, cache.rates_ttl_s / 2, cache.max_stale_s, cache.max_stale_s
            ),
        },
    )


def _application(metrics: Metrics, health: Health, max_body_bytes: int) -> web.Application:
    app = web.Application(
        middlewares=[request_context(metrics), error_boundary], client_max_size=max_body_bytes
    )

    async def send_away(request: web.Request, response: web.StreamResponse) -> None:
        if health.draining or is_last(request):
            response.force_close()
            response.headers["Connection"] = "close"

    app[METRICS] = metrics
    app.on_response_prepare.extend([stamp, send_away])
    return app


async def _release(request: web.Request, _response: web.StreamResponse) -> None:
    request[TRACE].release()


def _handler(walk: Walk, endpoint: Endpoint, body_timeout_s: float) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await respond(request, await walk(endpoint, ask_of(request, body_timeout_s)))

    return handle


async def _expect(request: web.Request) -> None:
    """Asks for the body if the caller waits to be asked; other expectations may be ignored."""
    if request.version >= (1, 1) and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _running(
    client: LedgerClient,
    guarded: GuardedLedger,
    writes: Writes,
    key_set: KeySet | None,
    coherence: Coherence | None,
) -> Callable[[web.Application], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def context(_app: web.Application) -> AsyncIterator[None]:
        async with client.run(), _kept_running(key_set), _kept_running(coherence):
            yield
            await writes.finish()
            await guarded.close()

    return context


@asynccontextmanager
async def _kept_running(part: KeySet | Coherence | None) -> AsyncIterator[None]:
    if part is None:
        yield
        return
    running = asyncio.create_task(part.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
