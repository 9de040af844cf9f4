"""Representations: entity tags, content codings, and which of them a caller gets."""

import asyncio
import gzip
import random
import time
from collections.abc import Callable
from types import SimpleNamespace

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import representations
from gateway.representations import Representation, matches, preferred, represent

SMALLEST = 1024
LARGE = 64 * 1024
BODY = b'{"id":"1","username":"alice"},' * 100
# Does not shrink.
NOISE = random.Random(1).randbytes(4096)


@pytest.fixture
def with_brotli(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway with brotli, whether or not it is installed: what it makes begins with `br`."""

    def compress(body: bytes, quality: int) -> bytes:
        assert 0 < quality < 12
        return b"br" + body[: len(body) // 3]

    monkeypatch.setattr(representations, "brotli", SimpleNamespace(compress=compress))
    coders = {"br": representations._brotli, "gzip": representations._gzip}
    monkeypatch.setattr(representations, "_CODERS", coders)


@pytest.fixture
def without_brotli(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that can only gzip, whatever is installed."""
    monkeypatch.setattr(representations, "_CODERS", {"gzip": representations._gzip})


# Which coding a caller gets (RFC 9110 section 12.5.3).

IDENTITY, GZIP, BR = "identity", "gzip", "br"


@pytest.mark.usefixtures("without_brotli")
@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ([], IDENTITY),
        ([""], IDENTITY),
        (["gzip"], GZIP),
        (["GZip"], GZIP),
        (["x-gzip"], GZIP),
        (["X-GZIP;q=0.5"], GZIP),
        (["deflate"], IDENTITY),
        (["br"], IDENTITY),
        (["zstd, br, gzip"], GZIP),
        (["deflate", "gzip"], GZIP),
        ([" deflate ,\tgzip "], GZIP),
        ([",,gzip,,"], GZIP),
        (["*"], GZIP),
        (["*;q=0.1"], GZIP),
        (["*;q=0"], IDENTITY),
        (["gzip;q=1"], GZIP),
        (["gzip;q=1.000"], GZIP),
        (["gzip;q=0.001"], GZIP),
        (["gzip ; q=0.5"], GZIP),
        (["gzip; Q=0.5"], GZIP),
        (["gzip;q=0"], IDENTITY),
        (["gzip;q=0.0"], IDENTITY),
        (["gzip;q=0.000"], IDENTITY),
        (["gzip;q=0, *"], IDENTITY),
        (["*;q=0, gzip"], GZIP),
        (["x-gzip;q=0, *"], IDENTITY),
        (["gzip;q=0, x-gzip"], IDENTITY),
        (["identity"], IDENTITY),
        (["identity, gzip"], GZIP),
        (["identity;q=0.5, gzip;q=0.5"], GZIP),
        (["identity;q=0.6, gzip;q=0.5"], IDENTITY),
        (["identity;q=0.4, gzip;q=0.5"], GZIP),
        (["identity, *;q=0.5"], IDENTITY),
        (["identity;q=0.5, *"], GZIP),
        (["identity;q=0"], IDENTITY),
        (["identity;q=0, gzip"], GZIP),
        (["identity;q=0, gzip;q=0.1"], GZIP),
        (["identity;q=0, *"], GZIP),
        (["identity;q=0, *;q=0"], IDENTITY),
        # Weights that are none, and what else does not follow the grammar, count for nothing.
        (["gzip;q=2"], IDENTITY),
        (["gzip;q=-1"], IDENTITY),
        (["gzip;q=0.1234"], IDENTITY),
        (["gzip;q=.5"], IDENTITY),
        (["gzip;q="], IDENTITY),
        (["gzip;q"], IDENTITY),
        (["gzip;"], IDENTITY),
        (["gzip;level=9"], IDENTITY),
        (["gzip deflate"], IDENTITY),
        (['"gzip"'], IDENTITY),
        (["gzip/1"], IDENTITY),
        (["gzipx, xgzip"], IDENTITY),
        (["gzip;q=nonsense, x-gzip"], GZIP),
    ],
)
def test_the_coding_is_the_one_that_weighs_most(accepted: list[str], coding: str) -> None:
    assert preferred(accepted) == coding


@pytest.mark.usefixtures("with_brotli")
@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (["gzip, br"], BR),
        (["br, gzip"], BR),
        (["*"], BR),
        (["gzip, br;q=0.9"], GZIP),
        (["gzip;q=0.8, br;q=0.9"], BR),
        (["br;q=0, *"], GZIP),
        (["br;q=0.5, *;q=0.6"], GZIP),
        (["gzip"], GZIP),
        (["br"], BR),
        (["br;q=0.1, identity;q=0.2"], IDENTITY),
        (["br;q=0, gzip;q=0, *"], IDENTITY),
    ],
)
def test_of_two_codings_that_weigh_the_same_the_denser_is_taken(
    accepted: list[str], coding: str
) -> None:
    assert preferred(accepted) == coding


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=30) | st.text(alphabet="gzip;q=01.,* ", max_size=30), max_size=3))
def test_any_text_is_read_without_an_error_and_leads_to_a_coding_that_there_is(
    accepted: list[str],
) -> None:
    assert preferred(accepted) in (IDENTITY, *representations._CODERS)


_LONG = {
    "space": " " * 8000,
    "gap": "a" + " " * 8000 + "b",
    "name": "a" * 8000 + '"',
    "parameter": "gzip;" + " " * 8000,
    "weights": "gzip;q=0" * 900,
    "commas": "," * 8000,
    "items": "gzip," * 1600,
    "quotes": '"' * 8000,
    "tags": '"a' * 4000,
    "weak": "W/" * 4000,
}


@pytest.mark.parametrize("value", _LONG.values(), ids=_LONG)
def test_no_header_takes_long_to_read(value: str) -> None:
    """The longest line that a head may hold, read a few times as either."""
    begun = time.thread_time()
    for _ in range(4):
        preferred([value])
        matches('"abc"', [value])
    assert time.thread_time() - begun < 0.4


# The bytes in a coding.


@pytest.mark.usefixtures("without_brotli")
@pytest.mark.parametrize("size", [SMALLEST, 5000, LARGE - 1, LARGE, 4 * LARGE])
async def test_what_is_gzipped_is_read_back_byte_for_byte(size: int) -> None:
    body = (BODY * (size // len(BODY) + 1))[:size]
    representation = await represent(body)
    coding, packed = await representation.chosen(["gzip"])
    assert coding == GZIP
    assert len(packed) < len(body)
    assert gzip.decompress(packed) == body
    assert representation.known(GZIP) is packed
    assert representation.body == body


async def test_the_same_bytes_are_gzipped_to_the_same_bytes() -> None:
    """Also in another second, on another worker: they have the same strong tag."""
    one, other = await represent(BODY), await represent(BODY)
    packed = await one.coded(GZIP)
    assert packed == await other.coded(GZIP)
    # No time of day and no file name stand in the head.
    assert packed[3:8] == b"\0" * 5


@pytest.mark.usefixtures("with_brotli")
async def test_brotli_is_used_where_there_is_one() -> None:
    coding, packed = await (await represent(BODY)).chosen(["gzip, br"])
    assert (coding, packed) == (BR, b"br" + BODY[: len(BODY) // 3])


@pytest.mark.parametrize(("size", "coding"), [(SMALLEST - 1, IDENTITY), (SMALLEST, GZIP)])
async def test_a_small_body_is_not_coded(size: int, coding: str) -> None:
    body = (BODY)[:size]
    assert (await (await represent(body)).chosen(["gzip"]))[0] == coding


@pytest.mark.parametrize("accepted", [[], [""], ["identity"], ["gzip;q=0"], ["identity;q=0"]])
async def test_nobody_gets_a_coding_that_they_did_not_ask_for(accepted: list[str]) -> None:
    assert await (await represent(BODY)).chosen(accepted) == (IDENTITY, BODY)


async def test_a_body_that_does_not_shrink_is_sent_as_it_is_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []
    packed = _counting(tried, representations._gzip)
    monkeypatch.setattr(representations, "_CODERS", {GZIP: packed})
    representation = await represent(NOISE)
    for _ in range(3):
        assert await representation.chosen(["gzip"]) == (IDENTITY, NOISE)
    assert representation.known(GZIP) is NOISE
    assert tried == [len(NOISE)]


@pytest.mark.parametrize("size", [5000, LARGE])
async def test_a_coding_is_worked_out_once_for_everybody(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(representations, "_CODERS", {GZIP: _counting(tried, representations._gzip)})
    representation = await represent((BODY * 40)[:size])
    found = [await representation.chosen(["gzip"]) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert tried == [size]


@pytest.mark.parametrize("size", [5000, LARGE])
async def test_who_wants_a_coding_that_is_being_worked_out_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(representations, "_CODERS", {GZIP: _counting(tried, representations._gzip)})
    representation = await represent((BODY * 40)[:size])
    found = await asyncio.gather(*[representation.chosen(["gzip"]) for _ in range(5)])
    assert found == [found[0]] * 5
    assert tried == [size]


async def test_a_coding_that_fails_is_tried_again_by_who_waited_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def code(body: bytes) -> bytes:
        tried.append(len(body))
        if len(tried) == 1:
            raise MemoryError
        return b"packed"

    monkeypatch.setattr(representations, "_CODERS", {GZIP: code})
    representation = await represent(b"x" * LARGE)
    waiting = [representation.chosen(["gzip"]) for _ in range(3)]
    first, *others = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(first, MemoryError)
    assert others == [(GZIP, b"packed")] * 2
    assert tried == [LARGE] * 2


def _counting(tried: list[int], code: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def counted(body: bytes) -> bytes:
        tried.append(len(body))
        return code(body)

    return counted


async def test_others_get_their_turn_while_a_large_body_is_coded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    turn = asyncio.Event()

    def code(body: bytes) -> bytes:
        """Ends only when somebody else had a turn."""
        asyncio.run_coroutine_threadsafe(_set(turn), loop).result(timeout=10)
        return body[:10]

    monkeypatch.setattr(representations, "_CODERS", {GZIP: code})
    large = await represent(b"x" * LARGE)
    assert await large.chosen(["gzip"]) == (GZIP, b"x" * 10)


async def _set(event: asyncio.Event) -> None:
    event.set()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=3000), st.sampled_from(["gzip", "*", "identity", "br", "x"]))
async def test_what_a_caller_gets_is_the_body_in_the_coding_that_is_named(
    body: bytes, accepted: str
) -> None:
    coding, sent = await (await represent(body)).chosen([accepted])
    assert len(sent) <= len(body)
    if coding == IDENTITY:
        assert sent == body
    if coding == GZIP:
        assert gzip.decompress(sent) == body


# Entity tags.


async def test_the_same_bytes_have_the_same_tag_and_others_another() -> None:
    bodies = [b"", b"[]", b"[] ", BODY, BODY + b" ", b"x" * LARGE, b"x" * LARGE + b"y"]
    tags = [(await represent(body)).etag for body in bodies]
    assert tags == [(await represent(body)).etag for body in bodies]
    assert len(set(tags)) == len(bodies)
    # Strong, quoted, and of characters that may stand in a tag.
    assert all(tag.strip('"').isalnum() and tag[0] == tag[-1] == '"' for tag in tags)


async def test_a_tag_does_not_tell_how_many_rows_were_dropped() -> None:
    assert (await represent(BODY, 0)).etag == (await represent(BODY, 7)).etag


def test_each_coding_has_a_tag_of_its_own() -> None:
    representation = Representation(BODY, 0, '"abc"')
    tags = {coding: representation.tag(coding) for coding in (IDENTITY, GZIP, BR)}
    assert tags == {IDENTITY: '"abc"', GZIP: '"abc-gzip"', BR: '"abc-br"'}


@pytest.mark.parametrize(
    ("sent", "same"),
    [
        ([], False),
        ([""], False),
        (['"abc"'], True),
        (['W/"abc"'], True),
        (['"x", "abc"'], True),
        (['"x","abc","y"'], True),
        (['"x",W/"abc"'], True),
        (['"x"', '"abc"'], True),
        (["*"], True),
        ([" * "], True),
        ([' "abc" '], True),
        ([',, "abc",,'], True),
        (['"abcd"'], False),
        (['"ab"'], False),
        (['"ABC"'], False),
        (['"abc-gzip"'], False),
        (["abc"], False),
        (["'abc'"], False),
        (['"abc'], False),
        (['abc"'], False),
        (['""'], False),
        (['"*"'], False),
        (['*, "x"'], False),
        (['"x", *'], False),
        (['"\\"abc\\""'], False),
        (['"x" "'], False),
        ([", ".join(f'"{number}"' for number in range(500))], False),
        ([", ".join([*(f'"{number}"' for number in range(500)), '"abc"'])], True),
    ],
)
def test_a_caller_has_it_already_if_one_of_their_tags_is_the_same(
    sent: list[str], same: bool
) -> None:
    assert matches('"abc"', sent) is same


_TAGS = st.from_regex(r'"[!#-~]{0,8}"', fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(_TAGS, st.lists(st.tuples(st.booleans(), _TAGS), min_size=1, max_size=5))
def test_tags_are_compared_weakly_and_whole(etag: str, sent: list[tuple[bool, str]]) -> None:
    """Also those with a comma in them."""
    value = ", ".join(("W/" if weak else "") + tag for weak, tag in sent)
    assert matches(etag, [value]) is (etag in [tag for _weak, tag in sent])


async def test_what_brotli_packs_it_unpacks_again() -> None:
    body = b'{"id":"1","username":"alice"},' * 100
    coding, packed = await (await represent(body)).chosen(["gzip;q=0.5, br"])
    assert coding == "br"
    assert len(packed) < len(body)
    assert brotli.decompress(packed) == body
