"""The measurement itself: it runs, its figures are there, and it fails when it should."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import stream
from bench.stream import Figures

SCRIPT = Path(stream.__file__)
HEAD = ["reader", "rows", "MB", "s", "MB/s", "first byte ms", "RSS before", "peak", "growth"]


def test_a_short_list_is_measured_and_every_proof_holds() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rows", "20000"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert (done.returncode, done.stderr) == (0, "")
    head, admin, alice, _, broken, verdict = done.stdout.splitlines()
    assert [head[start : start + 14].strip() for start in range(0, len(head), 14)] == HEAD
    for line, name, rows in ((admin, "admin", 20_000), (alice, "alice", 2_000)):
        who, count, *figures = line.split()
        assert (who, int(count)) == (name, rows)
        megabytes, seconds, _, first_byte_ms, before, peak, growth = map(float, figures)
        # A generated row has some 200 bytes.
        assert 150 * rows < megabytes * 1e6 + 50_000 < 350 * rows + 100_000
        assert 0 < first_byte_ms / 1000 <= seconds
        assert 0 < before <= peak
        assert abs(peak - before - growth) < 0.2
        assert growth < stream.MAX_GROWTH_MIB
    assert "broken off after" in broken
    assert verdict == "all proofs hold"


GOOD = Figures("admin", rows=10_000, size=1, seconds=2.0, first_byte=0.1, before=60.0, peak=61.0)


@pytest.mark.parametrize(
    ("figures", "problem"),
    [
        (GOOD, None),
        (replace(GOOD, rows=9_999), "got 9999 rows and not 10000"),
        (replace(GOOD, peak=91.9), None),
        (replace(GOOD, peak=92.0), "grew by 32.0 MiB"),
        (replace(GOOD, first_byte=1.0), None),
        (replace(GOOD, first_byte=1.1), "first byte"),
    ],
)
def test_a_run_that_is_not_as_it_should_be_is_a_problem(
    figures: Figures, problem: str | None
) -> None:
    found = list(stream._problems(figures, 10_000))
    assert len(found) == (problem is not None)
    assert (problem or "") in "".join(found)


@pytest.mark.parametrize(
    ("received", "is_fine"),
    [
        (b'{"api_data":[{"id":"1"}', True),
        (b"", True),
        (b'{"api_data":[{"id":"1"}]}', False),
        (None, False),
    ],
)
def test_a_list_that_looks_complete_without_its_ledger_is_a_problem(
    received: bytes | None, is_fine: bool
) -> None:
    assert (list(stream._problems_of_the_break(received)) == []) is is_fine


class _Chunks:
    """An answer that comes in these chunks."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = [*chunks, b""]

    def read1(self, _size: int) -> bytes:
        return self._chunks.pop(0)


@pytest.mark.parametrize("cut", range(1, 40))
def test_rows_are_counted_wherever_the_chunks_are_cut(cut: int) -> None:
    text = b'[{"id":"1","order_id":"2"},{"id":"3"}]'
    rest = [text[start : start + cut] for start in range(1, len(text), cut)]
    assert stream._counted(_Chunks(*rest), text[:1]) == (2, len(text))  # type: ignore[arg-type]
