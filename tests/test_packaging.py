"""What the repository holds beside its code: layout, versions, vendored files, documents."""

import configparser
import hashlib
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from gateway import __version__
from gateway.__main__ import _parser

ROOT = Path(__file__).parents[1]
FIXED = {"setup.cfg", "gateway", "schemas", "config.yaml", "tests", "Dockerfile", "README.md"}
EXPECTED = {
    *(".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("Makefile", "SECURITY.md", "pyproject.toml", "requirements.lock", "requirements-test.lock"),
}
LOCKS = ["requirements.lock", "requirements-test.lock"]
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def section(name: str) -> configparser.SectionProxy:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    return setup[name]


def listed(option: str) -> list[str]:
    """The items of an option with one on each line."""
    return [line for line in option.splitlines() if line and not line.startswith("#")]


# The layout.


def ignored(path: Path) -> bool:
    """Whether `.gitignore` leaves out a path, which is relative to the top."""
    patterns = [line for line in text_of(".gitignore").splitlines() if not line.startswith("#")]
    for pattern in filter(None, patterns):
        name = pattern.strip("/")
        if fnmatch(path.parts[0] if pattern.startswith("/") else path.name, name):
            return True
    return path.parts[0] == ".git"


def files(folder: Path = ROOT) -> Iterator[Path]:
    """Every file of the repository."""
    for path in sorted(folder.iterdir()):
        if ignored(path.relative_to(ROOT)):
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def test_the_top_level_is_as_the_owner_fixed_it_and_as_people_expect() -> None:
    top = {path.name for path in ROOT.iterdir() if not ignored(path.relative_to(ROOT))}
    assert top >= FIXED
    assert top - FIXED <= EXPECTED | {"bench", "deploy", "docs"}
    assert top >= EXPECTED


def test_no_file_names_a_place_on_one_machine() -> None:
    place = re.compile(r"(?<![\w.])/(?:root|work|farm|home|Users)/")
    naming = [
        str(path.relative_to(ROOT))
        for path in files()
        if place.search(path.read_text("utf-8", errors="replace"))
    ]
    assert naming == []


def test_no_secret_and_nothing_that_was_made_is_in_the_repository() -> None:
    forbidden = ("*.pem", "*.key", ".env", "*.pyc", "*.egg-info", "*.orig", "*.rej", "*.swp")
    assert not [
        path for path in files() if any(fnmatch(path.name, pattern) for pattern in forbidden)
    ]


# Versions.


@pytest.mark.parametrize(
    ("name", "lowest", "too_old"),
    [
        ("aiohttp", "3.14.4", "3.14.3"),
        ("pyjwt", "2.15", "2.14.9"),
        ("marshmallow", "4.2", "4.1.9"),
        ("jinja2", "3.1.6", "3.1.5"),
    ],
)
def test_no_release_with_a_known_fault_is_allowed(name: str, lowest: str, too_old: str) -> None:
    (requirement,) = [one for one in required("install_requires") if one.name == name]
    assert requirement.specifier.contains(lowest)
    assert not requirement.specifier.contains(too_old)


def required(option: str) -> list[Requirement]:
    name = "options" if option == "install_requires" else "options.extras_require"
    return [Requirement(line) for line in listed(section(name)[option])]


def test_tokens_can_be_verified_with_public_keys() -> None:
    (requirement,) = [one for one in required("install_requires") if one.name == "pyjwt"]
    assert requirement.extras == {"crypto"}


def test_the_next_major_aiohttp_is_not_taken_unseen() -> None:
    (requirement,) = [one for one in required("install_requires") if one.name == "aiohttp"]
    assert not requirement.specifier.contains("4.0.0")
    assert requirement.extras == set()


def locked(name: str) -> dict[str, tuple[Version, list[str]]]:
    """Name to version and hashes of each requirement in a lock file."""
    text = re.sub(r" \\\n", " ", text_of(name))
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = {}
    for line in lines:
        pinned, *hashes = line.split(" --hash=")
        requirement = Requirement(pinned)
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        found[canonicalize_name(requirement.name)] = (Version(pin.version), hashes)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_requirement_has_hashes(name: str) -> None:
    requirements = locked(name)
    assert requirements
    for _, hashes in requirements.values():
        assert hashes
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", each.strip()) for each in hashes)


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_file_names_a_host_or_a_path(name: str) -> None:
    text = text_of(name)
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash=)", text, re.MULTILINE)
    assert " @ " not in text


@pytest.mark.parametrize(("option", "name"), [("install_requires", LOCKS[0]), ("test", LOCKS[1])])
def test_what_is_required_is_locked_at_a_version_that_fits(option: str, name: str) -> None:
    versions = locked(name)
    for requirement in required(option):
        version, _ = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_the_two_lock_files_agree() -> None:
    shipped, tested = (locked(name) for name in LOCKS)
    assert {name: tested[name] for name in shipped if name in tested} == {
        name: shipped[name] for name in shipped if name in tested
    }
    assert {canonicalize_name(one.name) for one in required("install_requires")} <= set(tested)


def test_the_build_backend_is_locked() -> None:
    (requires,) = tomllib.loads(text_of("pyproject.toml"))["build-system"]["requires"]
    requirement = Requirement(requires)
    version, _ = locked("requirements.lock")[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_nothing_swaps_the_resolver_silently() -> None:
    for name in LOCKS:
        assert "aiodns" not in locked(name)


def test_every_tool_is_told_of_the_same_oldest_python() -> None:
    assert section("options")["python_requires"] == ">=3.11"
    assert section("mypy")["python_version"] == "3.11"
    assert tomllib.loads(text_of("pyproject.toml"))["tool"]["ruff"]["target-version"] == "py311"
    classifiers = listed(section("metadata")["classifiers"])
    assert "Programming Language :: Python :: 3.11" in classifiers
    assert "Programming Language :: Python :: 3.10" not in classifiers


# What is shipped.


def test_every_file_beside_the_code_is_shipped_with_it() -> None:
    package = ROOT / "gateway"
    patterns = listed(section("options.package_data")["gateway"])
    shipped = {path for pattern in patterns for path in package.glob(pattern) if path.is_file()}
    assert shipped == {path for path in files(package) if path.suffix != ".py"}


def test_vendored_files_are_those_of_the_release() -> None:
    static = ROOT / "gateway" / "static"
    comment, *lines = text_of("gateway/static/vendor.sha256").splitlines()
    assert re.match(r"# swagger-ui-dist \d+\.\d+\.\d+, ", comment)
    sums = dict(reversed(line.split("  ")) for line in lines)
    assert set(sums) == {
        str(path.relative_to(static).as_posix()) for path in files(static / "swagger-ui")
    }
    for name, digest in sums.items():
        assert hashlib.sha256((static / name).read_bytes()).hexdigest() == digest


def test_the_licences_are_shipped() -> None:
    for name in listed(section("metadata")["license_files"]):
        assert text_of(name).strip()
    assert section("metadata")["license"] == "Apache-2.0"
    assert "Apache License" in text_of("LICENSE")


def test_the_image_is_made_of_files_that_exist_and_are_let_in() -> None:
    let_in = {line[1:] for line in text_of(".dockerignore").splitlines() if line.startswith("!")}
    lines = [line.split() for line in text_of("Dockerfile").splitlines() if line.startswith("COPY")]
    sources = [word for words in lines if "--from=builder" not in words for word in words[1:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source in let_in


# Documents.


def test_the_changelog_has_a_place_for_what_is_not_released_yet() -> None:
    sections = re.findall(r"^## (.*)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def code(document: str) -> list[str]:
    """What stands in a document as code, in blocks or within a line; a line of it each."""
    text = re.sub(r"\\\n\s*", "", text_of(document))
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()] + re.findall(
        r"`([^`]+)`", prose.replace("\n", " ")
    )


def arguments(line: str) -> list[str] | None:
    """The arguments of `ledger-gateway` in a line of code; None if it is not called there."""
    called = re.search(r"(?:^|[\s/(])(?:ledger-gateway|python3? -m gateway) ([a-z][^|)]*)", line)
    return None if called is None else shlex.split(called[1], comments=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_target_that_a_document_names_is_in_the_makefile(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
    named = {word for line in code(document) for word in re.findall(r"^make ([a-z]+)", line)}
    assert named
    assert named <= targets


def test_every_command_that_the_readme_names_exists_with_its_options() -> None:
    named = [found for line in code("README.md") if (found := arguments(line)) is not None]
    assert {found[0] for found in named} >= {"check", "serve", "token"}
    for found in named:
        assert callable(_parser().parse_args(found).run)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    assert arguments(".venv/bin/ledger-gateway nonsense --x 1 # why") == ["nonsense", "--x", "1"]
    assert arguments("docker build --tag ledger-gateway .") is None


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_document_is_left_with_a_gap_to_fill(document: str) -> None:
    assert not re.findall(r"@@\w+@@|TODO|FIXME|XXX", text_of(document))


def test_the_makefile_has_what_people_type_and_runs_files_that_exist() -> None:
    makefile = text_of("Makefile")
    targets = re.findall(r"^([a-z]+):", makefile, re.MULTILINE)
    assert {"install", "run", "test"} <= set(targets)
    for script in re.findall(r"^\t.* (\w+/\w+\.py)$", makefile, re.MULTILINE):
        assert (ROOT / script).is_file()


def test_ci_runs_what_a_contributor_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text("utf-8")
