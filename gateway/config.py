"""The configuration: read once at start, typed, frozen, secrets masked, complaints complete.

`config.yaml` is overridden by `GATEWAY_<SECTION>__<KEY>`; a secret also by `..._FILE`, the path of
a file that holds it. Only `app` sees the whole; parts receive their values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from marshmallow import ValidationError

from gateway.config_sources import from_environment, from_file
from gateway.keys import key_problems
from gateway.revocations import read_revocations
from schemas.configuration import SECRETS, SECTIONS

MASK = "********"


class InvalidConfiguration(Exception):
    """The configuration cannot be used; `problems` names every mistake, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Secret(str):
    """A string that does not show itself in a `repr`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return MASK


@dataclass(frozen=True, slots=True)
class Server:
    """The listener for callers. Sizes in bytes, times in seconds."""

    host: str
    port: int
    workers: int
    fast_path: bool
    max_body_bytes: int
    max_connections: int
    head_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    shutdown_timeout_s: float
    drain_s: float


@dataclass(frozen=True, slots=True)
class Ops:
    """The listener for operators."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger behind the gateway. Sizes in bytes, times in seconds, pages in rows."""

    base_url: str
    token: Secret | None
    connect_timeout_s: float
    read_timeout_s: float
    total_timeout_s: float
    page_size: int
    max_reply_bytes: int
    max_in_flight: int
    max_waiting: int
    max_wait_s: float
    retry_ratio: float
    retry_floor: int


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a failing ledger is left alone. Times in seconds."""

    window_s: float
    min_calls: int
    failure_ratio: float
    open_s: float
    max_open_s: float


@dataclass(frozen=True, slots=True)
class Auth:
    """Tokens and the keys that verify them. Times in seconds."""

    algorithms: tuple[str, ...]
    secret: Secret | None
    public_key_file: str | None
    jwks_url: str | None
    jwks_refresh_s: float
    jwks_max_age_s: float
    revocation_file: str | None
    issuer: str | None
    audience: str | None
    leeway_s: float
    username_claims: tuple[str, ...]
    max_lifetime_s: float


@dataclass(frozen=True, slots=True)
class Visibility:
    """Fields that are taken out of the rows a user reads."""

    hidden_fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cache:
    """The ledger's raw replies. Size in bytes, times in seconds."""

    enabled: bool
    max_bytes: int
    rates_ttl_s: float
    ledger_ttl_s: float
    max_stale_s: float


@dataclass(frozen=True, slots=True)
class Coherence:
    """How gateways on several machines hear of each other's writes. Time in seconds."""

    redis_url: Secret | None
    trust_s: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests per second and user; 0 is no limit."""

    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; a section an attribute."""

    server: Server
    ops: Ops
    ledger: Ledger
    breaker: Breaker
    auth: Auth
    visibility: Visibility
    cache: Cache
    coherence: Coherence
    limits: Limits

    def masked(self) -> dict[str, dict[str, Any]]:
        """Section to key to value, as `config.yaml` has them, every secret that is set masked."""
        sections = {section.name: getattr(self, section.name) for section in fields(self)}
        return {
            name: {key.name: _shown(getattr(section, key.name)) for key in fields(section)}
            for name, section in sections.items()
        }


_TYPES: dict[str, type[Any]] = {section.name: section.type for section in fields(Config)}  # type: ignore[misc]


def read(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The effective configuration. Raises `InvalidConfiguration` with every mistake at once."""
    problems: list[str] = []
    document = from_file(path, problems) if path is not None else {}
    from_environment(document, environ, problems)
    problems += [f"{name}: unknown section" for name in document if name not in SECTIONS]
    sections = {name: _section(name, document.get(name, {}), problems) for name in SECTIONS}
    server, ops = sections["server"], sections["ops"]
    if server and ops and server.port == ops.port != 0:
        problems.append("ops.port: the same as server.port; operators have a listener of their own")
    if problems:
        raise InvalidConfiguration(sorted(problems))
    return Config(**sections)


def _section(name: str, values: Any, problems: list[str]) -> Any:
    if not isinstance(values, dict):
        problems.append(f"{name}: not a section of keys")
        return None
    try:
        loaded = SECTIONS[name].load(values)
    except ValidationError as error:
        problems += _flattened(name, error.messages)
        if name == "auth":
            problems += _other_key_problems(error.valid_data, error.messages)
        return None
    section = _TYPES[name](**{key: _frozen(name, key, value) for key, value in loaded.items()})
    if isinstance(section, Auth):
        problems += auth_problems(section)
    if isinstance(section, Coherence) and section.redis_url is not None and not find_spec("redis"):
        install = "pip install 'ledger-gateway[redis]'"
        problems.append(f"coherence.redis_url: redis is not installed: {install}")
    return section


def auth_problems(auth: Auth) -> list[str]:
    """What is wrong between the algorithms and the keys that are there for them."""
    problems = key_problems(auth.algorithms, auth.secret, auth.public_key_file, auth.jwks_url)
    if auth.revocation_file is not None:
        try:
            read_revocations(Path(auth.revocation_file))
        except (OSError, ValueError) as error:
            problems.append(f"auth.revocation_file: {error}")
    return problems


def _other_key_problems(known: Any, messages: Any) -> list[str]:
    """What can be said of the keys beside mistakes in their section, and has not been said."""
    algorithms, secret = known.get("algorithms", ()), known.get("secret")
    file, url = known.get("public_key_file"), known.get("jwks_url", "malformed")
    problems = key_problems(algorithms, secret, file, url)
    return [
        line for line in problems if line.split(":")[0] not in {f"auth.{key}" for key in messages}
    ]


def _flattened(path: str, messages: Any) -> list[str]:
    """One line a mistake, from marshmallow's tree of messages."""
    if isinstance(messages, dict):
        return [
            line for key, below in messages.items() for line in _flattened(f"{path}.{key}", below)
        ]
    return [f"{path}: {message}" for message in messages]


def _frozen(section: str, key: str, value: Any) -> Any:
    if (section, key) in SECRETS and value is not None:
        return Secret(value)
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> Any:
    if isinstance(value, Secret):
        return MASK
    return list(value) if isinstance(value, tuple) else value
