"""A key set kept up to date: a fetch that fails never drops good keys, and none is made too often.

The fetch is scripted and the clock is in the hand; over HTTP see test_jwks.
"""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from gateway import key_set
from gateway.authn import read_key_set
from gateway.errors import LedgerBroken, LedgerTimeout, LedgerUnreachable
from gateway.key_set import Keys, KeySet, KeySetRules

RULES = KeySetRules(refresh_s=300.0, max_age_s=3600.0)
ONE: Keys = {("RS256", "one"): b"key one"}
TWO: Keys = {("RS256", "two"): b"key two"}
BOTH: Keys = {**ONE, **TWO}

Step = Keys | Exception | Callable[[], Awaitable[Keys]]


class Bench:
    """A key set over a scripted source, which goes on with its last step."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.now = 1000.0
        self.fetches = 0
        self.changes = 0
        self._parsed: Keys = {}
        self.keys = KeySet(self._fetch, self._parse, RULES, self._changed, now=lambda: self.now)

    async def _fetch(self) -> bytes:
        self.fetches += 1
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        self._parsed = await step() if callable(step) else step
        return b"document"

    def _parse(self, document: bytes) -> Keys:
        assert document == b"document"
        return self._parsed

    def _changed(self) -> None:
        self.changes += 1


class Held:
    """A step that ends when it is let go."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.reached = asyncio.Event()
        self.free = asyncio.Event()

    async def __call__(self) -> Keys:
        self.reached.set()
        await self.free.wait()
        return self.keys


# What is trusted.


def test_before_the_first_fetch_there_are_no_keys() -> None:
    keys = Bench(ONE).keys
    assert not keys.ready
    assert keys.age() is None
    assert keys.find("RS256", "one") is None
    assert keys.find("RS256", None) is None


async def test_keys_are_found_by_algorithm_and_id() -> None:
    bench = Bench(BOTH)
    assert await bench.keys.load()
    assert bench.keys.ready
    assert bench.keys.find("RS256", "one") == b"key one"
    assert bench.keys.find("RS256", "two") == b"key two"
    assert bench.keys.find("RS256", "three") is None
    assert bench.keys.find("RS256", "") is None
    assert bench.keys.find("ES256", "one") is None
    assert bench.keys.find("HS256", "one") is None


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (ONE, b"key one"),
        ({("RS256", ""): b"nameless"}, b"nameless"),
        ({**ONE, ("ES256", "two"): b"other"}, b"key one"),
        (BOTH, None),
        ({**ONE, ("RS256", ""): b"nameless"}, None),
        ({("ES256", "one"): b"other"}, None),
    ],
    ids=["one", "one without id", "one of the algorithm", "two", "one of two named", "none"],
)
async def test_without_an_id_only_a_key_that_is_alone_will_do(
    keys: Keys, found: bytes | None
) -> None:
    bench = Bench(keys)
    await bench.keys.load()
    assert bench.keys.find("RS256", None) == found


FAULTS = [
    *(LedgerUnreachable(""), LedgerTimeout(""), LedgerBroken("")),
    *(ValueError("no set"), {}, TypeError("a bug")),
]
FAULT_IDS = ["away", "late", "broken", "no set", "empty", "a bug"]


@pytest.mark.parametrize("fault", FAULTS, ids=FAULT_IDS)
async def test_a_fetch_that_fails_keeps_the_last_good_keys(fault: Step) -> None:
    bench = Bench(ONE, fault, TWO)
    assert await bench.keys.load()
    bench.now += 100.0
    assert not await bench.keys.load()
    assert bench.keys.ready
    assert bench.keys.find("RS256", "one") == b"key one"
    assert bench.keys.age() == 100.0
    assert bench.changes == 1
    assert await bench.keys.load()
    assert bench.keys.find("RS256", "one") is None
    assert bench.keys.find("RS256", "two") == b"key two"


@pytest.mark.parametrize("fault", FAULTS, ids=FAULT_IDS)
async def test_a_first_fetch_that_fails_leaves_it_not_ready(fault: Step) -> None:
    bench = Bench(fault)
    assert not await bench.keys.load()
    assert not bench.keys.ready
    assert bench.keys.age() is None
    assert bench.changes == 0


@pytest.mark.parametrize(("age", "ready"), [(3599.9, True), (3600.0, False), (1e6, False)])
async def test_keys_are_good_for_a_stated_time(age: float, ready: bool) -> None:
    bench = Bench(ONE, LedgerUnreachable(""))
    await bench.keys.load()
    bench.now += age
    await bench.keys.load()
    assert bench.keys.ready is ready
    assert (bench.keys.find("RS256", "one") is not None) is ready
    assert (bench.keys.find("RS256", None) is not None) is ready
    assert bench.keys.age() == pytest.approx(age)


async def test_old_keys_are_good_again_when_they_are_confirmed() -> None:
    bench = Bench(ONE)
    await bench.keys.load()
    bench.now += 10_000.0
    assert not bench.keys.ready
    assert await bench.keys.load()
    assert bench.keys.ready
    assert bench.keys.age() == 0.0


@pytest.mark.parametrize(
    ("second", "changes"),
    [
        (dict(ONE), 1),
        (TWO, 2),
        (BOTH, 2),
        ({("RS256", "one"): b"another key under the same id"}, 2),
        ({("ES256", "one"): b"key one"}, 2),
    ],
    ids=["the same", "others", "one more", "another under the same id", "another algorithm"],
)
async def test_whoever_remembers_is_told_of_every_change_and_of_nothing_else(
    second: Keys, changes: int
) -> None:
    bench = Bench(ONE, second)
    await bench.keys.load()
    await bench.keys.load()
    assert bench.changes == changes


# How often it asks.


async def test_an_unknown_id_has_the_set_fetched_again() -> None:
    bench = Bench(ONE, TWO)
    await bench.keys.load()
    await bench.keys.refetch()
    assert bench.fetches == 2
    assert bench.keys.find("RS256", "two") == b"key two"


async def test_unknown_ids_ask_the_key_server_once_in_thirty_seconds() -> None:
    bench = Bench(ONE)
    await bench.keys.load()
    fetched = []
    for _ in range(100):
        bench.now += 1.0
        await bench.keys.refetch()
        fetched.append(bench.fetches)
    assert fetched[:1] + fetched[29:31] == [2, 2, 3]
    assert fetched[-1] == 5


async def test_a_fetch_that_fails_counts_too() -> None:
    bench = Bench(LedgerUnreachable(""))
    for _ in range(50):
        await bench.keys.refetch()
    assert bench.fetches == 1
    bench.now += 29.9
    await bench.keys.refetch()
    assert bench.fetches == 1
    bench.now += 0.1
    await bench.keys.refetch()
    assert bench.fetches == 2


async def test_so_does_one_that_no_caller_asked_for() -> None:
    bench = Bench(LedgerUnreachable(""))
    await bench.keys.load()
    bench.now += 29.9
    await bench.keys.refetch()
    assert bench.fetches == 1


async def test_callers_at_the_same_time_share_one_fetch() -> None:
    held = Held(ONE)
    bench = Bench(held)
    callers = [asyncio.create_task(bench.keys.refetch()) for _ in range(50)]
    await held.reached.wait()
    callers += [asyncio.create_task(bench.keys.refetch()) for _ in range(50)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in callers)
    held.free.set()
    await asyncio.gather(*callers)
    assert bench.fetches == 1
    assert bench.keys.find("RS256", "one") == b"key one"


async def test_a_caller_who_leaves_does_not_take_the_fetch_along() -> None:
    held = Held(ONE)
    bench = Bench(held)
    leaver, stayer = (asyncio.create_task(bench.keys.load()) for _ in range(2))
    await held.reached.wait()
    leaver.cancel()
    await asyncio.wait([leaver])
    held.free.set()
    assert await stayer
    assert bench.fetches == 1
    assert bench.keys.ready


# In the background.


class Ended(Exception):
    """The end of what a test lets the background do."""


async def pauses_of(bench: Bench, monkeypatch: pytest.MonkeyPatch, count: int) -> list[float]:
    """What the background task waits for, so many times; no time passes."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        bench.now += seconds
        if len(waited) == count:
            raise Ended

    monkeypatch.setattr(key_set, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    with pytest.raises(Ended):
        await bench.keys.run()
    return waited


async def test_the_background_refreshes_every_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(ONE, ONE, TWO)
    assert await pauses_of(bench, monkeypatch, 3) == [300.0] * 3
    assert bench.fetches == 3
    assert bench.keys.find("RS256", "two") == b"key two"


async def test_the_background_tries_again_ever_more_slowly_and_never_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(*[LedgerUnreachable("")] * 11, ONE, ValueError(""), ONE)
    assert await pauses_of(bench, monkeypatch, 14) == [
        *(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0),
        *(300.0, 1.0, 300.0),
    ]
    assert bench.keys.ready


# What a document holds.


def b64(number_or_bytes: int | bytes) -> str:
    data = number_or_bytes
    if isinstance(data, int):
        data = data.to_bytes((data.bit_length() + 7) // 8)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def rsa_key() -> RSAKey:
    return RSAKey.generate_key(2048)


@cache
def ec_key() -> ECKey:
    return ECKey.generate_key("P-256")


@cache
def okp_key() -> OKPKey:
    return OKPKey.generate_key("Ed25519")


def jwk(kind: str, *, private: bool = False, **members: Any) -> dict[str, Any]:
    made = {"RS256": rsa_key, "ES256": ec_key, "EdDSA": okp_key}[kind]()
    plain = dict(made.as_dict(private=private))
    plain.pop("kid", None)
    return plain | members


def document(*entries: object) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


ALL = ("RS256", "ES256", "EdDSA")


def names(*entries: object, algorithms: tuple[str, ...] = ALL) -> list[tuple[str, str]]:
    return sorted(read_key_set(document(*entries), algorithms))


@pytest.mark.parametrize("kind", ALL)
def test_each_kind_of_key_is_pinned_to_its_algorithm(kind: str) -> None:
    assert names(jwk(kind, kid="one")) == [(kind, "one")]
    assert names(jwk(kind, kid="one", alg=kind)) == [(kind, "one")]
    assert names(jwk(kind, kid="one", use="sig")) == [(kind, "one")]
    assert names(jwk(kind, kid="one", key_ops=["verify"])) == [(kind, "one")]
    assert names(jwk(kind, kid="one", x5t="abc", whatever=[1])) == [(kind, "one")]
    assert names(jwk(kind)) == [(kind, "")]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"use": None},
        {"use": 1},
        {"key_ops": ["sign"]},
        {"key_ops": ["encrypt", "wrapKey"]},
        {"key_ops": []},
        {"key_ops": None},
        {"key_ops": 5},
        {"key_ops": "verify"},
        {"key_ops": {"verify": 1}},
        {"alg": "RS512"},
        {"alg": "PS256"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"alg": "none"},
        {"alg": "RSA-OAEP"},
        {"alg": ""},
        {"alg": None},
        {"alg": ["RS256"]},
        {"kid": 1},
        {"kid": None},
        {"kid": ["one"]},
        {"kty": "oct"},
        {"kty": "XYZ"},
        {"kty": None},
        {"kty": 7},
    ],
    ids=str,
)
def test_a_key_that_is_not_for_this_is_passed_over(kind: str, members: dict[str, Any]) -> None:
    good = jwk("ES256", kid="good")
    entry = jwk(kind, kid="one") | members
    assert names(entry, good) == names(good, entry) == [("ES256", "good")]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        1,
        "key",
        [],
        {},
        {"kty": "RSA"},
        {"kty": "RSA", "n": "AQAB"},
        {"kty": "RSA", "n": 5, "e": 3},
        {"kty": "RSA", "n": "", "e": ""},
        {"kty": "RSA", "n": "!!!", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256"},
        {"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 32), "y": b64(b"\1" * 32)},
        {"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 31), "y": b64(b"\1" * 31)},
        {"kty": "EC", "crv": ["P-256"], "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "Ed25519"},
        {"kty": "OKP", "crv": "Ed25519", "x": b64(b"\1" * 31)},
        {"kty": "OKP", "crv": "Ed25519", "x": None},
        {"kty": "OKP", "crv": "X25519", "x": b64(b"\1" * 32)},
        {"kty": "oct", "k": b64(b"k" * 64)},
        {"kty": "oct", "k": b64(b"k" * 64), "alg": "RS256"},
    ],
    ids=str,
)
def test_what_is_no_usable_key_is_passed_over(entry: object) -> None:
    if isinstance(entry, dict):
        entry = entry | {"kid": "bad"}
    assert names(entry, jwk("EdDSA", kid="good")) == [("EdDSA", "good")]


def test_weak_keys_and_other_curves_are_passed_over() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    curve = ECKey.import_key(ec.generate_private_key(ec.SECP384R1())).as_dict(private=False)
    others = [
        {"kty": "RSA", "n": b64(weak.n), "e": "AQAB"},
        curve,
        curve | {"crv": "P-256"},
        ECKey.import_key(ec.generate_private_key(ec.SECP256K1())).as_dict(private=False),
        OKPKey.import_key(ed448.Ed448PrivateKey.generate()).as_dict(private=False),
        OctKey.import_key("k" * 64).as_dict(),
    ]
    assert names(*(entry | {"kid": "other"} for entry in others)) == []
    strong = rsa_key().raw_value.public_key().public_numbers()
    assert names({"kty": "RSA", "n": b64(strong.n), "e": "AQAB"}) == [("RS256", "")]


@pytest.mark.parametrize("kind", ALL)
def test_a_private_key_that_was_published_is_not_trusted(kind: str) -> None:
    assert names(jwk(kind, private=True, kid="one")) == []


def test_only_configured_algorithms_have_keys() -> None:
    entries = [jwk(kind, kid="one") for kind in ALL]
    assert names(*entries) == [("ES256", "one"), ("EdDSA", "one"), ("RS256", "one")]
    assert names(*entries, algorithms=("ES256",)) == [("ES256", "one")]
    assert names(*entries, algorithms=("HS256",)) == []


def test_of_two_keys_with_one_id_the_first_counts() -> None:
    first, second = ec_key(), ECKey.generate_key("P-256")
    entries = [key.as_dict(private=False) | {"kid": "one"} for key in (first, second)]
    found = read_key_set(document(*entries), ALL)
    assert found == {("ES256", "one"): first.public_key}
    assert first.public_key != second.public_key


def test_one_id_may_stand_for_a_key_of_each_algorithm() -> None:
    assert len(names(*(jwk(kind, kid="one") for kind in ALL))) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"<html></html>",
        b"null",
        b"[]",
        b"1",
        b'"keys"',
        b"{}",
        b'{"keys":null}',
        b'{"keys":{}}',
        b'{"keys":"x"}',
        b'{"Keys":[]}',
        b'{"keys":[],"keys":[]}',
        b'{"keys":[]',
        b'{"keys":[]}x',
        b'\xef\xbb\xbf{"keys":[]}',
        b'{"keys":["\xe9"]}',
        b'{"keys":[NaN]}',
        b'{"keys":' + b"[" * 100_000,
        b'{"keys":[{"kty":"RSA","kty":"EC"}]}',
    ],
)
def test_what_is_no_key_set_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_key_set(data, ALL)


def test_a_set_without_keys_is_an_empty_one() -> None:
    assert read_key_set(b'{"keys":[]}', ALL) == {}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        ["", "RSA", "EC", "OKP", "P-256", "Ed25519", "sig", "AQAB", "verify", "RS256"]
    ),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
MEMBERS = st.sampled_from(["kty", "crv", "alg", "use", "kid", "key_ops", "n", "e", "x", "y", "d"])


@settings(deadline=None)
@given(st.sampled_from(ALL), st.dictionaries(MEMBERS, JSON_VALUES, max_size=4))
def test_whatever_a_key_server_writes_into_a_key_the_others_stay_usable(
    kind: str, members: dict[str, Any]
) -> None:
    found = read_key_set(document(jwk(kind, kid="one") | members, jwk("ES256", kid="good")), ALL)
    assert ("ES256", "good") in found
    assert len(found) <= 2


def test_the_keys_are_public_ones_of_the_types_we_know() -> None:
    found = read_key_set(document(*(jwk(kind, kid=kind) for kind in ALL)), ALL)
    assert isinstance(found["RS256", "RS256"], rsa.RSAPublicKey)
    assert isinstance(found["ES256", "ES256"], ec.EllipticCurvePublicKey)
    assert isinstance(found["EdDSA", "EdDSA"], ed25519.Ed25519PublicKey)
