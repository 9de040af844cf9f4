"""The configuration: defaults, overrides, masked secrets, and a complaint that is complete."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import MASK, Auth, Config, InvalidConfiguration, Secret, auth_problems, read
from gateway.config_sources import from_file
from schemas.configuration import SECRETS, SECTIONS

ROOT = Path(__file__).parents[2]
SECRET = "correct horse battery staple, which is long enough"
URL = "http://ledger.example:8090/prefix"
REDIS = {
    "LEDGER__BASE_URL": URL,
    "AUTH__SECRET": SECRET,
    "COHERENCE__REDIS_URL": "redis://user:unspoken@cache",
}
BOUNDED = settings(max_examples=60, deadline=None)
ENOUGH = {"GATEWAY_LEDGER__BASE_URL": URL, "GATEWAY_AUTH__SECRET": SECRET}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def problems(path: Path | None, **environ: str) -> list[str]:
    """What is wrong with a file and variables, named without their prefix."""
    with pytest.raises(InvalidConfiguration) as refusal:
        read(path, {f"GATEWAY_{name}": value for name, value in environ.items()})
    return refusal.value.problems


def named(complaints: list[str]) -> list[str]:
    """The place that each complaint is about."""
    return [complaint.partition(":")[0] for complaint in complaints]


# The file that comes with the gateway.


@pytest.mark.parametrize("section", SECTIONS)
def test_the_file_holds_every_key_with_its_default(section: str) -> None:
    noted: list[str] = []
    document = from_file(ROOT / "config.yaml", noted)
    assert noted == []
    schema = SECTIONS[section]
    required = {"base_url": URL} if section == "ledger" else {}
    defaults = {key: value for key, value in schema.load(required).items() if key not in required}
    assert document[section] == defaults
    assert list(document) == list(SECTIONS)


def test_the_file_shows_the_one_key_that_has_no_default_as_a_comment(file: Path) -> None:
    text = (ROOT / "config.yaml").read_text("utf-8")
    commented = "  # base_url: https://ledger.internal "
    assert text.count(commented) == 1
    file.write_text(text.replace("# base_url", "base_url").replace(" required;", " # required;"))
    config = read(file, {"GATEWAY_AUTH__SECRET": SECRET})
    assert config.ledger.base_url == "https://ledger.internal"


def test_the_file_alone_lacks_what_only_the_operator_knows() -> None:
    assert problems(ROOT / "config.yaml") == [
        "auth.secret: HS256 needs one",
        "ledger.base_url: Missing data for required field.",
    ]


def test_the_file_changes_nothing() -> None:
    assert read(ROOT / "config.yaml", ENOUGH) == read(None, ENOUGH)


def test_the_comment_of_the_file_names_every_secret() -> None:
    text = (ROOT / "config.yaml").read_text("utf-8")
    for section, key in SECRETS:
        assert f"{section}.{key}" in text


# What is in effect.


def test_without_a_file_everything_but_two_settings_has_a_default() -> None:
    config = read(None, ENOUGH)
    assert (config.ledger.base_url, config.auth.secret) == (URL, SECRET)
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert (config.ops.host, config.ops.port) == ("127.0.0.1", 8081)
    assert config.auth.algorithms == ("HS256",)


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "value"),
    [
        ("SERVER__PORT", "9090", "server", "port", 9090),
        ("SERVER__FAST_PATH", "false", "server", "fast_path", False),
        ("SERVER__DRAIN_S", "0", "server", "drain_s", 0.0),
        ("SERVER__DRAIN_S", "2.5", "server", "drain_s", 2.5),
        ("OPS__HOST", "::", "ops", "host", "::"),
        ("LEDGER__TOKEN", "12345", "ledger", "token", "12345"),
        ("AUTH__ALGORITHMS", "HS256,HS256", "auth", "algorithms", ("HS256", "HS256")),
        ("AUTH__ISSUER", "true", "auth", "issuer", "true"),
        ("VISIBILITY__HIDDEN_FIELDS", "[]", "visibility", "hidden_fields", ()),
        ("CACHE__MAX_BYTES", "0", "cache", "max_bytes", 0),
        ("LIMITS__REQUESTS_PER_S", "1e3", "limits", "requests_per_s", 1000.0),
    ],
)
def test_a_variable_overrides_the_file(
    file: Path, variable: str, text: str, section: str, key: str, value: object
) -> None:
    file.write_text(f"{section}:\n  {key}: of the file\n")
    config = read(file, {**ENOUGH, f"GATEWAY_{variable}": text})
    effective = getattr(getattr(config, section), key)
    assert effective == value
    assert isinstance(effective, type(value))


def test_a_file_overrides_a_default(file: Path) -> None:
    file.write_text("server: {port: 9090}\ncache: {enabled: false}\nops:\n")
    config = read(file, ENOUGH)
    assert (config.server.port, config.cache.enabled, config.ops.port) == (9090, False, 8081)


def test_a_secret_from_a_file_of_its_own_is_in_effect(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    environ = {"GATEWAY_LEDGER__BASE_URL": URL, "GATEWAY_AUTH__SECRET_FILE": str(path)}
    assert read(None, environ).auth.secret == SECRET


def test_the_configuration_cannot_be_changed() -> None:
    config = read(None, ENOUGH)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.server.port = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.server = config.ops  # type: ignore[assignment,misc]
    assert hash(config) == hash(read(None, ENOUGH))


# The complaint.


def test_every_mistake_is_named_at_once(file: Path, tmp_path: Path) -> None:
    file.write_text(
        """
server: {port: no, workers: 0, drain_s: .nan, fast_path: yes, nonsense: 1}
ops: text
ledger: {base_url: ftp://ledger, connect_timeout_s: '2', page_size: 1.0}
auth: {secret: short, leeway_s: 12:30, algorithms: [HS256, none]}
caché: {enabled: true}
"""
    )
    complaints = problems(
        file,
        SERVER__HOST="",
        CACHE__MAX_BYTES="1e400",
        CACHE__NONSENSE="1",
        LIMITS__REQUESTS_PER_S="true",
        NONSENSE__KEY="1",
        LEDGER__TOKEN_FILE=str(tmp_path / "missing"),
    )
    assert set(named(complaints)) >= {
        "GATEWAY_CACHE__NONSENSE",
        "GATEWAY_LEDGER__TOKEN_FILE",
        "GATEWAY_NONSENSE__KEY",
        "auth.algorithms.1",
        "auth.leeway_s",
        "auth.secret",
        "cache.max_bytes",
        "caché",
        "ledger.base_url",
        "ledger.connect_timeout_s",
        "ledger.page_size",
        "limits.requests_per_s",
        "ops",
        "server.drain_s",
        "server.fast_path",
        "server.host",
        "server.nonsense",
        "server.port",
        "server.workers",
    }
    assert complaints == sorted(complaints)


def test_a_weak_secret_is_named_beside_mistakes_elsewhere() -> None:
    assert problems(None, AUTH__SECRET="short", SERVER__PORT="no") == [
        "auth.secret: HS256 needs at least 32 bytes",
        "ledger.base_url: Missing data for required field.",
        "server.port: Not a valid integer.",
    ]


def test_a_weak_secret_is_named_beside_mistakes_in_its_own_section() -> None:
    complaints = problems(
        None,
        LEDGER__BASE_URL=URL,
        AUTH__SECRET="short",
        AUTH__LEEWAY_S="no",
        AUTH__NONSENSE="1",
        AUTH__ALGORITHMS="HS256,RS256",
    )
    assert named(complaints) == [
        "GATEWAY_AUTH__NONSENSE",
        "auth.leeway_s",
        "auth.public_key_file",
        "auth.secret",
    ]


@pytest.mark.parametrize("algorithm", ["HS256", "RS256"])
@pytest.mark.parametrize("key", ["secret", "algorithms", "public_key_file", "jwks_url"])
def test_a_key_of_a_wrong_type_is_named_once(file: Path, key: str, algorithm: str) -> None:
    settings = {"secret": SECRET, "algorithms": [algorithm], "jwks_url": "http://keys", key: 5}
    file.write_text(json.dumps({"auth": settings}))
    assert named(problems(file, LEDGER__BASE_URL=URL)) == [f"auth.{key}"]


@pytest.mark.parametrize(
    ("algorithms", "secret", "complaint"),
    [
        ("HS256", "s" * 31, "auth.secret: HS256 needs at least 32 bytes"),
        ("HS384", "s" * 47, "auth.secret: HS384 needs at least 48 bytes"),
        ("HS512", "s" * 63, "auth.secret: HS512 needs at least 64 bytes"),
        ("HS256,HS512", "s" * 63, "auth.secret: HS512 needs at least 64 bytes"),
        ("HS256", None, "auth.secret: HS256 needs one"),
        ("EdDSA", SECRET, "auth.public_key_file: EdDSA needs this or auth.jwks_url"),
    ],
)
def test_a_secret_that_does_not_do_stops_the_start(
    algorithms: str, secret: str | None, complaint: str
) -> None:
    environ = {"AUTH__SECRET": secret} if secret is not None else {}
    complaints = problems(None, LEDGER__BASE_URL=URL, AUTH__ALGORITHMS=algorithms, **environ)
    assert complaints == [complaint]


@pytest.mark.parametrize(("algorithms", "length"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_secret_of_the_least_length_will_do(algorithms: str, length: int) -> None:
    secret = "s" * length
    environ = {"GATEWAY_AUTH__SECRET": secret, "GATEWAY_AUTH__ALGORITHMS": algorithms}
    assert read(None, {**ENOUGH, **environ}).auth.secret == secret


@pytest.mark.parametrize("value", ["text", "8080", "[]", "[a]", "false", "true", "0", "''", "0.0"])
@pytest.mark.parametrize("section", ["server", "auth"])
def test_a_section_that_is_no_mapping_is_named(file: Path, section: str, value: str) -> None:
    file.write_text(f"{section}: {value}\n")
    assert f"{section}: not a section of keys" in problems(file, LEDGER__BASE_URL=URL)
    with_variable = problems(file, LEDGER__BASE_URL=URL, **{f"{section.upper()}__HOST": "h"})
    assert f"{section}: not a section of keys" in with_variable


def test_an_unknown_section_is_named_whatever_it_is_called(file: Path) -> None:
    file.write_text("nope: {a: 1}\n5: x\nnull: y\nServer: {port: 1}\n")
    complaints = [
        complaint
        for complaint in problems(file, LEDGER__BASE_URL=URL, AUTH__SECRET=SECRET)
        if complaint.endswith("unknown section")
    ]
    assert sorted(named(complaints)) == ["5", "None", "Server", "nope"]


def test_what_is_wrong_with_the_file_does_not_hide_what_is_wrong_elsewhere(file: Path) -> None:
    file.write_text("server: {port: 1, port: 2}\n")
    complaints = problems(file, OPS__PORT="no", AUTH__SECRET="short", LEDGER__BASE_URL=URL)
    assert len(complaints) == 3
    assert f"{file}: line 1: port stands twice" in complaints


def test_a_configuration_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (complaint,) = problems(tmp_path / "none", LEDGER__BASE_URL=URL, AUTH__SECRET=SECRET)
    assert str(tmp_path / "none") in complaint


def test_a_secret_that_is_no_text_is_a_complaint_and_no_crash() -> None:
    assert named(problems(None, LEDGER__BASE_URL=URL, AUTH__SECRET="\udcff" * 64)) == [
        "auth.secret"
    ]


# Secrets.


def shown(config: Config) -> str:
    """Everything by which a configuration could end up in a log."""
    nested = dataclasses.asdict(config)
    return " ".join([repr(config), str(config), f"{config}", str(config.masked()), str(nested)])


@BOUNDED
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20))
def test_no_secret_is_shown(text: str) -> None:
    secret = f"{text}-{SECRET}"
    token = "credential-" + secret.encode().hex()
    config = read(
        None,
        {
            "GATEWAY_LEDGER__BASE_URL": URL,
            "GATEWAY_LEDGER__TOKEN": token,
            "GATEWAY_AUTH__SECRET": f"-{secret}-",
        },
    )
    everything = shown(config)
    for hidden in (token, f"-{secret}-"):
        assert hidden not in everything
        assert repr(hidden) not in everything
    assert (config.ledger.token, config.auth.secret) == (token, f"-{secret}-")


def test_the_two_listeners_need_two_ports() -> None:
    with pytest.raises(InvalidConfiguration) as refusal:
        read(None, {**ENOUGH, "GATEWAY_OPS__PORT": "8080"})
    assert [problem.split(":")[0] for problem in refusal.value.problems] == ["ops.port"]
    assert (
        read(None, {**ENOUGH, "GATEWAY_OPS__PORT": "0", "GATEWAY_SERVER__PORT": "0"}).ops.port == 0
    )


def test_a_redis_url_without_redis_stops_the_start_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.config.find_spec", {}.get)
    assert problems(None, **REDIS) == [
        "coherence.redis_url: redis is not installed: pip install 'ledger-gateway[redis]'"
    ]
    assert read(None, ENOUGH).coherence.redis_url is None


def test_a_redis_url_is_a_secret() -> None:
    effective = read(None, {f"GATEWAY_{name}": value for name, value in REDIS.items()})
    assert effective.coherence.redis_url == "redis://user:unspoken@cache"
    assert effective.masked()["coherence"] == {"redis_url": MASK, "trust_s": 1.0}
    assert "unspoken" not in repr(effective)


def test_a_redis_url_that_is_none_is_refused_and_not_quoted() -> None:
    complaints = problems(None, **REDIS | {"COHERENCE__REDIS_URL": "http://user:unspoken@cache"})
    assert complaints == ["coherence.redis_url: Not a redis, rediss or unix URL."]


def test_a_masked_configuration_has_the_form_of_the_file() -> None:
    masked = read(None, {**ENOUGH, "GATEWAY_LEDGER__TOKEN": "credential"}).masked()
    assert {section: set(keys) for section, keys in masked.items()} == {
        section: set(schema.fields) for section, schema in SECTIONS.items()
    }
    assert masked["auth"]["secret"] == masked["ledger"]["token"] == MASK
    assert masked["coherence"]["redis_url"] is None
    assert masked["auth"]["algorithms"] == ["HS256"]


def test_a_mask_does_not_tell_how_long_a_secret_is() -> None:
    assert repr(Secret("a")) == repr(Secret("a" * 100)) == MASK


def test_a_copy_of_a_secret_is_as_silent() -> None:
    copied: Any = pickle.loads(pickle.dumps(Secret(SECRET)))
    assert copied == SECRET
    assert repr([copied]) == f"[{MASK}]"


@BOUNDED
@given(
    st.dictionaries(
        st.sampled_from(
            [(section, key) for section in SECTIONS for key in SECTIONS[section].fields]
        ),
        st.sampled_from(["{}", "[{}]", "{},{}", "{{a: {}}}", "!{}", "\udcff{}", "{} {}\n"]),
        min_size=1,
        max_size=6,
    )
)
def test_no_complaint_about_values_quotes_them(forms: dict[tuple[str, str], str]) -> None:
    value = "hunter2hunter2"
    environ = {
        f"{section}__{key}".upper(): form.format(*[value] * 2)
        for (section, key), form in forms.items()
        if not key.endswith("_file")  # Where a file is may be told.
    }
    # Where each value would do for its key, one mistake makes sure that there is a complaint.
    complaints = problems(None, **{**environ, "SERVER__PORT": f"-{value}"})
    assert value not in "\n".join(complaints)


def test_the_message_of_the_exception_is_the_whole_complaint() -> None:
    error = InvalidConfiguration(["a: x", "b: y"])
    assert str(error) == "a: x\nb: y"
    assert error.problems == ["a: x", "b: y"]


def test_the_problems_of_the_keys_can_be_asked_for_by_themselves() -> None:
    auth = read(None, ENOUGH).auth
    assert auth_problems(auth) == []
    weaker: Auth = dataclasses.replace(auth, secret=Secret("short"))
    assert auth_problems(weaker) == ["auth.secret: HS256 needs at least 32 bytes"]
