"""Where configuration comes from: a YAML file with JSON's scalars, and the environment."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config_sources import Document, from_environment, from_file
from schemas.configuration import SECRETS, SECTIONS

# YAML knows no pair of escapes for one character, as JSON has them beyond this plane.
_PLAIN = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cc", "Cs"])
SECRET = "correct horse battery staple, which is long enough"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def read(file: Path, text: str | bytes) -> tuple[Document, list[str]]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems: list[str] = []
    return from_file(file, problems), problems


def override(document: Document, **environ: str) -> list[str]:
    """Applies variables, named without their prefix, to a document; what went wrong."""
    problems: list[str] = []
    names = {f"GATEWAY_{name}": value for name, value in environ.items()}
    from_environment(document, names, problems)
    return problems


# The file.


@pytest.mark.parametrize("text", ["", "\n", "# nothing but a comment\n", "---\n", "null\n"])
def test_a_file_with_nothing_in_it_says_nothing(file: Path, text: str) -> None:
    assert read(file, text) == ({}, [])


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("8080", 8080),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e3", 1000.0),
        ("1E-3", 0.001),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'8080'", "8080"),
        ('"true"', "true"),
        ("text", "text"),
    ],
)
def test_a_scalar_is_what_it_would_be_in_json(file: Path, scalar: str, value: object) -> None:
    document, problems = read(file, f"server:\n  port: {scalar}\n")
    assert problems == []
    assert document == {"server": {"port": value}}
    assert type(document["server"]["port"]) is type(value)


@pytest.mark.parametrize(
    "scalar",
    [
        *("no", "No", "yes", "on", "off", "y", "True", "TRUE", "FALSE"),
        *("12:30", "1:2:3", "0o17", "0x1F", "017", "1_000", "+1", "0b1"),
        *(".5", "5.", "1.5e", ".inf", "-.inf", ".nan", "NaN", "Infinity"),
        *("2024-01-28", "2024-01-28T21:12:00Z"),
    ],
)
def test_what_yaml_would_make_something_else_of_stays_text(file: Path, scalar: str) -> None:
    document, problems = read(file, f"server:\n  host: {scalar}\n")
    assert problems == []
    assert document == {"server": {"host": scalar}}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(10**20), 10**20)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(_PLAIN, max_size=8),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=4,
        ),
    )
)
def test_a_json_document_is_read_as_json_reads_it(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "as-json.yaml"
    assert read(file, json.dumps({"a": document})) == ({"a": document}, [])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server: {port: 1}\nserver: {port: 2}\n", "server"),
        ("server:\n  port: 1\n  host: h\n  port: 2\n", "port"),
        ("server:\n  port: 1\n  'port': 1\n", "port"),
        ("server: {port: 1, port: 2}\n", "port"),
        ("auth:\n  algorithms: [{a: 1, a: 2}]\n", "a"),
    ],
)
def test_a_key_that_stands_twice_is_named(file: Path, text: str, key: str) -> None:
    document, problems = read(file, text)
    assert document == {}
    (problem,) = problems
    assert f"{key} stands twice" in problem
    assert str(file) in problem


@pytest.mark.parametrize("text", ["- server\n", "server\n", "8080\n", "[]\n", "false\n", "''\n"])
def test_a_file_that_is_no_mapping_is_refused(file: Path, text: str) -> None:
    assert read(file, text) == ({}, [f"{file}: not a mapping of sections"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("server:\n  port: [1\n", 3),
        ("server:\n\tport: 1\n", 2),
        ("server:\n  port: 1\n host: h\n", 3),
        ("a: b\n---\nc: d\n", 2),
        ("server:\n  port: !!python/object:os.system x\n", 2),
        ("? [a, b]\n: c\n", 1),
    ],
)
def test_malformed_yaml_is_named_with_its_line(file: Path, text: str, line: int) -> None:
    document, (problem,) = read(file, text)
    assert document == {}
    assert problem.startswith(f"{file}: line {line}: ")


@pytest.mark.parametrize("text", [b"\xff\xfe\xfd", b"host: \xe9\n", b"host: a\x00b\n"])
def test_a_file_that_is_no_text_is_refused(file: Path, text: bytes) -> None:
    document, (problem,) = read(file, text)
    assert document == {}
    assert problem.startswith(f"{file}: ")


@pytest.mark.parametrize("digits", [5000, 100_000])
def test_a_number_too_long_to_read_is_a_problem_and_no_crash(file: Path, digits: int) -> None:
    document, (problem,) = read(file, f"server:\n  port: {'9' * digits}\n")
    assert document == {}
    assert problem.startswith(f"{file}: ")
    assert len(problem) < 500


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp then", "[" * 3000])
def test_a_value_that_yaml_cannot_make_is_a_problem_and_no_crash(file: Path, value: str) -> None:
    document, problems = read(file, f"server:\n  port: {value}\n")
    assert (document, problems) == ({}, [f"{file}: a value cannot be read"])


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        problems: list[str] = []
        assert from_file(path, problems) == {}
        (problem,) = problems
        assert problem.startswith(f"{path}: ")


@pytest.mark.parametrize(
    "line",
    [
        "secret: {} : b: c",
        "secret: '{}",
        'secret: "{}\\q"',
        "secret: !{}",
        "secret: !{}!x",
        "secret: !!int {}",
        "secret: !!bool {}",
        "secret: !!float {}",
        "secret: !!timestamp {}",
        "secret: *{}",
        "secret: &{} [",
        "secret: [&{} a, &{} b]",
        "secret: [{}",
        "secret: |{}",
        "%{} x",
    ],
)
def test_no_complaint_about_yaml_quotes_what_may_be_a_secret(file: Path, line: str) -> None:
    secret = SECRET.replace(" ", "").replace(",", "")
    _, problems = read(file, f"auth:\n  {line.replace('{}', secret)}\n")
    assert problems
    assert secret not in "".join(problems)


# The environment.


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SERVER__HOST", "0.0.0.0", "0.0.0.0"),
        ("SERVER__HOST", "8080", "8080"),
        ("SERVER__HOST", "true", "true"),
        ("SERVER__HOST", "null", "null"),
        ("SERVER__HOST", " a: [b] # c", " a: [b] # c"),
        ("SERVER__HOST", "", ""),
        ("SERVER__PORT", "9090", 9090),
        ("SERVER__PORT", "9090.5", 9090.5),
        ("SERVER__PORT", "nine", "nine"),
        ("SERVER__PORT", "no", "no"),
        ("SERVER__PORT", "12:30", "12:30"),
        ("SERVER__PORT", "", None),
        ("SERVER__PORT", "[", "["),
        ("SERVER__PORT", "{a: 1, a: 2}", "{a: 1, a: 2}"),
        ("SERVER__PORT", "9" * 5000, "9" * 5000),
        ("SERVER__FAST_PATH", "false", False),
        ("SERVER__FAST_PATH", "no", "no"),
        ("SERVER__FAST_PATH", "!!bool no one knows", "!!bool no one knows"),
        ("SERVER__PORT", "!!timestamp then", "!!timestamp then"),
        ("SERVER__PORT", "[" * 3000, "[" * 3000),
        ("SERVER__DRAIN_S", "2.5", 2.5),
        ("SERVER__DRAIN_S", "1e1", 10.0),
        ("SERVER__DRAIN_S", ".nan", ".nan"),
        ("AUTH__ALGORITHMS", "HS256", ["HS256"]),
        ("AUTH__ALGORITHMS", "HS256, RS256", ["HS256", "RS256"]),
        ("AUTH__ALGORITHMS", "[HS256, RS256]", ["HS256", "RS256"]),
        ("AUTH__ALGORITHMS", ' ["HS256"]', ["HS256"]),
        ("AUTH__ALGORITHMS", "[HS256", "[HS256"),
        ("VISIBILITY__HIDDEN_FIELDS", "[]", []),
        ("AUTH__SECRET", "12345", "12345"),
        ("auth__secret", "12345", "12345"),
    ],
)
def test_a_variable_has_the_type_of_its_key(name: str, text: str, value: object) -> None:
    document: Document = {}
    assert override(document, **{name: text}) == []
    section, key = name.lower().split("__")
    assert document == {section: {key: value}}
    assert type(document[section][key]) is type(value)


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section in SECTIONS for key in SECTIONS[section].fields]
)
def test_every_key_can_be_set_from_the_environment(section: str, key: str) -> None:
    document: Document = {section: {key: "of the file", "another": 1}}
    assert override(document, **{f"{section}__{key}".upper(): "7"}) == []
    assert document[section]["another"] == 1
    assert document[section][key] in (7, "7", ["7"])


@pytest.mark.parametrize(
    "name",
    [
        "NOPE__PORT",
        "SERVER__NOPE",
        "SERVER__",
        "__PORT",
        "SERVER__PORT__X",
        "SERVER__PORT_FILE",
        "SERVER__HOST_FILE",
        "AUTH__ISSUER_FILE",
        "AUTH___FILE",
        "SERVER___PORT",
    ],
)
def test_a_variable_that_sets_nothing_is_named(name: str) -> None:
    document: Document = {}
    assert override(document, **{name: "1"}) == [f"GATEWAY_{name}: unknown setting"]
    assert document == {}


def test_variables_of_others_are_left_alone() -> None:
    document: Document = {}
    problems: list[str] = []
    # A cluster sets the second kind for a service that is called `gateway`.
    names = ("HOME", "GATEWAY_SERVICE_HOST", "GATEWAY_PORT_8080_TCP", "MY_GATEWAY_SERVER__PORT")
    from_environment(document, dict.fromkeys(names, "x"), problems)
    assert (document, problems) == ({}, [])


@pytest.mark.parametrize("section", ["text", "", 8080, 0, ["a"], [], True, False])
def test_a_variable_does_not_hide_that_its_section_is_none(section: object) -> None:
    document: Document = {"server": section}
    assert override(document, SERVER__PORT="9090") == []
    assert document == {"server": section}


def test_a_variable_sets_a_key_of_an_empty_section(file: Path) -> None:
    document, _ = read(file, "server:\n")
    assert override(document, SERVER__PORT="9090") == []
    assert document == {"server": {"port": 9090}}


# Secrets in files.


@pytest.mark.parametrize(("section", "key"), sorted(SECRETS))
def test_a_secret_can_stand_in_a_file_of_its_own(file: Path, section: str, key: str) -> None:
    file.write_text(f"{SECRET}\n")
    document: Document = {section: {key: "of the file"}}
    assert override(document, **{f"{section}__{key}_FILE".upper(): str(file)}) == []
    assert document == {section: {key: SECRET}}


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        ("secret", "secret"),
        ("secret\n", "secret"),
        ("secret\n\n", "secret\n"),
        (" secret \n", " secret "),
        ("12345", "12345"),
        ("", ""),
    ],
)
def test_of_a_secret_file_one_line_end_is_left_out_and_nothing_else(
    file: Path, content: str, secret: str
) -> None:
    file.write_bytes(content.encode())
    document: Document = {}
    assert override(document, AUTH__SECRET_FILE=str(file)) == []
    assert document == {"auth": {"secret": secret}}


def test_a_key_whose_own_name_ends_in_file_is_a_path_and_not_read() -> None:
    document: Document = {}
    assert override(document, AUTH__PUBLIC_KEY_FILE=os.devnull) == []
    assert document == {"auth": {"public_key_file": os.devnull}}


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, binary, ""):
        (problem,) = override({}, AUTH__SECRET_FILE=str(path))
        assert problem.startswith("GATEWAY_AUTH__SECRET_FILE: ")
