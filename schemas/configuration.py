"""The shape of `config.yaml`: every key, its type, range and default."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from marshmallow import Schema, ValidationError, fields, validate

# What Python makes of bytes in the environment that are not UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")
ALGORITHMS = ("HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA")


class Text(fields.String):
    """A string that is one in the file: no number, date or boolean that YAML made of it."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or not value.strip() or _SURROGATE.search(value):
            raise ValidationError("Not a non-empty string.")
        return value


class Flag(fields.Boolean):
    """A boolean and nothing that looks like one."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("Not true or false.")
        return value


class Seconds(fields.Float):
    """A finite number, of seconds unless the key says otherwise."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> float:
        if not isinstance(value, int | float):
            raise ValidationError("Not a number.")
        return float(super()._deserialize(value, attr, data, **kwargs))


def _count(default: int, low: int, high: int) -> fields.Integer:
    bounds = validate.Range(min=low, max=high)
    return fields.Integer(strict=True, load_default=default, validate=bounds)


def _seconds(default: float, low: float, high: float) -> Seconds:
    bounds = validate.Range(min=low, max=high)
    return Seconds(load_default=default, allow_nan=False, validate=bounds)


def _optional(validator: Callable[[str], object] | None = None) -> Text:
    return Text(load_default=None, allow_none=True, validate=validator)


def _texts(default: list[str], shortest: int = 1, item: Text | None = None) -> fields.List[str]:
    length = validate.Length(min=shortest)
    return fields.List(item or Text(), load_default=lambda: list(default), validate=length)


_HOST = r"(?:[\w.~-]+|\[[\w:.]+\])(?::[0-9]+)?"
_HTTP_URL = re.compile(rf"https?://{_HOST}(?:/[\w.~/-]*)?", re.ASCII)
_USER = r"(?:[^/?#@]*@)?"
# Whom to trust may be said, whether to look may not.
_TLS_OPTION = r"ssl_(?:ca_certs|certfile|keyfile)=[^#&]+"
_REDIS_URL = re.compile(
    rf"(?=[!-~]+\Z)(?:redis://{_USER}{_HOST}(?:/[0-9]*)?"
    rf"|rediss://{_USER}{_HOST}(?:/[0-9]*)?(?:\?{_TLS_OPTION}(?:&{_TLS_OPTION})*)?"
    rf"|unix://{_USER}(?:/[^/?#]+)+)",
    re.ASCII,
)


def _url(form: re.Pattern[str], complaint: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        try:
            fits = form.fullmatch(value) and urlsplit(value).port != 0
        except ValueError:
            fits = False
        if not fits:
            raise ValidationError(complaint)

    return check


_http_url = _url(_HTTP_URL, "Not an http(s) URL.")
_redis_url = _url(_REDIS_URL, "Not a redis, rediss or unix URL.")


class ServerSchema(Schema):
    """The listener for callers."""

    host = Text(load_default="127.0.0.1")
    port = _count(8080, 0, 65_535)
    workers = _count(1, 1, 64)
    fast_path = Flag(load_default=True)
    max_body_bytes = _count(262_144, 1024, 16_777_216)
    max_connections = _count(10_000, 1, 1_000_000)
    head_timeout_s = _seconds(15.0, 0.01, 600.0)
    body_timeout_s = _seconds(15.0, 0.01, 600.0)
    idle_timeout_s = _seconds(75.0, 0.01, 3600.0)
    shutdown_timeout_s = _seconds(30.0, 0.0, 3600.0)
    drain_s = _seconds(1.0, 0.0, 600.0)


class OpsSchema(Schema):
    """The listener for operators."""

    host = Text(load_default="127.0.0.1")
    port = _count(8081, 0, 65_535)


class LedgerSchema(Schema):
    """The ledger behind the gateway."""

    base_url = Text(required=True, validate=_http_url)
    token = _optional(validate.Regexp(r"[!-~]+\Z", error="Not visible ASCII."))
    connect_timeout_s = _seconds(2.0, 0.001, 60.0)
    read_timeout_s = _seconds(10.0, 0.001, 600.0)
    total_timeout_s = _seconds(30.0, 0.001, 3600.0)
    page_size = _count(1000, 1, 1000)
    max_reply_bytes = _count(33_554_432, 65_536, 1_073_741_824)
    max_in_flight = _count(100, 1, 100_000)
    max_waiting = _count(100, 0, 100_000)
    max_wait_s = _seconds(0.25, 0.0, 60.0)
    retry_ratio = _seconds(0.2, 0.0, 1.0)
    retry_floor = _count(3, 0, 1000)


class BreakerSchema(Schema):
    """When a failing ledger is left alone."""

    window_s = _seconds(10.0, 0.1, 600.0)
    min_calls = _count(20, 1, 100_000)
    failure_ratio = _seconds(0.5, 0.01, 1.0)
    open_s = _seconds(5.0, 0.01, 3600.0)
    max_open_s = _seconds(60.0, 0.01, 3600.0)


class AuthSchema(Schema):
    """Tokens and the keys that verify them."""

    algorithms = _texts(["HS256"], item=Text(validate=validate.OneOf(ALGORITHMS)))
    secret = _optional()
    public_key_file = _optional()
    jwks_url = _optional(_http_url)
    jwks_refresh_s = _seconds(300.0, 0.1, 86_400.0)
    jwks_max_age_s = _seconds(86_400.0, 1.0, 1e9)
    revocation_file = _optional()
    issuer = _optional()
    audience = _optional()
    leeway_s = _seconds(0.0, 0.0, 300.0)
    username_claims = _texts(["username", "sub"])
    max_lifetime_s = _seconds(31_622_400.0, 1.0, 1e10)


class VisibilitySchema(Schema):
    """What a user does not see of their own rows."""

    hidden_fields = _texts(["lp_id", "lp_name", "created_by_id"], shortest=0)


class CacheSchema(Schema):
    """The ledger's raw replies, kept for a while."""

    enabled = Flag(load_default=True)
    max_bytes = _count(67_108_864, 0, 1 << 40)
    rates_ttl_s = _seconds(10.0, 0.0, 86_400.0)
    ledger_ttl_s = _seconds(1.0, 0.0, 86_400.0)
    max_stale_s = _seconds(60.0, 0.0, 86_400.0)


class CoherenceSchema(Schema):
    """How gateways on several machines hear of each other's writes."""

    redis_url = _optional(_redis_url)
    trust_s = _seconds(1.0, 0.0, 86_400.0)


class LimitsSchema(Schema):
    """How much one user may ask for."""

    requests_per_s = _seconds(0.0, 0.0, 1e6)


SECTIONS: dict[str, Schema] = {
    "server": ServerSchema(),
    "ops": OpsSchema(),
    "ledger": LedgerSchema(),
    "breaker": BreakerSchema(),
    "auth": AuthSchema(),
    "visibility": VisibilitySchema(),
    "cache": CacheSchema(),
    "coherence": CoherenceSchema(),
    "limits": LimitsSchema(),
}

# Masked wherever the configuration is shown.
SECRETS = frozenset({("ledger", "token"), ("auth", "secret"), ("coherence", "redis_url")})
