"""The measurements themselves: they run, their figures are right, they fail when they should."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import jwt
import pytest

from bench import machine, peers, profiles, report, rows, stream, wrk
from bench.__main__ import main
from bench.figures import (
    Bound,
    Profile,
    Ratio,
    Result,
    Series,
    Shot,
    contest,
    percentile,
    series,
    turns,
)
from bench.open_loop import Generator, Timing, is_whole
from bench.processes import (
    BenchError,
    Server,
    ask,
    free_port,
    on_cores,
    running,
    whole_answer,
)
from bench.reference import filtered
from bench.stage import PEERS, Stage
from bench.stream import Figures
from bench.works import WORKS
from bench.works.starting import start_to_ready

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
    for line, name, wanted in ((admin, "admin", 20_000), (alice, "alice", 2_000)):
        who, count, *figures = line.split()
        assert (who, int(count)) == (name, wanted)
        megabytes, seconds, _, first_byte_ms, before, peak, growth = map(float, figures)
        # A generated row has some 200 bytes.
        assert 150 * wanted < megabytes * 1e6 + 50_000 < 350 * wanted + 100_000
        # Either is rounded to the half of its last place.
        assert 0 < first_byte_ms <= 1000 * seconds + 0.6
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


# Rounds and what they come to.


def test_nobody_always_runs_first() -> None:
    assert [turns("ABC", number) for number in range(3)] == [[*"ABC"], [*"CBA"], [*"ABC"]]


def test_every_contestant_has_its_own_rounds_in_alternation() -> None:
    order: list[str] = []

    def contestant(name: str) -> Callable[[], Shot]:
        def shot() -> Shot:
            order.append(name)
            return Shot(float(len(order)))

        return shot

    found = contest({name: contestant(name) for name in "AB"}, 3, "answers/s")
    assert order == ["A", "B", "B", "A", "A", "B"]
    assert (found["A"].values, found["B"].values) == ([1.0, 4.0, 5.0], [2.0, 3.0, 6.0])
    assert (found["A"].name, found["A"].unit) == ("A", "answers/s")


@pytest.mark.parametrize(
    ("foreign", "spare", "counted", "dropped"),
    [
        ([0, 0.9, 0, 0.1, 0.9], 2, [0, 2, 3], 1),
        ([0.9, 0.3, 0, 0.5, 0.2], 2, [2, 4, 1], 2),
        ([0.9, 0.3, 0.7], 0, [1, 2, 0], 0),
        ([0, 0, 0, 0], 1, [0, 1, 2], 0),
    ],
)
def test_a_disturbed_round_is_repeated_for_all(
    foreign: list[float], spare: int, counted: list[int], dropped: int
) -> None:
    ours = iter([Shot(number, foreign=busy) for number, busy in enumerate(foreign)])
    theirs = iter([Shot(number) for number in range(len(foreign))])
    found = contest({"A": ours.__next__, "B": theirs.__next__}, 3, "answers/s", spare)
    assert found["A"].values == found["B"].values == counted
    assert found["A"].dropped == found["B"].dropped == dropped


def test_a_series_comes_to_its_median_with_its_noise() -> None:
    shots = (Shot(100, 0.5, 0.1), Shot(400, 0.9, 0.9), Shot(200, 0.8, 0.3))
    found = Series("ours", "answers/s", shots)
    assert found.median == 200
    assert found.spread == 1.5
    assert (found.server_busy, found.load_busy) == (0.8, 0.3)
    assert found.cost == pytest.approx(4000)


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_a_percentile_is_one_of_the_values(share: float, wanted: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == wanted


def ratio(
    *quotients: float, reach: float | None = None, towards: float | None = None, less: bool = False
) -> Ratio:
    ours, theirs = [10 * each for each in quotients], [10.0] * len(quotients)
    if less:
        ours, theirs = theirs, ours
    made = (series("ours", "answers/s", ours), series("theirs", "answers/s", theirs))
    return Ratio("work", *made, reach, towards, less)


@pytest.mark.parametrize(
    ("found", "met", "verdict"),
    [
        (ratio(0.5, 1.0, 3.0, reach=1.0), True, "reached"),
        (ratio(0.5, 0.9, 3.0, reach=1.0), False, "missed by 10%"),
        (ratio(3.0, less=True, reach=3.0), True, "reached"),
        (ratio(1.5, less=True, reach=3.0), False, "missed by 50%"),
        (ratio(9.98, reach=10.0), False, "missed by 0.20%"),
        (ratio(0.5, reach=0.4, towards=1.0), True, "reached; 50% short of 1x"),
        (ratio(0.3, reach=0.4, towards=1.0), False, "missed by 25%"),
        (ratio(1.0, reach=0.4, towards=1.0), True, "reached"),
        (ratio(0.35, towards=0.7), True, "50% short of 0.7x"),
        (ratio(0.7, towards=0.7), True, "reached"),
        (ratio(0.1), True, "noted"),
    ],
)
def test_a_ratio_says_what_is_missing(found: Ratio, met: bool, verdict: str) -> None:
    assert (found.is_met, found.verdict) == (met, verdict)


@pytest.mark.parametrize(
    ("found", "standing"),
    [
        (ratio(0.5, reach=0.4, towards=1.0), "short"),
        (ratio(0.35, towards=0.7), "short"),
        (ratio(0.3, reach=0.4, towards=1.0), "missed"),
        (ratio(1.0, reach=0.4, towards=1.0), "reached"),
        (ratio(1.0), "noted"),
    ],
)
def test_a_ratio_stands_somewhere(found: Ratio, standing: str) -> None:
    assert found.standing == standing


def test_a_ratio_is_made_of_neighbours_in_time() -> None:
    """While the machine was slow it was slow for both."""
    ours, theirs = series("a", "answers/s", [10, 50, 60]), series("b", "answers/s", [5, 50, 20])
    assert Ratio("work", ours, theirs).quotients == [2, 1, 3]
    assert Ratio("work", ours, theirs).value == 2


def test_a_ratio_is_known_by_cost_where_that_was_measured() -> None:
    """With a quarter of the core ours gave half the answers: it is twice as good."""
    ours = Series("a", "answers/s", (Shot(500, 0.25),))
    theirs = Series("b", "answers/s", (Shot(1000, 1.0),))
    found = Ratio("work", ours, theirs)
    assert (found.value, found.by_cost) == (0.5, 2.0)
    assert ratio(2.0).by_cost is None
    assert "| 0.50x | 0.50–0.50 | 2.00x |" in report.document(a_run(a_result(found, BOUND)))


@pytest.mark.parametrize(
    ("values", "met", "verdict"),
    [([70.0], True, "reached"), ([10, 77, 900], False, "missed by 10%")],
)
def test_a_bound_says_what_is_too_much(values: list[float], met: bool, verdict: str) -> None:
    found = Bound("memory", series("ours", "MiB", values), 70)
    assert (found.is_met, found.verdict) == (met, verdict)


# What wrk says.

SAID = """Running 2s test @ http://127.0.0.1:9301/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   347.61us  120.62us   4.34ms   87.11%
    Req/Sec    91.36k     4.02k   97.70k    75.00%
  182145 requests in 2.00s, 187.44MB read
{complaint}Requests/sec:  91057.42
Transfer/sec:     93.70MB
"""


def test_the_rate_is_read_from_what_wrk_says() -> None:
    assert wrk.rate(SAID.format(complaint=""), "nginx") == 91057.42


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (SAID.format(complaint="  Non-2xx or 3xx responses: 7\n"), "Non-2xx or 3xx responses: 7"),
        (
            SAID.format(complaint="  Socket errors: connect 0, read 9, write 0, timeout 0\n"),
            "Socket errors: connect 0, read 9",
        ),
        ("Requests/sec:      0.00\n", "no answer from nginx"),
        ("unable to connect", "unable to connect"),
    ],
)
def test_a_round_with_wrong_answers_does_not_count(said: str, reason: str) -> None:
    with pytest.raises(BenchError, match=re.escape(reason)):
        wrk.rate(said, "nginx")


def test_one_connection_header_and_thread_for_all(tmp_path: Path) -> None:
    server = Server("x", None, 81, tmp_path)  # type: ignore[arg-type]
    command = wrk.Load("/a", {"username": "alice"}).command(server, 3)
    assert command[:4] == ["wrk", "-t1", "-c32", "-d3s"]
    assert command[-3:] == ["-H", "username: alice", "http://127.0.0.1:81/a"]


def test_a_traced_head_is_cut_where_the_trace_goes(tmp_path: Path) -> None:
    head = wrk.head("/a", {"traceparent": wrk.TRACE_MARK, "username": "alice"})
    wrk.prepared(tmp_path / "x.lua", [head, "plain"], [0, 1, 0])
    heads, order = (tmp_path / "x.lua").read_text().splitlines()
    first = '{"GET /a HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\ntraceparent: ", '
    second = '"\\r\\nusername: alice\\r\\n\\r\\n"}'
    assert heads == "heads = {" + first + second + ', {"plain"}}'
    assert order == "order = {1, 2, 1}"


# What is asked for, and by whom.


def test_the_tokens_are_such_as_an_issuer_makes() -> None:
    claims = jwt.decode(rows.token("alice"), rows.SECRET, algorithms=["HS256"])
    assert (claims["sub"], claims["role"]) == ("alice", "user")
    assert set(claims) == {"sub", "role", "exp"}


@pytest.mark.parametrize(("long", "least", "most"), [(False, 120, 160), (True, 220, 250)])
def test_a_reply_has_a_row_for_each_owner(long: bool, least: int, most: int) -> None:
    body = rows.envelope(["alice", "bob", "alice"], long=long)
    assert [row["username"] for row in json.loads(body)["api_data"]] == ["alice", "bob", "alice"]
    assert least < len(rows.envelope(["alice"] * 100, long=long)) / 100 < most
    assert json.loads(filtered(body, "bob"))["api_data"] == [rows.row(1, "bob", long=long)]


def test_some_users_ask_more_often_than_others_and_always_the_same() -> None:
    order = rows.zipf_order(50, 20_000)
    counts = [order.count(number) for number in range(50)]
    assert min(counts) > 0
    assert counts[0] == pytest.approx(2 * counts[1], rel=0.1)
    assert counts[0] == pytest.approx(10 * counts[9], rel=0.25)
    assert order == rows.zipf_order(50, 20_000)


# The open loop.

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\nhello"


@pytest.mark.parametrize("length", range(len(ANSWER)))
def test_an_answer_is_whole_at_its_last_byte(length: int) -> None:
    assert not is_whole(ANSWER[:length])
    assert is_whole(ANSWER)
    assert is_whole(ANSWER.replace(b"Content-Length", b"content-length"))


def test_an_answer_of_unknown_length_is_not_waited_for() -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        is_whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


class Answering(threading.Thread):
    """A server on loopback that takes `delay` seconds for its second answer."""

    def __init__(self, *answers: bytes, delay: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.seen = 0
        self._answers, self._delay, self._wait = cycle(answers), delay, threading.Event()

    def run(self) -> None:
        """One connection, one request after the other."""
        connection, _ = self.listener.accept()
        with connection, self.listener, suppress(ConnectionError):
            while data := connection.recv(1 << 16):
                self.seen += data.count(b"\r\n\r\n")
                if self.seen == 2:
                    self._wait.wait(self._delay)
                connection.sendall(next(self._answers))


def steadily(
    *answers: bytes, rate: float, seconds: float, delay: float = 0.0, patience: float = 15.0
) -> Timing:
    """One run over one connection."""
    server = Answering(*answers, delay=delay)
    server.start()
    generator = Generator(server.port, [b"GET / HTTP/1.1\r\n\r\n"], connections=1)
    try:
        timing = generator.run(rate, seconds, patience)
    finally:
        generator.close()
        server.join(15)
    # The first is asked before the clock starts.
    assert timing.answered < server.seen <= timing.due + 1
    return timing


def test_everything_that_is_due_is_asked_and_answered() -> None:
    timing = steadily(ANSWER, rate=200, seconds=0.3)
    assert (timing.due, timing.answered, timing.refused) == (60, 60, 0)
    assert 0 < timing.p50 <= timing.p99 <= timing.longest


def test_the_making_of_a_connection_is_not_measured() -> None:
    class Hesitating(Answering):
        def run(self) -> None:
            self._wait.wait(0.5)
            super().run()

    server = Hesitating(ANSWER)
    server.start()
    generator = Generator(server.port, [b"GET / HTTP/1.1\r\n\r\n"], connections=1)
    timing = generator.run(100, 0.1)
    generator.close()
    server.join(15)
    assert timing.longest < 250


def test_a_refusal_is_counted() -> None:
    timing = steadily(ANSWER.replace(b"200 OK", b"429 No"), rate=100, seconds=0.1)
    assert (timing.answered, timing.refused) == (10, 10)


def test_who_was_due_while_the_server_stood_still_is_late_too() -> None:
    """A closed loop would find one slow answer among fifty quick ones."""
    timing = steadily(ANSWER, rate=100, seconds=0.5, delay=0.4)
    assert timing.due == 50
    assert timing.longest >= 400
    # 40 were due meanwhile: half of all waited longer than the quarter of the standstill.
    assert timing.p50 >= 100
    # None of which is the generator's fault.
    assert timing.late_p99 < 100
    assert timing.busy < 0.5


def test_who_gets_no_answer_has_waited_until_the_end() -> None:
    half = ANSWER[:-1]
    timing = steadily(ANSWER, ANSWER, half, rate=100, seconds=0.2, patience=0.3)
    # The next answer never comes to its end, and so the other 18 are never asked for.
    assert (timing.due, timing.answered) == (20, 1)
    assert timing.p99 >= 300
    assert timing.p50 >= 300
    assert timing.longest >= timing.p99


def test_answers_of_different_lengths_are_told_apart() -> None:
    longer = ANSWER.replace(b"5", b"12") + b", world"
    timing = steadily(ANSWER, longer, ANSWER, rate=100, seconds=0.2)
    assert (timing.due, timing.answered, timing.refused) == (20, 20, 0)


def test_the_open_loop_is_a_program_that_prints_json(tmp_path: Path) -> None:
    server = Answering(ANSWER)
    server.start()
    request = tmp_path / "request"
    request.write_bytes(b"GET / HTTP/1.1\r\n\r\n")
    command = [sys.executable, "-m", "bench.open_loop", "--port", str(server.port)]
    command += [
        "--requests",
        str(request),
        "--rate",
        "50",
        "--seconds",
        "0.1",
        "--connections",
        "1",
    ]
    done = subprocess.run(
        command, cwd=PEERS.parents[1], capture_output=True, text=True, timeout=60, check=True
    )
    assert Timing(**json.loads(done.stdout)).answered == 5


# Processes.


def stage_in(folder: Path) -> Stage:
    """A stage for what needs neither a peer nor a second core."""
    cores = frozenset(os.sched_getaffinity(0))
    tools = machine.Tools(Path(sys.executable), Path("envoy"))
    return Stage(tools, folder, cores, cores, rounds=1, seconds=1, spare=0, profiling=False)


def test_the_time_from_start_to_ready_is_measured(tmp_path: Path) -> None:
    assert 0 < start_to_ready(stage_in(tmp_path)) < 15


# A server with a child that does not end when it is asked to. Both hold a connection to the test.
STUBBORN = """
import http.server, os, signal, socket, sys
held = [socket.create_connection(("127.0.0.1", int(sys.argv[2])))]
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held[0].sendall(b"here")
    while True:
        signal.pause()
address = ("127.0.0.1", int(sys.argv[1]))
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@contextmanager
def stubborn(folder: Path, listener: socket.socket) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-c", STUBBORN, str(port), str(listener.getsockname()[1])]
    cores = frozenset([min(os.sched_getaffinity(0))])
    with running("stubborn", command, port=port, cores=cores, folder=folder) as server:
        yield server


@pytest.mark.parametrize("failing", [False, True])
def test_what_was_started_is_ended_with_all_its_children(tmp_path: Path, failing: bool) -> None:
    before = os.sched_getaffinity(0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(15)
        with suppress(KeyboardInterrupt), stubborn(tmp_path, listener) as server:
            connection, _ = listener.accept()
            connection.settimeout(15)
            assert connection.recv(4) == b"here"
            assert len(server.pids) == 2
            assert server.memory() > 1
            assert server.cpu_seconds() >= 0
            assert all(len(os.sched_getaffinity(pid)) == 1 for pid in server.pids)
            if failing:
                raise KeyboardInterrupt
        # The end of file comes when the last process that holds the connection is gone.
        with connection:
            assert connection.recv(1) == b""
    assert server.popen.poll() is not None
    assert os.sched_getaffinity(0) == before


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such configuration')"]
    cores = frozenset(os.sched_getaffinity(0))
    with (
        pytest.raises(BenchError, match=r"(?s)nginx does not answer.*no such configuration"),
        running("nginx", command, port=free_port(), cores=cores, folder=tmp_path),
    ):
        raise AssertionError("it was taken for one that answers")


def test_the_cores_are_given_back_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    with suppress(BenchError), on_cores(frozenset([min(before)])):
        assert len(os.sched_getaffinity(0)) == 1
        raise BenchError
    assert os.sched_getaffinity(0) == before


def test_a_question_brings_status_and_body() -> None:
    server = Answering(ANSWER)
    server.start()
    assert ask(server.port, "/", {"a": "b"}) == (200, b"hello")


def test_a_whole_answer_is_its_head_and_its_body() -> None:
    server = Answering(ANSWER)
    server.start()
    assert whole_answer(server.port, "/", {"a": "b"}) == ANSWER


# The peers.

TEMPLATES = ["envoy.yaml", "haproxy.cfg", "nginx.conf", "nginx-plain.conf", "nginx-upstream.conf"]


def test_every_configuration_is_known() -> None:
    found = {path.name for path in PEERS.iterdir() if path.is_file() and path.suffix != ".py"}
    assert found == set(TEMPLATES)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_peer_listens_where_it_is_told_and_on_loopback_only(
    tmp_path: Path, template: str
) -> None:
    values = {"port": 4711, "upstream": 4712, "folder": tmp_path, "secret": "s3cret"}
    path = stage_in(tmp_path).write(template, **values, secret_base64="c2VjcmV0")
    text = path.read_text("utf-8")
    assert not re.search(r"@[A-Z_0-9]+@", text)
    assert re.search(r"127\.0\.0\.1(:|, port_value: )4711\b", text)
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", text)) == {"127.0.0.1"}
    assert "0.0.0.0" not in text
    assert "[::]" not in text


def test_the_plain_configuration_of_nginx_reads_files_slower_and_differs_in_nothing_else() -> None:
    best, plain = (
        (PEERS / f"{name}.conf").read_text().replace(name, "nginx").splitlines()[1:]
        for name in ("nginx", "nginx-plain")
    )
    plain = [line.replace("path cache-plain ", "path cache ") for line in plain]
    faster = [line.split()[0] for line in best if line not in plain]
    assert faster == ["sendfile", "tcp_nopush", "open_file_cache"]
    assert [line for line in best if line.split()[0] not in faster] == plain


def test_the_floor_gives_everybody_the_answer_that_it_was_given(tmp_path: Path) -> None:
    with peers.echo(stage_in(tmp_path), ANSWER) as server:
        assert [whole_answer(server.port, "/", {}) for _ in range(2)] == [ANSWER, ANSWER]


def test_what_is_missing_is_said_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name, path=None: None)
    with pytest.raises(BenchError, match=r"Missing: nginx, haproxy, wrk\..*apt-get install nginx"):
        machine.find_tools(Path(sys.executable))


def test_without_the_right_to_install_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, path: str | None = None) -> str | None:
        return None if name == "wrk" else f"/usr/bin/{name}"

    monkeypatch.setattr(shutil, "which", found)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(BenchError, match=r"Missing: wrk.*as root: apt-get install wrk"):
        machine.find_tools(Path(sys.executable))


def test_one_core_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})
    with pytest.raises(BenchError, match="Two cores are needed"):
        machine.two_cores()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {7, 3, 5})
    assert machine.two_cores() == (frozenset({3}), frozenset({5}))


def test_what_others_took_is_neither_ours_nor_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq stolen guest guest_nice; the living, the ended
    looks = [
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], (0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0), 100.0),
        ([9, 1, 8, 50, 50, 50, 50, 2, 7, 7], (2.0, 1.0), (9.0, 9.0, 8.0, 4.0, 0.0), 110.0),
    ]

    def look() -> machine.Others:
        ticks, living, times, now = looks.pop(0)
        monkeypatch.setattr(machine, "cpu_split", lambda _pids: living)
        line = "cpu  " + " ".join(str(tick * seconds) for seconds in ticks)
        monkeypatch.setattr(machine, "_lines", lambda _path: [line])
        monkeypatch.setattr(os, "times", lambda: times)
        monkeypatch.setattr(time, "monotonic", lambda: now)
        return machine.Others()

    others = look()
    look()
    assert others.cores() == pytest.approx((20 - 15) / 10)


def test_the_machine_is_described() -> None:
    assert set(machine.describe()) == {"processor", "cores", "memory", "system", "Python"}
    assert all(machine.describe().values())


# What is written down.

COLLAPSED = """run (asyncio/runners.py:118);answer (gateway/walk.py:60) 30
run (asyncio/runners.py:118);answer (gateway/walk.py:61) 20
run (asyncio/runners.py:118) 40
run (asyncio/runners.py:118);randbytes (random.py:7) 9
run (asyncio/runners.py:118);rare (gateway/x.py:1) 0
run (threading.py:982);_worker (concurrent/futures/thread.py:81) 500
"""


def test_a_profile_adds_up_the_lines_of_a_function() -> None:
    assert profiles.shares(COLLAPSED, profiles._function) == [
        ("answer (gateway/walk.py)", 50 / 99),
        ("run (asyncio/runners.py)", 40 / 99),
        ("randbytes (random.py)", 9 / 99),
    ]
    assert profiles.shares(COLLAPSED, profiles._package) == [
        ("gateway", 50 / 99),
        ("asyncio", 40 / 99),
        ("random.py", 9 / 99),
    ]


def a_run(*results: Result) -> report.Run:
    facts = {"processor": "a fast one"}
    return report.Run("yesterday", "2 min", 5, 3, facts, {"wrk": "4.1"}, results)


def a_result(found: Ratio, bound: Bound, foreign_load: float = 0.0) -> Result:
    return Result("A work", "How it is done.", 0.25, foreign_load, [found], [bound], ["A note."])


BOUND = Bound("memory", series("idle", "MiB", [60.0, 61.0, 62.0]), 70)


def test_the_document_has_every_figure_of_the_run() -> None:
    shots = (Shot(12_345, 0.99, 0.5), Shot(20_000, 0.99, 0.5))
    found = Ratio("hits", Series("ours", "answers/s", shots, 4), ratio(4000, 2000).ours, reach=2.0)
    text = report.document(a_run(a_result(found, BOUND)))
    assert (
        "| hits | 16,172 | ours | 30,000 | 0.65x | 0.31–1.00 |  | 2x |  | **missed by 67%** |"
        in text
    )
    assert "| memory | 61 MiB |  |  |  | 60 MiB–62 MiB |  | ≤ 70 MiB |  | reached |" in text
    assert "| ours | 16,172 | 12,345 | 20,000 | 47% | 64.8 | 0.99 | 0.50 | 4 |" in text
    assert "- hits against ours: missed by 67%" in text
    assert "the load average was 0.25; during it other processes took 0.00 of a core" in text
    for part in ("a fast one", "yesterday, 2 min", "5 rounds of 3 s", "A note.", "How it is done."):
        assert part in text


def test_the_picture_has_its_content_in_words() -> None:
    text = report.document(a_run(a_result(ratio(2.5), BOUND)))
    (told,) = re.findall(r"!\[(.*?)\]\(results\.svg\)", text)
    assert told.endswith("work against theirs: 2.50 times.")


def test_every_table_has_as_many_cells_in_each_line() -> None:
    text = report.document(a_run(a_result(ratio(2.5), BOUND)))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
        assert len(lines) > 2


def test_a_busy_machine_is_marked() -> None:
    quiet, busy = a_result(ratio(1), BOUND), a_result(ratio(1), BOUND, foreign_load=0.8)
    assert "busy" not in report.document(a_run(quiet))
    text = report.document(a_run(quiet, replace(busy, title="Another")))
    assert "**The machine was busy with other things** during: Another." in text


def test_a_load_generator_at_its_limit_is_told() -> None:
    ours = Series("ours", "answers/s", (Shot(1, 0.9, 0.97),))
    text = report.document(a_run(a_result(Ratio("hits", ours, ours), BOUND)))
    assert "With ours the load generator took 0.97 of its core: it may have been the limit." in text


def test_where_the_time_goes_is_told_if_it_is_known() -> None:
    result = a_result(ratio(1), BOUND)
    assert "Run with `--profile`" in report.document(a_run(result))
    result.profile = Profile(0.25, [("aiohttp", 0.5)], [("answer (gateway/walk.py)", 0.5)])
    text = report.document(a_run(result))
    assert (
        "The kernel took 25% of the gateway's time. By package, of the samples: aiohttp 50%."
        in text
    )
    assert "| `answer (gateway/walk.py)` | 50% |" in text


def test_the_table_for_a_terminal_stands_in_columns() -> None:
    lines = report.plain(report.table([a_result(ratio(2.5, reach=1.0), BOUND)])).splitlines()
    assert len(lines) == 3
    start = lines[0].index("verdict")
    assert [line[start:] for line in lines[1:]] == ["reached", "reached"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12_345.6, "answers/s", "12,346"),
        (0.0512, "s", "0.0512 s"),
        (12.34, "ms", "12.3 ms"),
        (216.4, "ms", "216 ms"),
    ],
)
def test_a_figure_is_as_exact_as_it_is_of_use(value: float, unit: str, text: str) -> None:
    assert report.figure(value, unit) == text


# The command.


@pytest.mark.parametrize("bad", ["0", str(len(WORKS) + 1), "first"])
def test_a_work_that_does_not_exist_is_refused(
    bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--only", bad])
    assert left.value.code == 2
    assert "--only" in capsys.readouterr().err


def test_the_help_names_every_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for number, work in enumerate(WORKS, 1):
        assert f"{number} {work.title}" in said


# A run of one work, which starts a server and then does nothing for ever.
WAITING = """
import signal, sys
from pathlib import Path
from bench import __main__ as command, machine
from bench.processes import running
from bench.works import Work

def wait(stage, result):
    server = [sys.executable, *sys.argv[1:]]
    with running("stubborn", server, port=int(sys.argv[-2]), cores=stage.both, folder=stage.folder):
        print("up", flush=True)
        signal.pause()

machine.find_tools = lambda path: machine.Tools(path, path)
machine.two_cores = lambda: (frozenset(machine.os.sched_getaffinity(0)),) * 2
command.WORKS = (Work("waiting", "", wait),)
sys.exit(command.main([]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_behind(number: signal.Signals, status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(15)
        ports = [str(free_port()), str(listener.getsockname()[1])]
        run = subprocess.Popen(
            [sys.executable, "-c", WAITING, "-c", STUBBORN, *ports],
            cwd=PEERS.parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = listener.accept()
        with run, connection:
            assert run.stdout is not None
            assert run.stderr is not None
            assert run.stdout.readline() == "up\n"
            run.send_signal(number)
            connection.settimeout(15)
            assert connection.recv(4) == b"here"
            assert connection.recv(1) == b""
            assert run.wait(15) == status
            assert "Traceback" not in run.stderr.read()
