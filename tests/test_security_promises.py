"""Each promise that `SECURITY.md` makes names a test that keeps it, and the test is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISES = ROOT / "SECURITY.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
BEGINS, ENDS = "## What it keeps", "## What it assumes"


def rows(text: str) -> dict[str, str]:
    """Promise to what keeps it: the rows of the tables under the heading, without their heads."""
    part = text.partition(f"{BEGINS}\n")[2].partition(f"{ENDS}\n")[0]
    cells = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    assert all(len(row) == 2 for row in cells), "a row is a promise and what keeps it"
    pairs = [(promise.strip(), kept.strip()) for promise, kept in cells]
    found = [pair for pair in pairs if pair not in (("promise", "kept by"), ("---", "---"))]
    assert len(dict(found)) == len(found), "a promise is made twice"
    return dict(found)


def collected(path: Path) -> set[str]:
    """The tests that stand in a file as pytest finds them: at the top, not within anything."""
    if not path.is_file():
        return set()
    body = ast.parse(path.read_text("utf-8")).body
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name for node in functions if not any(map(_skips, node.decorator_list))}


def _skips(decorator: ast.expr) -> bool:
    """Whether a decorator keeps a test from being run, or from counting."""
    return any(mark in ast.unparse(decorator) for mark in (".skip", ".xfail"))


def faults(text: str, root: Path) -> list[str]:
    """What is wrong with the promises in a text, whose tests are below a folder."""
    found = []
    for promise, kept in rows(text).items():
        tests = TEST.findall(kept)
        if not tests or TEST.sub("", kept).strip(", "):
            found.append(f"names no test, or something else: {promise}")
        found += [f"{path}::{name}" for path, name in tests if name not in collected(root / path)]
    return found


def test_every_promise_names_tests_that_exist() -> None:
    text = PROMISES.read_text("utf-8")
    assert faults(text, ROOT) == []
    assert len(rows(text)) > 30
    # No test is named where this does not look.
    named = [test for kept in rows(text).values() for test in TEST.findall(kept)]
    assert len(named) == len(TEST.findall(text)) == text.count("::test_")


TABLE = f"{BEGINS}\n\n| promise | kept by |\n| --- | --- |\n| It holds. | {{}} |\n\n{ENDS}\n"
FILE = """
import pytest

def helper(): ...

@pytest.mark.parametrize("value", [1, 2])
async def test_there(value): ...

@pytest.mark.skip
def test_skipped(): ...

@pytest.mark.xfail(reason="no")
def test_excused(): ...

class TestIt:
    def test_within(self): ...

def outer():
    def test_within_too(): ...

# def test_commented(): ...
"""


@pytest.mark.parametrize(
    "kept",
    [
        "`tests/test_it.py::test_gone`",
        "`tests/test_it.py::test_ther`",
        "`tests/test_it.py::test_within`",
        "`tests/test_it.py::test_within_too`",
        "`tests/test_it.py::test_commented`",
        "`tests/test_it.py::test_skipped`",
        "`tests/test_it.py::test_excused`",
        "`tests/test_other.py::test_there`",
        "`tests/test_it.py::test_there`, `tests/test_it.py::test_gone`",
        "`tests/test_it.py::test_there`, and care",
        "`tests/test_it.py::helper`",
        "care",
        "",
    ],
)
def test_a_promise_that_no_test_keeps_is_found(kept: str, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(FILE)
    assert faults(TABLE.format("`tests/test_it.py::test_there`"), tmp_path) == []
    assert faults(TABLE.format(kept), tmp_path) != []
