"""The strict reader: what it reads, what it refuses, and how long a hostile text may take."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.strict_json import (
    DuplicateKey,
    MalformedJSON,
    parse,
    parse_with_number_texts,
    shown,
)

SIZE = 256 * 1024

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**99), 10**99)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values, st.booleans())
def test_a_valid_document_is_read_as_the_standard_library_reads_it(
    value: object, ascii_only: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    parsed = parse(text.encode())
    assert parsed == json.loads(text) == value
    assert json.dumps(parsed, ensure_ascii=ascii_only) == text


@given(st.binary(max_size=40) | st.text('[]{}",:\\u0129dDeE.+- tfnrl', max_size=40).map(str.encode))
def test_any_bytes_give_a_value_or_malformed_json(data: bytes) -> None:
    try:
        value = parse(data)
    except MalformedJSON:
        return
    assert value == json.loads(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (' \t\r\n{"a" : [1, -0, 2.50, true, false, null]} ', {"a": [1, 0, 2.5, True, False, None]}),
        ('""', ""),
        ('"\\ud83d\\ude00 \\u00e9 \\\\ud800"', "\U0001f600 é \\ud800"),
        ("{}", {}),
        ("[]", []),
        ("0", 0),
        ("9" * 100, 10**100 - 1),
        ("-" + "9" * 100, 1 - 10**100),
        ('["' + "9" * 101 + '",1]', ["9" * 101, 1]),
        ("0." + "3" * 200, 1 / 3),
        ("1e308", 1e308),
        ("1e-400", 0.0),
        ('{"a":{"a":[{"a":1},{"a":1}]}}', {"a": {"a": [{"a": 1}, {"a": 1}]}}),
    ],
)
def test_reads(text: str, value: object) -> None:
    assert parse(text.encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \n",
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xc0\xae"',
        b'"\xed\xa0\x80"',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32"),
        b"{} {}",
        b"[] x",
        b"[1,]",
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b'{"a"}',
        b'{1:"a"}',
        b"[1 2]",
        b"[",
        b"}",
        b"tru",
        b"True",
        b"01",
        b"-",
        b"+1",
        b".5",
        b"1.",
        b"1e",
        b"0x10",
        b"1_000",
        "١٢".encode(),
        b'"\n"',
        b'"\x00"',
        b'"\\x"',
        b'"\\u12"',
        b'"\\u+123"',
        b'"',
        b"// c\n1",
        b"\x0b1",
        "\u00a01".encode(),
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b"1e400",
        b"[-1e400]",
        b"1" * 101,
        b"[-" + b"1" * 101 + b"]",
        b'"\\ud800"',
        b'["\\uDFFF"]',
        b'{"\\ud83d":1}',
        b'{"a":["\\ude00\\ud83d"]}',
    ],
)
def test_refuses(data: bytes) -> None:
    with pytest.raises(MalformedJSON):
        parse(data)
    with pytest.raises(MalformedJSON):
        parse_with_number_texts(data)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a":1,"a":1}', "a"),
        ('{"a":1,"\\u0061":2}', "a"),
        ('[{"b":{"c":1,"d":2,"d":3}}]', "d"),
        ('{"":1,"":2}', ""),
        ('{"é":1,"\\u00e9":2}', "é"),
        ('{"\\ud800":1,"\\ud800":2}', "\ufffd"),
        ('{"\\u0000":1,"\\u0000":2}', "\ufffd"),
        (f'{{"{"k" * 100}":1,"{"k" * 100}":2}}', "k" * 64),
    ],
)
def test_a_duplicate_key_is_named_and_made_fit_to_show(text: str, key: str) -> None:
    with pytest.raises(DuplicateKey) as caught:
        parse(text.encode())
    assert caught.value.key == key
    assert len(str(caught.value)) < 100


def test_keys_that_differ_only_in_case_are_two_keys() -> None:
    assert parse(b'{"a":1,"A":2}') == {"a": 1, "A": 2}


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('["[",', "]")])
def test_nesting_is_bounded_at_64_levels(opening: str, closing: str) -> None:
    def nested(levels: int) -> bytes:
        return (opening * levels + "1" + closing * levels).encode()

    parse(nested(64))
    for levels in (65, 500, 100_000):
        with pytest.raises(MalformedJSON):
            parse(nested(levels))


def test_empty_innermost_objects_and_arrays_count_as_levels() -> None:
    parse(b"[" * 64 + b"]" * 64)
    for innermost in (b"[]", b"{}"):
        with pytest.raises(MalformedJSON):
            parse(b"[" * 64 + innermost + b"]" * 64)


def test_width_and_brackets_in_strings_are_not_nesting() -> None:
    assert parse(b"[" + b",".join([b"[[]]"] * 100) + b"]") == [[[]]] * 100
    assert parse(b'"' + b"[{" * 100 + b'"') == "[{" * 100


@pytest.mark.parametrize("inner", ["[]", "{}", '{"":[0]}'])
def test_objects_and_arrays_are_ten_thousand_at_most(inner: str) -> None:
    count = inner.count("[") + inner.count("{")

    def wide(containers: int) -> bytes:
        return ("[" + ",".join([inner] * (containers // count) + ["0"] * 2) + "]").encode()

    parse(wide(9_998))
    for containers in (10_002, 80_000):
        with pytest.raises(MalformedJSON):
            parse(wide(containers))


def test_brackets_in_strings_are_not_counted() -> None:
    text = '[{"\\' * 50_000
    assert parse(json.dumps({text: [text, text]}).encode()) == {text: [text, text]}
    for broken in ('"' + '\\"[' * 80_000, '"[\\' + "[" * 80_000 + "\\"):
        with pytest.raises(MalformedJSON):
            parse(broken.encode())


@pytest.mark.parametrize(
    "data", [b'{"secret":', b'"secret\xff"', b'["secret\\ud800"]', b"[secret]"]
)
def test_a_message_never_quotes_the_input(data: bytes) -> None:
    with pytest.raises(MalformedJSON) as caught:
        parse(data)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.10", "1.10"),
        ("-0", "-0"),
        ("1E+2", "1E+2"),
        ('{"a":[12345678901234567890.10,true,null,"x"]}', None),
    ],
)
def test_number_texts_stay_as_they_were_written(text: str, value: str | None) -> None:
    expected = value or {"a": ["12345678901234567890.10", True, None, "x"]}
    assert parse_with_number_texts(text.encode()) == expected


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        ("amount", "amount"),
        ("a" * 65, "a" * 64),
        ("a\x00\n\x7f\u202e\ud800b", "a\ufffd\ufffd\ufffd\ufffd\ufffdb"),
        ("é漢", "é漢"),
        ("", ""),
    ],
)
def test_shown_truncates_and_makes_printable(name: str, fit: str) -> None:
    assert shown(name) == fit


@pytest.mark.parametrize(
    "text",
    [
        "[" * SIZE,
        '{"a":' * (SIZE // 5),
        "[" + "[],{}," * (SIZE // 6) + "0]",
        "[" + "1," * (SIZE // 2) + "1]",
        "[" + '{"":1},' * (SIZE // 7) + "1]",
        "{" + '"a":1,' * (SIZE // 6) + '"a":1}',
        "{" + ",".join(f'"\\u0061{i}":1' for i in range(SIZE // 16)) + "}",
        "1" * SIZE,
        "[" + ("1" * 100 + ",") * (SIZE // 101) + "1]",
        "0." + "1" * SIZE,
        "1e" + "9" * SIZE,
        '"' + '\\"' * (SIZE // 2),
        '"' + '\\"[' * (SIZE // 3),
        '["' + "\\ud83d" * (SIZE // 6) + '"]',
        " " * SIZE,
    ],
    ids=lambda text: f"{text[:8]}…",
)
def test_a_hostile_text_is_done_with_quickly(text: str) -> None:
    data = text.encode()
    start = time.perf_counter()
    with suppress(MalformedJSON):
        parse(data)
    assert time.perf_counter() - start < 0.5
