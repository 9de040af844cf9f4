"""The demo: the gateway and the sandbox ledger side by side, with tokens to try them."""

import secrets
from collections.abc import Mapping
from pathlib import Path

from gateway import config as configuration
from gateway.app import shared
from gateway.authn import development_token
from gateway.config import Config
from gateway.sandbox import LEDGER_ID, ORGANIZATION_ID, create_sandbox
from gateway.server import listening, serve, url_of

_DAY_S = 86_400
_CALLERS = (("admin", "admin"), ("settlement", "service"), ("alice", "user"))
_RATES = f"/v1/organizations/{ORGANIZATION_ID}/ledgers/{LEDGER_ID}/instrument-rates"


async def demo(path: Path | None, environ: Mapping[str, str]) -> None:
    """Serves until it is told to stop. Raises `InvalidConfiguration`."""
    credential = secrets.token_urlsafe(32)
    async with listening(create_sandbox(token=credential), "127.0.0.1", 0) as port:
        config = configuration.read(path, demo_environment(environ, port, credential))
        sandbox = f"http://127.0.0.1:{port}"
        await serve(
            config,
            shared(config),
            started=lambda bound: print(introduction(bound, sandbox), flush=True),
        )


def demo_environment(environ: Mapping[str, str], port: int, credential: str) -> dict[str, str]:
    """The environment with the sandbox as the ledger, and a secret of its own unless one is set."""
    kept = {name: environ[name] for name in environ if name != "GATEWAY_LEDGER__TOKEN_FILE"}
    return {
        "GATEWAY_AUTH__SECRET": secrets.token_hex(32),
        **kept,
        "GATEWAY_AUTH__ALGORITHMS": "HS256",
        "GATEWAY_LEDGER__BASE_URL": f"http://127.0.0.1:{port}",
        "GATEWAY_LEDGER__TOKEN": credential,
    }


def introduction(config: Config, sandbox: str) -> str:
    """What is running where, a token per role, and three lines to paste."""
    tokens = {role: development_token(config.auth, name, role, _DAY_S) for name, role in _CALLERS}
    api = url_of(config.server.host, config.server.port)
    ops = url_of(config.ops.host, config.ops.port)
    listed = "\n".join(f"  {role:8} {name:11} {tokens[role]}" for name, role in _CALLERS)
    return f"""
Gateway          {api}        API, documented at {api}/docs
Operators        {ops}        /status, /health, /metrics
Sandbox ledger   {sandbox}       behind the gateway

Tokens, good for a day (role, user name, token):
{listed}

Everybody's newest two trade rows, as the admin:
{_curl(tokens["admin"], "admin", f"{api}/ledger?type=trade&limit=2")}

Alice's newest two trade rows, as alice (her own, without the internal fields):
{_curl(tokens["user"], "alice", f"{api}/ledger?type=trade&limit=2")}

The exchange rates, as a service:
{_curl(tokens["service"], "settlement", f"{api}{_RATES}")}
"""


def _curl(token: str, username: str, url: str) -> str:
    return f"curl -s -H 'Authorization: Bearer {token}' -H 'username: {username}' '{url}'"
