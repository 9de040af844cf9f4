"""Tokens that are no longer good: the file, its changes, and what a caller sees of them."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from gateway.authz import Principal, Role
from gateway.config import InvalidConfiguration
from gateway.revocations import RevocationList, Revocations, read_revocations
from tests.conftest import ADMIN, MakeClient, caller, config_for
from tests.fakes import FakeLedger

NOTHING = '{"jti":[],"not_before":{}}'


def principal(
    username: str = "alice", token_id: str | None = "one", issued_at: float | None = 1000.0
) -> Principal:
    return Principal(username, Role.USER, 9e9, issued_at, token_id)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "revocations.json"
    path.write_text(NOTHING)
    return path


def replace(path: Path, text: str | bytes) -> None:
    """The way an operator changes a file that is being read: a new one takes its name."""
    new = path.with_suffix(".new")
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    os.replace(new, path)


# What the file says.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", RevocationList()),
        (NOTHING, RevocationList()),
        (' {"jti" : []}\n', RevocationList()),
        ('{"jti":["one","two","one"]}', RevocationList(frozenset({"one", "two"}))),
        ('{"jti":["","\\u00e9"]}', RevocationList(frozenset({"", "é"}))),
        ('{"not_before":{"alice":5}}', RevocationList(frozenset(), {"alice": 5})),
        ('{"not_before":{"a":0,"b":1.5}}', RevocationList(frozenset(), {"a": 0, "b": 1.5})),
    ],
)
def test_the_file_holds_ids_and_times(path: Path, text: str, expected: RevocationList) -> None:
    path.write_text(text)
    assert read_revocations(path) == expected


BAD = [
    b"",
    b"null",
    b"[]",
    b"1",
    b'["one"]',
    b'{"jti":',
    b'{"jti":[]}{}',
    b'{"jti":null}',
    b'{"jti":"one"}',
    b'{"jti":{"one":true}}',
    b'{"jti":[1]}',
    b'{"jti":[null]}',
    b'{"jti":[["one"]]}',
    b'{"jti":[],"jti":["one"]}',
    b'{"jti":[],"other":1}',
    b'{"JTI":["one"]}',
    b'{"not_before":null}',
    b'{"not_before":[]}',
    b'{"not_before":5}',
    b'{"not_before":{"alice":"5"}}',
    b'{"not_before":{"alice":null}}',
    b'{"not_before":{"alice":true}}',
    b'{"not_before":{"alice":NaN}}',
    b'{"not_before":{"alice":1e999}}',
    b'{"not_before":{"alice":"2026-01-01"}}',
    b'{"not_before":{"alice":1,"alice":2}}',
    b'\xef\xbb\xbf{"jti":[]}',
    b'{"jti":["\xe9"]}',
    b"jti:\n  - one\n",
    b"[" * 100_000,
]


@pytest.mark.parametrize("data", BAD)
def test_another_file_is_an_error(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r".+"):
        read_revocations(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        read_revocations(tmp_path / "missing")


@pytest.mark.parametrize(
    ("token_id", "covered"), [("one", True), ("two", False), ("ONE", False), (None, False)]
)
def test_a_token_is_revoked_by_its_id(token_id: str | None, covered: bool) -> None:
    listed = RevocationList(frozenset({"one", "None"}))
    assert listed.covers(principal(token_id=token_id)) is covered


@pytest.mark.parametrize(
    ("username", "issued_at", "covered"),
    [
        ("alice", 999.9, True),
        ("alice", 1000.0, False),
        ("alice", 1000.1, False),
        ("alice", 0.0, True),
        ("alice", None, True),
        ("bob", 0.0, False),
        ("Alice", 0.0, False),
    ],
)
def test_a_users_tokens_from_before_a_time_are_revoked(
    username: str, issued_at: float | None, covered: bool
) -> None:
    listed = RevocationList(frozenset(), {"alice": 1000})
    assert listed.covers(principal(username, None, issued_at)) is covered


@given(
    st.sets(st.text(max_size=3), max_size=4),
    st.dictionaries(st.sampled_from(["alice", "bob"]), st.integers(0, 2000)),
    st.sampled_from(["alice", "bob", "carol"]),
    st.none() | st.text(max_size=3),
    st.none() | st.integers(0, 2000).map(float),
)
def test_only_what_is_listed_is_revoked(
    ids: set[str],
    not_before: dict[str, float],
    username: str,
    token_id: str | None,
    issued_at: float | None,
) -> None:
    covered = RevocationList(frozenset(ids), not_before).covers(
        principal(username, token_id, issued_at)
    )
    by_time = username in not_before and (issued_at or 0.0) < not_before[username]
    assert covered == (token_id in ids or by_time)


# How it follows the file.


def test_without_a_file_nothing_is_revoked() -> None:
    revocations = Revocations(None)
    assert not revocations.covers(principal())
    assert not revocations.stale


def test_a_list_is_in_force_from_the_start(path: Path) -> None:
    path.write_text('{"jti":["one"]}')
    assert Revocations(path).covers(principal())


def test_a_bad_file_is_an_error_at_the_start(path: Path) -> None:
    path.write_text("nonsense")
    with pytest.raises(ValueError, match=r".+"):
        Revocations(path)


def written_over(path: Path) -> None:
    path.write_text('{"jti":["one", "two"]}')


def replaced(path: Path) -> None:
    replace(path, '{"jti":["one"]}')


def replaced_by_one_as_long_and_as_old(path: Path) -> None:
    before = path.stat()
    replace(path, '{"jti":["one"]}'.ljust(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def written_over_with_as_many_bytes(path: Path) -> None:
    before = path.stat()
    with path.open("r+") as file:
        file.write('{"jti":["one"]}'.ljust(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)


def grown_in_the_same_moment(path: Path) -> None:
    before = path.stat()
    path.write_text('{"jti":["one","two","three"]}')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def written_over_with_an_old_date(path: Path) -> None:
    path.write_text('{"jti":["one","two"]}')
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    "change",
    [
        written_over,
        replaced,
        replaced_by_one_as_long_and_as_old,
        written_over_with_as_many_bytes,
        grown_in_the_same_moment,
        written_over_with_an_old_date,
    ],
)
def test_a_change_is_in_force_on_the_very_next_question(path: Path, change: Any) -> None:
    revocations = Revocations(path)
    assert not revocations.covers(principal())
    change(path)
    assert revocations.covers(principal())
    replace(path, NOTHING)
    assert not revocations.covers(principal())


def test_a_link_to_another_file_is_a_change(path: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.json"
    second.write_text('{"jti":["one"]}')
    link = tmp_path / "link.json"
    link.symlink_to(path)
    revocations = Revocations(link)
    assert not revocations.covers(principal())
    link.unlink()
    link.symlink_to(second)
    assert revocations.covers(principal())


def test_an_unchanged_file_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revocations = Revocations(path)
    reads = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or original(self))
    for _ in range(100):
        revocations.covers(principal())
    assert reads == []
    replaced(path)
    for _ in range(100):
        assert revocations.covers(principal())
    assert reads == [path]


@pytest.mark.parametrize("data", BAD)
def test_a_broken_file_leaves_the_last_good_list_in_force(path: Path, data: bytes) -> None:
    path.write_text('{"jti":["one"]}')
    revocations = Revocations(path)
    replace(path, data)
    assert revocations.covers(principal())
    assert not revocations.covers(principal(token_id="two"))
    assert revocations.stale
    replace(path, '{"jti":["two"]}')
    assert not revocations.covers(principal())
    assert revocations.covers(principal(token_id="two"))
    assert not revocations.stale


def test_a_file_that_vanished_leaves_the_last_good_list_in_force(path: Path) -> None:
    path.write_text('{"jti":["one"]}')
    revocations = Revocations(path)
    path.unlink()
    assert revocations.covers(principal())
    assert revocations.stale
    path.mkdir()
    assert revocations.covers(principal())
    assert revocations.stale
    path.rmdir()
    path.write_text(NOTHING)
    assert not revocations.covers(principal())
    assert not revocations.stale


def test_a_broken_file_is_read_once_for_each_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revocations = Revocations(path)
    reads = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or original(self))
    replace(path, "nonsense")
    for _ in range(100):
        revocations.covers(principal())
    assert reads == [path]


# The start.


@pytest.mark.parametrize("data", BAD)
def test_a_bad_file_stops_the_start_with_a_message(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(InvalidConfiguration) as stopped:
        config_for("http://127.0.0.1:1", auth__revocation_file=str(path))
    (problem,) = stopped.value.problems
    assert problem.startswith("auth.revocation_file: ")
    assert len(problem) > len("auth.revocation_file: ")


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    with pytest.raises(InvalidConfiguration) as stopped:
        config_for("http://127.0.0.1:1", auth__revocation_file=str(path), server__port="x")
    assert [problem.split(":")[0] for problem in stopped.value.problems] == [
        "auth.revocation_file",
        "server.port",
    ]


# Over HTTP.


@pytest.mark.parametrize("fast_path", ["true", "false"])
async def test_a_revoked_token_is_refused_on_the_very_next_request(
    ledger: FakeLedger, make_client: MakeClient, path: Path, fast_path: str
) -> None:
    client = await make_client(auth__revocation_file=str(path), server__fast_path=fast_path)
    revoked, other = caller(jti="one"), caller(jti="two")
    for headers in (revoked, other, revoked):
        assert (await client.get("/ledger", headers=headers)).status == 200
    replace(path, '{"jti":["one"]}')
    seen = len(ledger.calls)
    for _ in range(3):
        response = await client.get("/ledger", headers=revoked)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
        body = await response.json()
        assert body["api_message"] == "TOKEN_INVALID"
        assert set(body["api_data"]) == {"detail", "origin", "request_id"}
    assert len(ledger.calls) == seen
    assert (await client.get("/ledger", headers=other)).status == 200
    replace(path, NOTHING)
    assert (await client.get("/ledger", headers=revoked)).status == 200


async def test_a_revoked_token_writes_nothing(
    ledger: FakeLedger, make_client: MakeClient, path: Path
) -> None:
    client = await make_client(auth__revocation_file=str(path))
    replace(path, '{"jti":["one"]}')
    headers = caller(*ADMIN, jti="one") | {"Idempotency-Key": "key"}
    response = await client.post("/ledger", json={"type": "deposit"}, headers=headers)
    assert response.status == 401
    assert ledger.calls == []


async def test_all_of_a_users_older_tokens_are_revoked_at_once(
    ledger: FakeLedger, make_client: MakeClient, path: Path
) -> None:
    client = await make_client(auth__revocation_file=str(path))
    now = int(time.time())
    old, undated = caller(iat=now - 100), caller(iat=None)
    new, bob = caller(iat=now - 10), caller("bob", iat=now - 100)
    everybody = (old, undated, new, bob)
    for headers in everybody:
        assert (await client.get("/ledger", headers=headers)).status == 200
    replace(path, json.dumps({"not_before": {"alice": now - 50}}))
    statuses = [(await client.get("/ledger", headers=headers)).status for headers in everybody]
    assert statuses == [401, 401, 200, 200]


async def test_a_cached_answer_is_not_for_a_revoked_token(
    ledger: FakeLedger, make_client: MakeClient, path: Path
) -> None:
    client = await make_client(auth__revocation_file=str(path), cache__ledger_ttl_s="600")
    headers = caller(jti="one")
    for _ in range(2):
        assert (await client.get("/ledger", headers=headers)).status == 200
    assert len(ledger.calls) == 1
    replace(path, '{"jti":["one"]}')
    assert (await client.get("/ledger", headers=headers)).status == 401


async def test_health_says_when_the_list_is_stale_and_the_gateway_goes_on(
    ledger: FakeLedger, make_client: MakeClient, path: Path
) -> None:
    replace(path, '{"jti":["one"]}')
    client = await make_client(auth__revocation_file=str(path))

    async def seen() -> tuple[int, int, bool]:
        revoked = await client.get("/ledger", headers=caller(jti="one"))
        good = await client.get("/ledger", headers=caller(jti="two"))
        report = await (await ops.get("/health")).json()
        return revoked.status, good.status, report["keys"]["revocations_stale"]

    async with TestClient(TestServer(client.gateway.ops)) as ops:  # type: ignore[attr-defined]
        assert await seen() == (401, 200, False)
        replace(path, "nonsense with a secret in it")
        assert await seen() == (401, 200, True)
        assert "secret" not in await (await ops.get("/health")).text()
        os.unlink(path)
        assert await seen() == (401, 200, True)
        assert (await client.get("/health/ready")).status == 200
        replace(path, NOTHING)
        assert await seen() == (200, 200, False)


async def test_a_bad_signature_is_not_looked_up(
    ledger: FakeLedger, make_client: MakeClient, path: Path
) -> None:
    """What a list says is for holders of good tokens only: a forged one learns nothing of it."""
    client = await make_client(auth__revocation_file=str(path))
    replace(path, '{"jti":["one"]}')
    details = []
    for token_id in ("one", "two"):
        headers = caller(jti=token_id)
        headers["Authorization"] = headers["Authorization"][:-43] + "A" * 43
        response = await client.get("/ledger", headers=headers)
        assert response.status == 401
        details.append((await response.json())["api_data"]["detail"])
    assert details[0] == details[1]
    assert ledger.calls == []
