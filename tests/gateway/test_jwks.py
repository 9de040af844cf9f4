"""Keys from a real key server, seen from outside: rotation, faults, and what it is asked."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from joserfc import jwt as jose
from joserfc.jwk import ECKey, KeySet, RSAKey

from gateway import app
from gateway.app import create_app, shared
from tests.conftest import CREDENTIAL, RATES, GatewayServer, MakeClient, caller, config_for
from tests.fakes import FakeLedger

Signer = RSAKey | ECKey
Script = Callable[[web.Request], Awaitable[web.StreamResponse]]

ONE = RSAKey.generate_key(2048, {"kid": "one"})
TWO = RSAKey.generate_key(2048, {"kid": "two"})
CURVE = ECKey.generate_key("P-256", {"kid": "curve"})
STRANGER = RSAKey.generate_key(2048, {"kid": "stranger"})


@dataclass
class KeyServer:
    """Publishes keys, or answers what it is told to; `hits` is what it was asked."""

    hits: list[dict[str, str]] = field(default_factory=list)
    script: Script | None = None
    body: bytes = b""
    url: str = ""
    hit: asyncio.Condition = field(default_factory=asyncio.Condition)

    def publish(self, *keys: Signer, **members: Any) -> None:
        self.script = None
        entries = KeySet(list(keys)).as_dict(private=False)["keys"]
        self.body = json.dumps({"keys": [dict(entry) | members for entry in entries]}).encode()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        async def script(_request: web.Request) -> web.Response:
            return web.Response(status=status, body=body, headers=named)

        self.script = script

    async def asked(self, times: int) -> None:
        """Until it was asked so often."""
        async with asyncio.timeout(20), self.hit:
            await self.hit.wait_for(lambda: len(self.hits) >= times)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        async with self.hit:
            self.hits.append(dict(request.headers) | {":path": request.path_qs})
            self.hit.notify_all()
        if self.script is not None:
            return await self.script(request)
        return web.Response(body=self.body, content_type="application/json")


@pytest.fixture
async def keys() -> AsyncIterator[KeyServer]:
    fake = KeyServer()
    fake.publish(ONE)
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", fake.handle)
    server = TestServer(application)
    await server.start_server()
    fake.url = str(server.make_url("/jwks.json"))
    yield fake
    await server.close()


class Gateway:
    """A gateway that has its keys from the key server, and its keys' clock in the hand."""

    def __init__(self, client: TestClient[Any, Any]) -> None:
        self.client = client
        self.health = client.gateway.health  # type: ignore[attr-defined]
        self.key_set = self.health._keyring._key_set
        self.now = time.monotonic()
        self.key_set._now = lambda: self.now

    async def refresh(self) -> bool:
        """What the background does every five minutes."""
        loaded: bool = await self.key_set.load()
        return loaded

    async def get(self, token: str, path: str = "/ledger") -> int:
        response = await self.client.get(path, headers=bearer(token))
        return response.status


MakeGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture
def make_gateway(make_client: MakeClient, keys: KeyServer) -> MakeGateway:
    async def make(**settings: str) -> Gateway:
        named = {
            "auth__algorithms": "RS256,ES256",
            "auth__jwks_url": keys.url,
            "cache__enabled": "false",
        }
        made = Gateway(await make_client(**(named | settings)))
        await keys.asked(1)
        if made.key_set._flight is not None:
            # The background's first fetch is under way; it is joined here.
            await made.refresh()
        return made

    return make


def bearer(token: str, username: str = "alice") -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "username": username}


def signed(key: Signer, username: str = "alice", *, kid: str | None = "", **claims: Any) -> str:
    """A good token; `kid` is the key's own, another, or none at all."""
    now = int(time.time())
    algorithm = "RS256" if isinstance(key, RSAKey) else "ES256"
    header = {"alg": algorithm} | ({} if kid is None else {"kid": kid or str(key.kid)})
    payload = {"sub": username, "role": "user", "exp": now + 600} | claims
    return jose.encode(header, payload, key, algorithms=[algorithm])


# Loading.


async def test_keys_are_loaded_at_the_start_and_tokens_are_verified_with_them(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    keys.publish(ONE, CURVE)
    gateway = await make_gateway()
    for key in (ONE, CURVE):
        response = await gateway.client.get("/ledger", headers=bearer(signed(key)))
        assert response.status == 200
        assert (await response.json())["api_message"] == "LEDGER_GET_LIST_SUCCESS"
    assert [call.path for call in ledger.calls] == ["/ledger/alice"] * 2
    assert len(keys.hits) == 1


async def test_a_stranger_is_refused(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway()
    for token in (signed(STRANGER), signed(STRANGER, kid="one"), signed(STRANGER, kid=None)):
        assert await gateway.get(token) == 401
    assert ledger.calls == []


async def test_the_key_server_gets_no_credential_and_nothing_of_a_caller(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway()
    gateway.now += 30.0
    token = signed(ONE, kid="secret-of-a-caller")
    assert await gateway.get(token) == 401
    assert len(keys.hits) == 2
    for hit in keys.hits:
        assert hit[":path"] == "/jwks.json"
        assert {name.lower() for name in hit} == {":path", "host", "accept", "accept-encoding"}
        assert CREDENTIAL not in str(hit)
        assert "secret-of-a-caller" not in str(hit)


async def test_the_first_callers_wait_for_the_keys_that_are_on_their_way(
    keys: KeyServer, make_client: MakeClient, ledger: FakeLedger
) -> None:
    free = asyncio.Event()

    async def script(_request: web.Request) -> web.Response:
        await free.wait()
        return web.Response(body=keys.body)

    keys.script = script
    client = await make_client(auth__algorithms="RS256", auth__jwks_url=keys.url)
    requests = [
        asyncio.create_task(client.get("/ledger", headers=bearer(signed(ONE)))) for _ in range(10)
    ]
    await keys.asked(1)
    assert (await client.get("/health/ready")).status == 503
    assert (await client.get("/health/live")).status == 200
    free.set()
    assert [response.status for response in await asyncio.gather(*requests)] == [200] * 10
    assert len(keys.hits) == 1
    assert (await client.get("/health/ready")).status == 200


async def test_a_compressed_set_is_read(keys: KeyServer, make_gateway: MakeGateway) -> None:
    keys.answer(200, gzip.compress(keys.body), Content_Encoding="gzip")
    assert await (await make_gateway()).get(signed(ONE)) == 200


async def test_the_media_type_does_not_matter(keys: KeyServer, make_gateway: MakeGateway) -> None:
    keys.answer(200, keys.body, Content_Type="text/plain; charset=latin-1")
    assert await (await make_gateway()).get(signed(ONE)) == 200


async def test_the_background_refreshes_by_itself(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway(auth__jwks_refresh_s="0.1")
    token = signed(ONE)
    assert await gateway.get(token) == 200
    keys.publish(TWO)
    # Two more: when the second is asked for, the first has been read.
    await keys.asked(len(keys.hits) + 2)
    assert await gateway.get(token) == 401
    assert await gateway.get(signed(TWO)) == 200


# No keys at all.


async def test_without_keys_nobody_is_let_in_and_the_gateway_is_not_ready(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    keys.answer(500)
    gateway = await make_gateway()
    for path in ("/ledger", "/ledger/order/1", RATES):
        response = await gateway.client.get(path, headers=bearer(signed(ONE)))
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
        assert "NOT_READY" in await response.text()
    assert ledger.calls == []
    ready = await gateway.client.get("/health/ready")
    assert (ready.status, ready.headers["Retry-After"]) == (503, "1")
    assert (await gateway.client.get("/health/live")).status == 200


async def test_a_key_server_that_is_away_leaves_it_not_ready(
    make_client: MakeClient, ledger: FakeLedger, unused_tcp_port: int
) -> None:
    client = await make_client(
        auth__algorithms="RS256", auth__jwks_url=f"http://127.0.0.1:{unused_tcp_port}/jwks"
    )
    assert (await client.get("/ledger", headers=bearer(signed(ONE)))).status == 503
    assert (await client.get("/health/ready")).status == 503
    assert ledger.calls == []


async def test_no_token_and_a_malformed_one_are_401_also_without_keys(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    keys.answer(500)
    gateway = await make_gateway()
    assert (await gateway.client.get("/ledger")).status == 401
    assert await gateway.get("a.b.c") == 401
    assert ledger.calls == []


async def test_it_becomes_ready_when_the_keys_come(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    keys.answer(500)
    gateway = await make_gateway()
    assert await gateway.get(signed(ONE)) == 503
    keys.publish(ONE)
    assert await gateway.refresh()
    assert await gateway.get(signed(ONE)) == 200
    assert (await gateway.client.get("/health/ready")).status == 200


async def test_a_secret_works_beside_a_key_set_and_each_stays_with_its_own(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway(auth__algorithms="HS256,RS256")
    assert (await gateway.client.get("/ledger", headers=caller())).status == 200
    assert await gateway.get(signed(ONE)) == 200
    assert await gateway.get(signed(STRANGER, kid="one")) == 401
    assert await gateway.get(signed(CURVE)) == 401
    assert len(ledger.calls) == 2


async def test_a_secret_works_while_the_key_server_is_away(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    keys.answer(500)
    gateway = await make_gateway(auth__algorithms="HS256,RS256")
    assert (await gateway.client.get("/ledger", headers=caller())).status == 200
    assert await gateway.get(signed(ONE)) == 503
    assert (await gateway.client.get("/health/ready")).status == 503


# Rotation.


async def test_a_new_key_is_accepted_at_once_and_without_a_restart(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway()
    assert await gateway.get(signed(ONE)) == 200
    keys.publish(ONE, TWO)
    assert await gateway.get(signed(TWO)) == 200
    assert await gateway.get(signed(ONE)) == 200
    assert len(keys.hits) == 2


@pytest.mark.parametrize("fast_path", ["true", "false"])
async def test_a_key_that_was_taken_out_is_refused_also_for_a_remembered_token(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger, fast_path: str
) -> None:
    gateway = await make_gateway(server__fast_path=fast_path)
    old = signed(ONE)
    assert [await gateway.get(old) for _ in range(3)] == [200] * 3
    keys.publish(TWO)
    assert await gateway.refresh()
    seen = len(ledger.calls)
    assert [await gateway.get(old) for _ in range(3)] == [401] * 3
    assert len(ledger.calls) == seen
    assert await gateway.get(signed(TWO)) == 200


async def test_another_key_under_the_same_id_replaces_the_first(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway()
    old = signed(ONE)
    assert await gateway.get(old) == 200
    keys.publish(STRANGER, kid="one")
    assert await gateway.refresh()
    assert await gateway.get(old) == 401
    assert await gateway.get(signed(STRANGER, kid="one")) == 200


async def test_a_cached_answer_does_not_outlive_the_key(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway(cache__enabled="true", cache__ledger_ttl_s="600")
    old = signed(ONE)
    assert [await gateway.get(old) for _ in range(2)] == [200, 200]
    assert len(ledger.calls) == 1
    keys.publish(TWO)
    assert await gateway.refresh()
    assert await gateway.get(old) == 401


async def test_fifty_unknown_ids_have_the_key_server_asked_once_in_thirty_seconds(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway()
    gateway.now += 30.0
    tokens = [signed(STRANGER, kid=f"unknown-{number}") for number in range(50)]
    assert set(await asyncio.gather(*map(gateway.get, tokens))) == {401}
    assert len(keys.hits) == 2
    for token in tokens:
        gateway.now += 0.5
        assert await gateway.get(token) == 401
    assert len(keys.hits) == 2
    gateway.now += 5.0
    assert await gateway.get(tokens[0]) == 401
    assert len(keys.hits) == 3
    assert ledger.calls == []


async def test_unknown_ids_do_not_keep_known_ones_waiting(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway()
    free = asyncio.Event()

    async def script(_request: web.Request) -> web.Response:
        await free.wait()
        return web.Response(body=keys.body)

    keys.script = script
    gateway.now += 30.0
    waiting = asyncio.create_task(gateway.get(signed(STRANGER)))
    await keys.asked(2)
    assert await gateway.get(signed(ONE)) == 200
    assert not waiting.done()
    free.set()
    assert await waiting == 401


# Faults of the key server.

FAULTS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "500": (500, b"", {}),
    "404": (404, b'{"keys":[]}', {}),
    "204": (204, b"", {}),
    "not JSON": (200, b"<html>maintenance</html>", {}),
    "cut off": (200, b'{"keys":[', {}),
    "no set": (200, b'{"jwks":[]}', {}),
    "a list": (200, b"[]", {}),
    "null": (200, b"null", {}),
    "empty": (200, b"", {}),
    "an empty set": (200, b'{"keys":[]}', {}),
    "no usable key": (200, b'{"keys":[{"kty":"oct","kid":"one","k":"AAAA"}]}', {}),
    "a key twice": (200, b'{"keys":[],"keys":[]}', {}),
    "bad UTF-8": (200, b'{"keys":["\xff"]}', {}),
    "deep": (200, b"[" * 50_000, {}),
    "too large": (200, b'{"keys":[]}' + b" " * 300_000, {}),
    "gzip that is none": (200, b"nonsense", {"Content_Encoding": "gzip"}),
    "a gzip bomb": (200, gzip.compress(b" " * 10_000_000), {"Content_Encoding": "gzip"}),
    "an unknown coding": (200, b"nonsense", {"Content_Encoding": "br"}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_keeps_the_last_good_keys_and_counts_their_age(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger, fault: str
) -> None:
    gateway = await make_gateway()
    token = signed(ONE)
    status, body, headers = FAULTS[fault]
    keys.answer(status, body, **headers)
    gateway.now += 100.0
    assert not await gateway.refresh()
    assert await gateway.get(token) == 200
    assert gateway.key_set.age() == pytest.approx(100.0)
    assert (await gateway.client.get("/health/ready")).status == 200
    keys.publish(TWO)
    assert await gateway.refresh()
    assert await gateway.get(token) == 401
    assert await gateway.get(signed(TWO)) == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger, status: int
) -> None:
    body = keys.body

    async def script(request: web.Request) -> web.Response:
        if request.path == "/other":
            return web.Response(body=body)
        return web.Response(status=status, headers={"Location": "/other"}, body=body)

    keys.script = script
    gateway = await make_gateway()
    assert await gateway.get(signed(ONE)) == 503
    assert {hit[":path"] for hit in keys.hits} == {"/jwks.json"}


async def test_a_key_server_that_hangs_is_given_up(
    keys: KeyServer,
    make_gateway: MakeGateway,
    ledger: FakeLedger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert app.KEY_SET_TIMEOUT_S == 5.0
    monkeypatch.setattr(app, "KEY_SET_TIMEOUT_S", 1.0)
    gateway = await make_gateway()
    never = asyncio.Event()

    async def script(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"keys":[')
        await never.wait()
        return response

    keys.script = script
    assert not await gateway.refresh()
    assert await gateway.get(signed(ONE)) == 200
    never.set()


async def test_a_key_server_that_breaks_off_keeps_the_last_good_keys(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway()
    body = keys.body

    async def script(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body) + 1)})
        await response.prepare(request)
        await response.write(body)
        assert request.transport is not None
        request.transport.close()
        return response

    keys.script = script
    assert not await gateway.refresh()
    assert await gateway.get(signed(ONE)) == 200


async def test_odd_members_of_one_key_do_no_harm_to_the_others(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    good = json.loads(keys.body)["keys"]
    odd = [
        *(None, 1, "x", [], {}),
        *({**good[0], "kid": "odd", "key_ops": value} for value in (None, 5, True, "verify")),
        *({**good[0], "kid": value} for value in (None, 5, [])),
        *({**good[0], "kid": "odd", "n": value} for value in (None, 5, "", "!", [])),
        {"kty": "oct", "kid": "one", "k": "A" * 43, "alg": "RS256"},
    ]
    keys.answer(200, json.dumps({"keys": odd + good}).encode())
    gateway = await make_gateway()
    assert await gateway.get(signed(ONE)) == 200
    assert await gateway.get(signed(ONE, kid="odd")) == 401


async def test_keys_that_could_not_be_refreshed_for_too_long_are_no_keys(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway(auth__jwks_max_age_s="3600")
    token = signed(ONE)
    assert await gateway.get(token) == 200
    keys.answer(500)
    gateway.now += 3000.0
    assert not await gateway.refresh()
    assert await gateway.get(token) == 200
    gateway.now += 1000.0
    seen = len(ledger.calls)
    for old in (token, signed(ONE, jti="another")):
        response = await gateway.client.get("/ledger", headers=bearer(old))
        assert response.status == 503
        assert "Retry-After" in response.headers
    assert len(ledger.calls) == seen
    assert (await gateway.client.get("/health/ready")).status == 503
    keys.publish(ONE)
    assert await gateway.refresh()
    assert await gateway.get(token) == 200


# Which key, and for what.


@pytest.mark.parametrize(
    "members",
    [{"alg": "RS512"}, {"alg": "PS256"}, {"use": "enc"}, {"key_ops": ["encrypt"]}],
    ids=str,
)
async def test_a_key_for_something_else_verifies_nothing(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger, members: dict[str, Any]
) -> None:
    keys.publish(CURVE)
    curve = json.loads(keys.body)["keys"]
    keys.publish(ONE, **members)
    mixed = json.loads(keys.body)["keys"] + curve
    keys.answer(200, json.dumps({"keys": mixed}).encode())
    gateway = await make_gateway()
    assert await gateway.get(signed(CURVE)) == 200
    assert await gateway.get(signed(ONE)) == 401
    assert await gateway.get(signed(ONE, kid=None)) == 401
    assert len(ledger.calls) == 1


async def test_the_id_of_one_key_does_not_serve_anothers_algorithm(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    keys.publish(ONE, CURVE)
    gateway = await make_gateway()
    assert await gateway.get(signed(ONE, kid="curve")) == 401
    assert await gateway.get(signed(CURVE, kid="one")) == 401
    assert ledger.calls == []


async def test_a_token_without_an_id_needs_a_key_that_is_alone(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    keys.publish(ONE, CURVE)
    gateway = await make_gateway()
    assert await gateway.get(signed(ONE, kid=None)) == 200
    keys.publish(ONE, TWO)
    assert await gateway.refresh()
    assert await gateway.get(signed(ONE, kid=None)) == 401
    assert await gateway.get(signed(TWO, kid=None)) == 401
    assert await gateway.get(signed(TWO)) == 200


async def test_of_two_keys_under_one_id_the_first_counts(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    keys.publish(ONE, STRANGER, kid="same")
    gateway = await make_gateway()
    assert await gateway.get(signed(ONE, kid="same")) == 200
    assert await gateway.get(signed(STRANGER, kid="same")) == 401


async def test_a_published_secret_is_nobodys_secret(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    body = {"kty": "oct", "kid": "one", "alg": "HS256", "k": "A" * 86}
    entries = [*json.loads(keys.body)["keys"], body]
    keys.answer(200, json.dumps({"keys": entries}).encode())
    gateway = await make_gateway(auth__algorithms="HS256,RS256")
    now = int(time.time())
    claims = {"sub": "alice", "role": "admin", "exp": now + 60}
    forged = jwt.encode(claims, b"\0" * 64, algorithm="HS256", headers={"kid": "one"})
    assert await gateway.get(forged) == 401
    assert ledger.calls == []


# What operators see, and the end.


async def test_health_shows_the_age_of_the_keys(
    keys: KeyServer, make_gateway: MakeGateway, ledger: FakeLedger
) -> None:
    gateway = await make_gateway()
    gateway.now += 42.0
    async with TestClient(TestServer(gateway.client.gateway.ops)) as ops:  # type: ignore[attr-defined]
        report = await (await ops.get("/health")).json()
    assert report["keys"]["loaded"] is True
    assert 42.0 <= report["keys"]["age_s"] < 100.0


async def test_a_gateway_goes_away_while_the_key_server_hangs(
    keys: KeyServer, ledger: FakeLedger
) -> None:
    free = asyncio.Event()

    async def script(_request: web.Request) -> web.Response:
        await free.wait()
        return web.Response(status=500)

    keys.script = script
    before = asyncio.all_tasks()
    config = config_for(ledger.url, auth__algorithms="RS256", auth__jwks_url=keys.url)
    client = TestClient(GatewayServer(create_app(config, shared(config)).api))
    await client.start_server()
    await keys.asked(1)
    async with asyncio.timeout(20):
        await client.close()
    free.set()
    ours = {task for task in asyncio.all_tasks() - before if "KeySet" in repr(task.get_coro())}
    assert ours == set()
